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
def indexed_home(
    tmp_path_factory: pytest.TempPathFactory, sandbox_env: Callable[[Path], dict[str, str]]
) -> Path:
    """A home folder after `qmd add ~/notes --name vault`; the vault is also at work/examples/vault."""
    home = tmp_path_factory.mktemp("docs") / "home"
    shutil.copytree(REPO / "examples", home / "work" / "examples")
    shutil.copytree(REPO / "examples" / "vault", home / "notes")
    subprocess.run(
        ["qmd", "add", str(home / "notes"), "--name", "vault"],
        env=sandbox_env(home),
        cwd=home / "work",
        check=True,
        timeout=120,
    )
    return home
