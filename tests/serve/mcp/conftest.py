"""A small index with a hostile document, links out of the collection, and a secret beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from household import CONFIG, NOTES, REPO, SECRET, WordEmbedder

import qmd
from qmd.config import Places
from qmd.index import Index
from qmd.serve.mcp.operations import Operations
from qmd.serve.mcp.tools import Call


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder: notes/, data/ with their index, and secret/ that is in no collection."""
    home = tmp_path_factory.mktemp("mcp")
    for name, text in NOTES.items():
        file = home / "notes" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (home / "secret").mkdir()
    (home / "secret" / "secret.md").write_text(f"# Secret\n\n{SECRET}\n")
    (home / "notes" / "leak.md").symlink_to(home / "secret" / "secret.md")
    (home / "notes" / "linked").symlink_to(home / "secret")
    with qmd.open(home / "data", embedder=WordEmbedder(), config=CONFIG) as index:
        index.add(home / "notes", name="notes")
        index.add_context("notes", "Notes of one household")
        index.add_context("notes/kitchen", "Recipes that worked")
    return home


@pytest.fixture
def places(home: Path) -> Places:
    return Places(home / "config", home / "data")


@pytest.fixture
def index(home: Path) -> Iterator[Index]:
    with qmd.open(home / "data", embedder=WordEmbedder(), config=CONFIG, create=False) as index:
        yield index


@pytest.fixture
def operations(index: Index) -> Operations:
    return Operations(lambda: index)


@pytest.fixture
def tool(operations: Operations) -> Callable[..., dict[str, Any]]:
    """Call a tool by name, as the protocol does."""

    def call(name: str, **arguments: Any) -> dict[str, Any]:
        return operations.call_tool({"name": name, "arguments": arguments}, Call())

    return call


@pytest.fixture(scope="session")
def environment(home: Path) -> dict[str, str]:
    """For a `qmd` that runs as a process on that home folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QMD_", "XDG_", "HF_", "PYTEST_"))}
    return {
        **kept,
        "HOME": str(home),
        "QMD_DATA_DIR": str(home / "data"),
        "QMD_CONFIG_DIR": str(home / "config"),
        "PYTHONPATH": str(REPO / "src"),
        "HF_HUB_OFFLINE": "1",
    }
