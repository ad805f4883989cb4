"""What the rest of QMD asks of a model. Backends implement these; nothing here imports a runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qmd.types import ModelCard

Vectors = NDArray[np.float32]


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into unit vectors. Deterministic for equal text."""

    card: ModelCard
    dim: int
    max_tokens: int
    fingerprint: str
    """Changes whenever vectors would: model file digest, pooling, prefixes, dimensions."""

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """(n, d) float32, rows L2-normalised. Texts longer than `max_tokens` are windowed, never cut."""
        ...

    def embed_query(self, text: str) -> Vectors:
        """(d,) float32, L2-normalised, with the model's query prefix."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the model sees it, special tokens included."""
        ...


@runtime_checkable
class DerivedEmbedder(Protocol):
    """An embedder whose vectors follow from those of another model."""

    base_fingerprint: str

    def adapt(self, rows: Vectors) -> Vectors:
        """(n, d) vectors of the base -> (n, d) vectors of this one."""
        ...


@runtime_checkable
class Reranker(Protocol):
    """Scores (query, text) pairs."""

    card: ModelCard
    fingerprint: str

    def score(self, query: str, texts: Sequence[str]) -> Vectors:
        """(n,) float32: probability that each text answers the query."""
        ...


class Drafter(Protocol):
    """Offers tokens that may come next. The generator checks several in one step and keeps those that it would have
    written itself: what is offered changes how long a text takes, never the text."""

    def start(self, prompt: Sequence[int]) -> None:
        """A text begins after these tokens."""
        ...

    def offer(self, limit: int) -> Sequence[int]:
        """Up to `limit` tokens, none if checking them would not pay."""
        ...

    def wrote(self, tokens: Sequence[int], offered: Sequence[int], stood: int) -> None:
        """One step wrote `tokens`; the first `stood` of those offered were among them."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Writes text."""

    card: ModelCard
    fingerprint: str

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        grammar: str | None = None,
    ) -> Iterator[str]:
        """Yield pieces of text as they are decoded. `grammar` (Lark syntax) restricts what may be written."""
        ...


@runtime_checkable
class ChatGenerator(Generator, Protocol):
    """A Generator that also goes on with a conversation."""

    def generate_chat(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        grammar: str | None = None,
    ) -> Iterator[str]:
        """Yield the next message, after (role, text) pairs."""
        ...
