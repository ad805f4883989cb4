"""Models that all requests share: loaded once by whoever needs them first, let go when nobody has asked for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np

from qmd.llm.cut import cut_embedder
from qmd.llm.protocols import Embedder, Generator, Reranker, Vectors
from qmd.serve.memory import give_back_memory
from qmd.serve.service.batching import Batcher
from qmd.serve.service.lanes import check_job
from qmd.types import ModelCard

M = TypeVar("M")


class Kept(Generic[M]):
    """At most one loaded model. Eight first calls at once load it once; the others wait for that load."""

    def __init__(self, role: str, load: Callable[[], M]) -> None:
        self.role = role
        self.loads = 0
        self._load = load
        self._model: M | None = None
        self._users = 0
        self._retired = False
        self._used = time.monotonic()
        self._guard = threading.Lock()
        self._loading = threading.Lock()

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @contextmanager
    def use(self) -> Iterator[M]:
        """The model, which stays while the block runs."""
        with self._guard:
            self._users += 1
        try:
            yield self._get()
        finally:
            with self._guard:
                self._users -= 1
                self._used = time.monotonic()
            if self._retired:
                self.rest(0.0)

    def _get(self) -> M:
        model = self._model
        if model is None:
            with self._loading:
                model = self._model
                if model is None:
                    model = self._load()
                    self.loads += 1
                    self._model = model
        return model

    def rest(self, idle_s: float) -> bool:
        """Let the model go if it has not been used for `idle_s` seconds. Returns whether it did."""
        with self._guard:
            if self._model is None or self._users or time.monotonic() - self._used < idle_s:
                return False
            self._model = None
        give_back_memory()
        return True

    def retire(self) -> None:
        """Another one takes over: the model goes with whoever uses it last."""
        self._retired = True
        self.rest(0.0)


class SharedEmbedder:
    """An Embedder for any number of threads. What it says of itself stays known while the model is not loaded.

    dim: to what length the kept model's vectors are cut.
    """

    def __init__(
        self,
        kept: Kept[Embedder],
        batcher: Callable[[Callable[..., Vectors]], Batcher],
        dim: int | None = None,
    ) -> None:
        self._kept = kept
        self._dim = dim
        self._facts: tuple[ModelCard, int, int, str] | None = None
        self._behind = threading.local()
        self.batcher = batcher(self._run)

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """What this thread embeds in the block gives way to requests."""
        self._behind.on = True
        try:
            yield
        finally:
            self._behind.on = False

    @property
    def card(self) -> ModelCard:
        return self._known()[0]

    @property
    def dim(self) -> int:
        return self._known()[1]

    @property
    def max_tokens(self) -> int:
        return self._known()[2]

    @property
    def fingerprint(self) -> str:
        return self._known()[3]

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        if isinstance(texts, str):
            raise TypeError("embed_documents takes a sequence of texts, not one string.")
        return self.batcher.ask("document", texts, background=getattr(self._behind, "on", False))

    def embed_query(self, text: str) -> Vectors:
        row: Vectors = self.embed_queries([text])[0]
        return row

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """(n, d) float32: what `embed_query` gives for each."""
        card = self.card
        # without prefixes a question is embedded as a document is: both go into one batch
        return self.batcher.ask("query" if card.query_prefix != card.doc_prefix else "document", texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        with self._kept.use() as model:
            return model.count_tokens(texts)

    def _known(self) -> tuple[ModelCard, int, int, str]:
        if self._facts is None:
            with self._cut() as model:
                self._facts = (model.card, model.dim, model.max_tokens, model.fingerprint)
        return self._facts

    @contextmanager
    def _cut(self) -> Iterator[Embedder]:
        with self._kept.use() as model:
            yield cut_embedder(model, self._dim)

    def _run(self, key: str, texts: Sequence[str]) -> Vectors:
        with self._cut() as model:
            if key == "document" or not texts:
                return model.embed_documents(texts)
            several: Any = getattr(model, "embed_queries", None)
            if several is not None:
                rows: Vectors = several(texts)
                return rows
            return np.stack([model.embed_query(text) for text in texts])


class SharedGenerator:
    """A Generator for any number of threads: one writes, the others wait."""

    def __init__(self, kept: Kept[Generator]) -> None:
        self._kept = kept
        self._facts: tuple[ModelCard, str] | None = None
        self._turn = threading.Lock()

    @property
    def card(self) -> ModelCard:
        return self._known()[0]

    @property
    def fingerprint(self) -> str:
        return self._known()[1]

    def generate(self, prompt: str, **options: Any) -> Iterator[str]:
        with self._kept.use() as model:
            while not self._turn.acquire(timeout=0.1):
                check_job()
            try:
                for piece in model.generate(prompt, **options):
                    check_job()
                    yield piece
            finally:
                self._turn.release()

    def _known(self) -> tuple[ModelCard, str]:
        if self._facts is None:
            with self._kept.use() as model:
                self._facts = (model.card, model.fingerprint)
        return self._facts


class SharedReranker:
    """A Reranker for any number of threads: texts of one query are scored together, whoever sent them."""

    def __init__(self, kept: Kept[Reranker], batcher: Callable[[Callable[..., Vectors]], Batcher]) -> None:
        self._kept = kept
        self._facts: tuple[ModelCard, str] | None = None
        self.batcher = batcher(self._run)

    @property
    def card(self) -> ModelCard:
        return self._known()[0]

    @property
    def fingerprint(self) -> str:
        return self._known()[1]

    def score(self, query: str, texts: Sequence[str]) -> Vectors:
        return self.batcher.ask(query, texts) if texts else np.zeros(0, np.float32)

    def _known(self) -> tuple[ModelCard, str]:
        if self._facts is None:
            with self._kept.use() as model:
                self._facts = (model.card, model.fingerprint)
        return self._facts

    def _run(self, query: str, texts: Sequence[str]) -> Vectors:
        with self._kept.use() as model:
            return model.score(query, texts)
