from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

Built = tuple[Path, Any]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """tiny_model(kind) -> (folder with ONNX files, the transformers model), made once a session."""
    made: dict[str, Built] = {}

    def build(kind: str) -> Built:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder, tiny.export(kind, folder)
        return made[kind]

    return build
