"""One thread that owns a model's calls: texts of concurrent requests run together, up to a budget of tokens.

The first request of a batch waits for others only while others are on their way; alone it runs at once. Indexing
stands behind: its texts run in small pieces when no request waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from qmd.llm.protocols import Vectors
from qmd.serve.service.lanes import current_job

Run = Callable[[str, Sequence[str]], Vectors]


@dataclass(slots=True)
class Ask:
    """Texts under one key (what they have in common: the role of a text, or the query they are scored against)."""

    key: str
    texts: Sequence[str]
    tokens: int
    future: Future[Vectors] = field(default_factory=Future)


def count_roughly(text: str) -> int:
    """Tokens, within a factor of two: four letters or one CJK character (three bytes) each."""
    return 2 + (len(text) >> 2 if text.isascii() else len(text.encode("utf-8", "replace")) // 3)


class Batcher:
    """`run(key, texts)` -> one row a text. `expected()` says how many requests are under way."""

    def __init__(
        self,
        name: str,
        run: Run,
        *,
        tokens: int,
        background_tokens: int,
        wait_s: float,
        expected: Callable[[], int] = lambda: 1,
    ) -> None:
        self.batches = 0
        self.asks = 0
        self.texts = 0
        self._name = name
        self._run = run
        self._tokens = tokens
        self._background_tokens = background_tokens
        self._wait_s = wait_s
        self._expected = expected
        self._line: deque[Ask] = deque()
        self._behind: deque[Ask] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._retired = False

    def ask(self, key: str, texts: Sequence[str], *, background: bool = False) -> Vectors:
        """(n, ...) rows in the order of the texts. Raises what the model raises, TooLate, Abandoned."""
        if not texts:
            return self._run(key, texts)
        budget = self._background_tokens if background else self._tokens
        pieces = [Ask(key, part, cost) for part, cost in _cut(texts, budget)]
        with self._changed:
            if self._closed:
                raise RuntimeError("the service is closed")
            alone = self._retired
            if not alone:
                (self._behind if background else self._line).extend(pieces)
            if self._thread is None and not alone:
                self._thread = threading.Thread(target=self._work, name=f"qmd-{self._name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        if alone:
            return self._run(key, texts)
        job = current_job()
        try:
            rows = [
                job.wait_for(p.future) if job is not None and not background else p.future.result()
                for p in pieces
            ]
        except BaseException:
            for piece in pieces:
                piece.future.cancel()
            raise
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def retire(self) -> None:
        """Another one takes over: the thread ends with what is queued, and with it goes the model. Who still holds this
        one asks alone."""
        with self._changed:
            self._retired = True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=5)

    def _work(self) -> None:
        while True:
            batch = self._gather()
            if batch is None:
                return
            groups: dict[str, list[Ask]] = {}
            for ask in batch:
                if ask.future.set_running_or_notify_cancel():
                    groups.setdefault(ask.key, []).append(ask)
            for key, asks in groups.items():
                self._serve(key, asks)

    def _gather(self) -> list[Ask] | None:
        with self._changed:
            while not self._line and not self._behind:
                if self._closed or self._retired:
                    return None
                self._changed.wait()
            if not self._line:
                return [self._behind.popleft()]
            batch: list[Ask] = []
            cost = 0
            deadline = time.monotonic() + self._wait_s
            while True:
                while self._line and (not batch or cost + self._line[0].tokens <= self._tokens):
                    cost += self._line[0].tokens
                    batch.append(self._line.popleft())
                left = deadline - time.monotonic()
                if self._line or left <= 0 or self._expected() <= len(batch):
                    return batch
                self._changed.wait(left)

    def _serve(self, key: str, asks: list[Ask]) -> None:
        texts = [text for ask in asks for text in ask.texts]
        self.batches += 1
        self.asks += len(asks)
        self.texts += len(texts)
        try:
            rows = self._run(key, texts)
        except BaseException as error:  # noqa: BLE001  whatever it is, it belongs to whoever waits
            for ask in asks:
                with suppress(InvalidStateError):  # the client left meanwhile
                    ask.future.set_exception(error)
            return
        start = 0
        for ask in asks:
            end = start + len(ask.texts)
            with suppress(InvalidStateError):
                ask.future.set_result(rows[start:end])
            start = end


def _cut(texts: Sequence[str], budget: int) -> list[tuple[Sequence[str], int]]:
    pieces: list[tuple[Sequence[str], int]] = []
    start, cost = 0, 0
    for at, text in enumerate(texts):
        size = count_roughly(text)
        if at > start and cost + size > budget:
            pieces.append((texts[start:at], cost))
            start, cost = at, 0
        cost += size
    pieces.append((texts[start:], cost))
    return pieces
