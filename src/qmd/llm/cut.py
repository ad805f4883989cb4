"""Matryoshka vectors: the first `dim` numbers of a model's vectors, at unit length again. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qmd.errors import ModelError
from qmd.llm.protocols import Embedder, Vectors
from qmd.types import ModelCard


class CutEmbedder:
    """`base`, cut. A space of its own: vectors of another length, or of the base, are never compared with these.

    Implements `Embedder` and `DerivedEmbedder`: what an index holds of the base is cut without reading a text again.
    """

    def __init__(self, base: Embedder, dim: int) -> None:
        self.base = base
        self.card = base.card
        self.dim = dim
        self.max_tokens = base.max_tokens
        self.base_fingerprint = base.fingerprint
        self.fingerprint = f"{base.fingerprint}/{dim}"

    @property
    def runs_on(self) -> str:
        """Where the base computes."""
        return str(getattr(self.base, "runs_on", type(self.base).__name__))

    def adapt(self, rows: Vectors) -> Vectors:
        """(n, d) vectors of the base -> (n, dim) unit vectors."""
        return cut_rows(rows, self.dim)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        return self.adapt(self.base.embed_documents(texts))

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.adapt(self.base.embed_query(text)[None, :])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.base.count_tokens(texts)


def cut_embedder(embedder: Embedder, dim: int | None) -> Embedder:
    """`embedder` with vectors of `dim` numbers; itself where that is what it gives, or None is asked for.

    Raises ModelError for more numbers than the model has.
    """
    if dim is None or dim == embedder.dim:
        return embedder
    if not 0 < dim < embedder.dim:
        raise ModelError(
            f"{embedder.card.name} gives vectors of {embedder.dim} numbers, {dim} were asked for. "
            "Choose fewer, or leave `dim` out."
        )
    return CutEmbedder(embedder, dim)


def cut_rows(rows: Vectors, dim: int) -> Vectors:
    """(n, d) -> (n, dim), rows of unit length."""
    kept = rows[:, :dim]
    unit: Vectors = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
    return unit


def is_cut(fingerprint: str) -> bool:
    """Whether a fingerprint is that of a cut embedder."""
    return fingerprint.rpartition("/")[2].isdigit()


def doubt_of(card: ModelCard, dim: int | None) -> str:
    """What is to be said of vectors cut to a length that the model was not trained for; empty where it was."""
    if dim is None or dim == card.dim or dim in card.dims:
        return ""
    known = f"it was for {', '.join(map(str, card.dims))}" if card.dims else "its card lists no lengths"
    return (
        f"{card.name} was not trained for vectors of {dim} numbers ({known}): search by meaning may find less"
    )
