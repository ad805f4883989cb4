"""The wheel, built and installed alone in a clean environment, does the main job without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with nothing but the wheel and what it depends on."""
    root = tmp_path_factory.mktemp("wheel")
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", root / "dist", REPO], check=True, cwd=root
    )
    [wheel] = (root / "dist").glob("qmd_python-*.whl")
    venv.create(root / "venv", with_pip=True)
    folder = root / "venv" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run(
        [folder / "python", *pip, "install", "--constraint", REPO / "constraints.txt", wheel],
        check=True,
        cwd=root,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    return folder


def test_wheel_alone(bin_dir: Path, tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QMD_", "XDG_", "PYTHON"))}
    env = {**kept, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            arguments, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
        return done.stdout

    python, qmd = bin_dir / "python", bin_dir / "qmd"
    run(python, "-c", "import importlib.util as u; assert u.find_spec('torch') is None")
    run(
        python,
        "-c",
        "import qmd, sys; qmd.open; assert not {'torch', 'onnxruntime'} & sys.modules.keys()",
    )
    run(qmd, "add", REPO / "examples" / "vault", "--name", "vault")

    def first(*arguments: str) -> dict[str, object]:
        hit: dict[str, object] = json.loads(run(qmd, *arguments, "-n", "1", "--json"))[0]
        return hit

    assert first("search", "怎样设置文件权限")["file"] == "qmd://vault/linux/文件权限.md"
    assert first("vsearch", "my leg hurts when I walk downhill")["file"] == "qmd://vault/health/knee.md"
    hybrid = first("query", "my bread comes out heavy and wet inside")
    assert hybrid["file"] == "qmd://vault/kitchen/sourdough.md"
    assert "degraded" not in hybrid
    document = json.loads(run(qmd, "get", "qmd://vault/kitchen/sourdough.md", "--json"))
    assert "rye" in document["body"]
