"""The index database: SQLite is the truth, everything else beside it is derived."""

from qmd.store.chunks import ChunkRow, embedding_key, embedding_text
from qmd.store.documents import FileStamp, StoredDocument
from qmd.store.matrix import VectorMatrix
from qmd.store.repair import CleanupReport, Counts, Problem
from qmd.store.store import Store
from qmd.store.vectors import PendingText, StoredModel

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
