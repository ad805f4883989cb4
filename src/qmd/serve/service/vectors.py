"""The vector matrix for many readers: one of them renews it, the others go on with the one before."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

from qmd.serve.service.lanes import Lane
from qmd.store.matrix import VectorMatrix
from qmd.store.vectors import Vectors

PATIENCE_S = 0.3
NO_DEADLINE_S = 1e9


class ServedVectors(Vectors):
    """While an index grows, its matrix is renewed again and again. A small one is waited for; a large one is not: what
    is newest is found by its words until then. Chunks that are gone are left out after the scan in any case.

    lane: where it is renewed: one thread, and so one connection to the database."""

    def __init__(self, before: Vectors, lane: Lane) -> None:
        super().__init__(before._db, before._say)
        self._guard = threading.Lock()
        self._lane = lane
        self._renewals: dict[str, Future[VectorMatrix]] = {}
        self._took_s: dict[str, float] = {}

    def matrix(self, fingerprint: str) -> VectorMatrix:
        cached = self._cached.get(fingerprint)
        if cached is not None and cached.generation == self._generation():
            return cached
        with self._guard:
            renewal = self._renewals.get(fingerprint)
            if renewal is None or renewal.done():
                renewal = self._lane.submit(lambda: self._renew_now(fingerprint), NO_DEADLINE_S).future
                self._renewals[fingerprint] = renewal
        if cached is None:
            return renewal.result()
        try:
            return renewal.result(PATIENCE_S if self._took_s.get(fingerprint, 0.0) < PATIENCE_S else 0.0)
        except TimeoutError:
            return cached

    def _generation(self) -> int:
        return int(self._db.value("SELECT value FROM meta WHERE key = 'generation'"))

    def _renew_now(self, fingerprint: str) -> VectorMatrix:
        begin = time.monotonic()
        found = super().matrix(fingerprint)
        self._took_s[fingerprint] = time.monotonic() - begin
        return found
