"""The clock of a search, and what its stages are known to cost. Knows stages by name only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

NEWEST = 0.3
"""Share of the newest measurement in a running estimate."""
FORGIVEN = 0.9
"""An estimate that keeps a stage out shrinks by this much each time: a stage once slow is tried again."""
WORTH_SAVING = 0.2
"""Relative change of an estimate from which it is written down."""


class Clock:
    """Milliseconds of each stage, and of all so far."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._begin = self._last = time.perf_counter()

    def lap(self, stage: str) -> float:
        """Book the time since the last lap on `stage`. Returns it."""
        now = time.perf_counter()
        spent = (now - self._last) * 1000
        self.laps[stage] = round(self.laps.get(stage, 0.0) + spent, 3)
        self._last = now
        return spent

    def spent_ms(self) -> float:
        return (time.perf_counter() - self._begin) * 1000


class Costs:
    """Running estimates in milliseconds, kept for the process and, if `path` is given, in a small file.

    A file that cannot be read or written is done without: estimates are made again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, float] | None = None
        self._saved: dict[str, float] = {}

    def estimate(self, stage: str) -> float | None:
        """Milliseconds that the stage will take; None where it never ran."""
        return self._table().get(stage)

    def record(self, stage: str, ms: float) -> None:
        known = self._table()
        known[stage] = ms if stage not in known else (1 - NEWEST) * known[stage] + NEWEST * ms

    def record_failure(self, stage: str, ms: float) -> None:
        """A stage failed after so long: it takes at least that."""
        self.record(stage, max(ms, self.estimate(stage) or 0.0))

    def forgive(self, stage: str) -> None:
        if stage in self._table():
            self._table()[stage] *= FORGIVEN

    def save(self) -> None:
        """Write the estimates down if they changed enough to matter."""
        if self._path is None or not self._known:
            return
        old = self._saved
        if all(k in old and abs(v - old[k]) <= WORTH_SAVING * old[k] for k, v in self._known.items()):
            return
        temporary = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
                json.dump({k: round(v, 3) for k, v in self._known.items()}, file)
            temporary.replace(self._path)
        except OSError:
            return
        self._saved = dict(self._known)

    def _table(self) -> dict[str, float]:
        if self._known is None:
            try:
                tree = json.loads(self._path.read_text()) if self._path is not None else {}
                self._known = {str(k): float(v) for k, v in tree.items()}
            except (OSError, ValueError, TypeError, AttributeError):
                self._known = {}
            self._saved = dict(self._known)
        return self._known


class Budget:
    """Decides whether a stage still fits into what the search may take. `limit_ms` None: everything fits."""

    def __init__(self, limit_ms: float | None, costs: Costs, clock: Clock) -> None:
        self.limit_ms = limit_ms
        self.costs = costs
        self._clock = clock

    def left_ms(self) -> float | None:
        return None if self.limit_ms is None else max(0.0, self.limit_ms - self._clock.spent_ms())

    def refuses(self, *stages: str) -> str | None:
        """Why these stages together do not fit; None when they do, or when they were never measured."""
        left = self.left_ms()
        if left is None:
            return None
        known = [(stage, cost) for stage in stages if (cost := self.costs.estimate(stage)) is not None]
        need = sum(cost for _, cost in known)
        if need <= left and left > 0:
            return None
        for stage, _ in known:
            self.costs.forgive(stage)
        if left <= 0:
            return f"left out, the {self.limit_ms:.0f} ms are used up"
        return f"left out, takes about {need:.0f} ms and {left:.0f} of {self.limit_ms:.0f} ms are left"

    def fitting(self, stage: str, wanted: int, *, loading: str | None = None) -> int:
        """How many of `wanted` items the stage can take, its cost being known for one item."""
        left = self.left_ms()
        each = self.costs.estimate(stage)
        if left is None:
            return wanted
        left -= (self.costs.estimate(loading) or 0.0) if loading else 0.0
        fits = min(wanted, int(max(0.0, left) / each)) if each else wanted * (left > 0)
        if fits < wanted:
            self.costs.forgive(stage)
            if loading:
                self.costs.forgive(loading)
        return fits
