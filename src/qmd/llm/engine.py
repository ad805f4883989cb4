"""LLMEngine: models in this process, or in one that several share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from qmd.errors import UsageError
from qmd.llm.catalog import DEFAULT_EMBEDDING
from qmd.llm.cut import cut_embedder
from qmd.llm.open import open_embedder, open_generator, open_reranker
from qmd.llm.protocols import ChatGenerator, Embedder, Reranker, Vectors
from qmd.llm.providers import Device

Mode = Literal["standalone", "server", "auto"]


class LLMEngine:
    """The model loads at first use; a GPU is used where ONNX Runtime has one and the model has files for it.

    standalone: the model lives in this process. server: in a process that owns it for all programs of
    this user,
    started on demand. auto: there if such a process runs already, else here. dim: numbers of a vector, where fewer are
    wanted than the model gives.
    """

    def __init__(
        self,
        mode: Mode = "standalone",
        *,
        model: str = DEFAULT_EMBEDDING,
        dim: int | None = None,
        device: Device | None = None,
        threads: int | None = None,
    ) -> None:
        if mode not in ("standalone", "server", "auto"):
            raise UsageError(f"mode {mode!r} is not one of standalone, server, auto.")
        self.mode: Mode = mode
        self.model = model
        self.dim = dim
        self._device = device
        self._threads = threads
        self._embedder: Embedder | None = None

    @property
    def embedder(self) -> Embedder:
        if self._embedder is None:
            self._embedder = self._open()
        return self._embedder

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(n, d) float32, rows L2-normalised."""
        return self.embedder.embed_documents(texts)

    def embed_query(self, query: str) -> Vectors:
        """(d,) float32, L2-normalised."""
        return self.embedder.embed_query(query)

    def reranker(self, model: str) -> Reranker:
        """A reranker, in the same process as the embedding model."""
        if self.mode != "standalone":
            from qmd.llm.shared import SharedReranker, connect

            connection = connect(start=self.mode == "server")
            if connection is not None:
                return SharedReranker(connection, model)
        return open_reranker(model, threads=self._threads, device=self._device)

    def generator(self, model: str) -> ChatGenerator:
        """A generator, in the same process as the embedding model."""
        if self.mode != "standalone":
            from qmd.llm.shared import SharedGenerator, connect

            connection = connect(start=self.mode == "server")
            if connection is not None:
                return SharedGenerator(connection, model)
        return open_generator(model, threads=self._threads, device=self._device)

    def _open(self) -> Embedder:
        if self.mode != "standalone":
            from qmd.llm.shared import SharedEmbedder, connect

            connection = connect(start=self.mode == "server")
            if connection is not None:
                return cut_embedder(SharedEmbedder(connection, self.model), self.dim)
        return open_embedder(self.model, dim=self.dim, threads=self._threads, device=self._device)
