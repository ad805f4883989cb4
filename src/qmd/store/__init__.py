"""The index database: SQLite is the truth, everything else beside it is derived."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmd.store.chunks import ChunkRow, embedding_key, embedding_text
from qmd.store.documents import FileStamp, StoredDocument
from qmd.store.store import Store

if TYPE_CHECKING:
    from qmd.store.matrix import VectorMatrix as VectorMatrix
    from qmd.store.repair import CleanupReport as CleanupReport
    from qmd.store.repair import Counts as Counts
    from qmd.store.repair import Problem as Problem
    from qmd.store.vectors import PendingText as PendingText
    from qmd.store.vectors import StoredModel as StoredModel

__all__ = [
    "ChunkRow",
    "CleanupReport",
    "Counts",
    "FileStamp",
    "PendingText",
    "Problem",
    "Store",
    "StoredDocument",
    "StoredModel",
    "VectorMatrix",
    "embedding_key",
    "embedding_text",
]

_LAZY = {
    "CleanupReport": "qmd.store.repair",
    "Counts": "qmd.store.repair",
    "PendingText": "qmd.store.vectors",
    "Problem": "qmd.store.repair",
    "StoredModel": "qmd.store.vectors",
    "VectorMatrix": "qmd.store.matrix",
}


def __getattr__(name: str) -> object:
    """Vectors bring numpy with them: imported when they are asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'qmd.store' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
