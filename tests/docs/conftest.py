"""A home folder for pages that are run: the sample vault, an index of it, and `qmd` on the PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def sandbox_env(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, str]]:
    """Environment for a given home folder; `qmd` and `python` are this tree and this interpreter."""
    bin_dir = tmp_path_factory.mktemp("bin")
    for name, arguments in {"qmd": "-m qmd", "python": ""}.items():
        script = bin_dir / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QMD_", "XDG_", "HF_", "PYTEST_"))}

    def env(home: Path) -> dict[str, str]:
        return {
            **kept,
            "HOME": str(home),
            "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPO / "src"),
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "COLUMNS": "100",
        }

    return env


@pytest.fixture(scope="session")
def fresh_home(
    tmp_path_factory: pytest.TempPathFactory, sandbox_env: Callable[[Path], dict[str, str]]
) -> Callable[[str], Path]:
    """Put the home folder back to its first state: the vault as `notes` in it and as
    `examples/vault` in the folder that blocks run in.

    With "vault", `qmd add ~/notes --name vault` has been run; with "none" there is no index. It is the same
    folder every time, because an index knows where its notes lie.
    """
    root = tmp_path_factory.mktemp("docs")
    home, plain, indexed = root / "home", root / "plain", root / "indexed"
    shutil.copytree(REPO / "examples", plain / "work" / "examples")
    shutil.copytree(REPO / "examples" / "vault", plain / "notes")

    def restore(index: str) -> Path:
        if index == "vault" and not indexed.exists():
            restore("none")
            subprocess.run(
                ["qmd", "add", str(home / "notes"), "--name", "vault"],
                env=sandbox_env(home),
                cwd=home / "work",
                check=True,
                timeout=120,
            )
            shutil.copytree(home, indexed)
        if home.exists():
            shutil.rmtree(home)
        shutil.copytree(indexed if index == "vault" else plain, home)
        return home

    return restore
