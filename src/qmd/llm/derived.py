"""An embedder whose vectors are another's, moved: what is common to all of that kind. Knows no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from qmd.llm.protocols import Embedder, Vectors
from qmd.types import ModelCard


class Derived(ABC):
    """Implements `Embedder` and `DerivedEmbedder` over `base`: what an index holds of the base is moved without reading
    a text again. A space of its own: its vectors are never compared with those of the base.

    mark: what is put behind the base's fingerprint.
    """

    def __init__(self, base: Embedder, *, card: ModelCard, dim: int, mark: str) -> None:
        self.base = base
        self.card = card
        self.dim = dim
        self.max_tokens = base.max_tokens
        self.base_fingerprint = base.fingerprint
        self.fingerprint = base.fingerprint + mark

    @property
    def runs_on(self) -> str:
        """Where the base computes."""
        return str(getattr(self.base, "runs_on", type(self.base).__name__))

    @abstractmethod
    def adapt(self, rows: Vectors) -> Vectors:
        """(n, d) unit vectors of the base -> (n, dim) unit vectors of this model."""

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        return self.adapt(self.base.embed_documents(texts))

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.adapt(self.base.embed_query(text)[None, :])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.base.count_tokens(texts)


def unit_rows(rows: Vectors) -> Vectors:
    """(n, d) -> rows of length one; zero rows stay zero."""
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
