"""The page's code runs as it stands, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qmd.draft.settings import read_config

torch = pytest.importorskip("torch")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "draft.md"


def test_python_blocks_run():
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


def test_the_configuration_is_known(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    (tmp_path / "draft.yaml").write_text(block)
    config = read_config(tmp_path / "draft.yaml")
    assert config.target_model == "SmolLM2-135M-Instruct"
    assert config.training.learning_rate == 3e-5
