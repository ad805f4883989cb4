"""Every block of the pages runs, in the order of its page; so do the demo and the benchmark."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "ivf").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert blocks or page.name in ("index.md", "figures.md")
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def run(*argv):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, env=env, timeout=120, check=True
    ).stdout


def test_demo_verifies_itself():
    out = run(
        str(ROOT / "examples/ivf_demo.py"), "--nb", "5000", "--nlist", "16", "--nprobe", "4", "--verify"
    )
    assert "equals exact search: True" in out


def test_benchmark_appends_json_lines_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "b.jsonl", tmp_path / "p.svg"
    small = [
        "--nb",
        "3000",
        "--train-n",
        "1000",
        "--nlist",
        "16",
        "--nprobe",
        "4",
        "--d",
        "16",
        "--repeat",
        "1",
    ]
    run(
        str(ROOT / "benchmarks/ivf.py"),
        "nq",
        *small,
        "--nq",
        "1",
        "16",
        "--output",
        str(out),
        "--plot",
        str(plot),
    )
    run(str(ROOT / "benchmarks/ivf.py"), "max-codes", *small, "--nq", "16", "--output", str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["bench"] for line in lines} == {"nq", "max_codes"}
    assert all(line["qps"] > 0 and line["environment"]["torch"] for line in lines)
    assert "<svg" in plot.read_text()
