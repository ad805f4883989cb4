from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees, or leaves, what another prepared."""
    if "QMD_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("QMD_CACHE_DIR", str(tmp_path_factory.mktemp("qmd-cache")))


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
