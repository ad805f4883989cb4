"""Make the vectors that are missing: newest documents first, each batch kept before the next begins."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmd.errors import ModelMismatch
from qmd.llm.protocols import DerivedEmbedder, Embedder
from qmd.store.store import Store
from qmd.types import Progress

if TYPE_CHECKING:
    from qmd.llm.protocols import Vectors
    from qmd.store.vectors import PendingText

BATCH_TEXTS = 128
WINDOW_TEXTS = 4096
RATE_OVER_S = 30.0


@dataclass(frozen=True, slots=True)
class EmbedReport:
    """Texts embedded by this run, chunks with a vector and chunks in all; `interrupted` by Ctrl-C."""

    embedded: int
    done: int
    total: int
    seconds: float
    interrupted: bool = False
    dropped_models: tuple[str, ...] = ()


def _vectors(store: Store, embedder: Embedder, batch: Sequence[PendingText]) -> Vectors:
    """(n, d): from stored vectors of the model this one is derived from, where there are such, else from the texts."""
    if not isinstance(embedder, DerivedEmbedder):
        return embedder.embed_documents([p.text for p in batch])
    import numpy as np

    stored = store.vectors.of_keys(embedder.base_fingerprint, [p.key for p in batch])
    vectors = np.empty((len(batch), embedder.dim), dtype=np.float32)
    known = [i for i, p in enumerate(batch) if p.key in stored]
    new = [i for i, p in enumerate(batch) if p.key not in stored]
    if known:
        vectors[known] = embedder.adapt(np.stack([stored[batch[i].key] for i in known]))
    if new:
        vectors[new] = embedder.embed_documents([batch[i].text for i in new])
    return vectors


class Pace:
    """Time left, from the characters embedded in the last half minute: long texts take longer than short ones."""

    def __init__(self, characters_left: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.characters_left = characters_left
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def step(self, characters: int) -> None:
        self.characters_left = max(0, self.characters_left - characters)
        now = self._clock()
        self._marks.append((now, self._marks[-1][1] + characters))
        while len(self._marks) > 2 and now - self._marks[1][0] > RATE_OVER_S:
            self._marks.popleft()

    @property
    def seconds_left(self) -> float | None:
        """None until two seconds have been measured."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        if end - start < 2 or after == before:
            return None
        return self.characters_left * (end - start) / (after - before)


def embed(
    store: Store,
    embedder: Embedder,
    progress: Progress | None = None,
    *,
    model_changed: bool = False,
    seconds_left: Callable[[float | None], None] | None = None,
) -> EmbedReport:
    """Embed every text that has no vector of this model yet. Ctrl-C ends it early and keeps what is done.

    progress("embed", chunks with a vector, chunks) comes after each batch is kept. With `model_changed`, vectors of
    other models are dropped once this model has them all; without it, ModelMismatch is raised if there are any.
    """
    card, fingerprint = embedder.card, embedder.fingerprint
    others = [m for m in store.vectors.models() if m.fingerprint != fingerprint and m.count]
    if others and not model_changed:
        raise ModelMismatch(
            f"the index holds vectors of {others[0].name} ({others[0].dim}d), the configuration asks for {card.name} "
            f"({embedder.dim}d). Run `qmd embed --model-changed`, or restore the old model in the configuration."
        )
    begin = time.monotonic()
    done, total = store.vectors.count(fingerprint)
    pace = Pace(store.vectors.pending_characters(fingerprint))
    embedded = 0
    try:
        while window := store.vectors.pending(fingerprint, WINDOW_TEXTS):
            for start in range(0, len(window), BATCH_TEXTS):
                batch = window[start : start + BATCH_TEXTS]
                vectors = _vectors(store, embedder, batch)
                store.vectors.put(
                    fingerprint,
                    card.name,
                    embedder.dim,
                    zip((p.key for p in batch), vectors, strict=True),
                )
                embedded += len(batch)
                done = min(total, done + len(batch))
                pace.step(sum(len(p.text) for p in batch))
                if progress is not None:
                    progress("embed", done, total)
                if seconds_left is not None:
                    seconds_left(pace.seconds_left)
    except KeyboardInterrupt:
        done, total = store.vectors.count(fingerprint)
        return EmbedReport(embedded, done, total, time.monotonic() - begin, interrupted=True)
    done, total = store.vectors.count(fingerprint)
    dropped: list[str] = []
    if done == total:
        for model in others:
            store.vectors.forget(model.fingerprint)
            dropped.append(model.name)
    return EmbedReport(embedded, done, total, time.monotonic() - begin, dropped_models=tuple(dropped))
