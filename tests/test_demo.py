"""`make demo` shows what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

EXPECTED = [
    "garden/tomatoes.md",
    "linux/文件权限.md",
    "linux/ファイルの権限.md",
    "kitchen/sourdough.md",
    "travel/IMG_0417.png",
    "work/2026-04-22 ingest outage.md",
    "health/睡眠记录.md",
    "health/花粉症.md",
]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that has `qmd` beside it, as in a virtual environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, arguments in {"python": "", "qmd": "-m qmd"}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    return folder


def test_demo_finds_the_notes_it_should(python: Path, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(REPO / "src"), "QMD_DEMO_DIR": str(tmp_path / "demo")}
    program = (
        f"import sys, runpy; sys.executable = {str(python / 'python')!r}; "
        f"runpy.run_path({str(REPO / 'examples' / 'demo.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = done.stdout.split("\n$ qmd ")[2:]
    assert len(parts) == len(EXPECTED)
    for part, expected in zip(parts, EXPECTED, strict=True):
        assert re.search(rf"^qmd://vault/{re.escape(expected)}(:\d+)? ", part, re.MULTILINE), part
    reasons = [line for line in done.stderr.splitlines() if "degraded" in line]
    assert all("reads en" in reason for reason in reasons), reasons


def test_demo_without_an_installation_says_what_to_do(tmp_path: Path) -> None:
    program = (
        f"import sys, runpy; sys.executable = {str(tmp_path / 'python')!r}; "
        f"runpy.run_path({str(REPO / 'examples' / 'demo.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "make demo" in done.stderr
