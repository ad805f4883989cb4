"""Numbers about the service, and their text form for Prometheus. No label ever carries what a user wrote."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
Labels = tuple[tuple[str, str], ...]


class Counters:
    """Counters by name and labels, and one histogram of seconds for each name and labels."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._counts: dict[tuple[str, Labels], float] = {}
        self._times: dict[tuple[str, Labels], list[float]] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        key = (name, tuple(sorted(labels.items())))
        with self._guard:
            self._counts[key] = self._counts.get(key, 0.0) + amount

    def time(self, name: str, seconds: float, **labels: str) -> None:
        key = (name, tuple(sorted(labels.items())))
        with self._guard:
            row = self._times.setdefault(key, [0.0] * (len(BOUNDS_S) + 2))
            row[bisect_left(BOUNDS_S, seconds)] += 1
            row[-1] += seconds

    def count(self, name: str, **labels: str) -> float:
        """The sum over all label sets that have these labels."""
        wanted = set(labels.items())
        with self._guard:
            return sum(v for (n, have), v in self._counts.items() if n == name and wanted <= set(have))

    def text(self, gauges: Mapping[str, tuple[str, float]], helps: Mapping[str, str]) -> str:
        """Prometheus exposition format 0.0.4. gauges: name -> (help, value)."""
        with self._guard:
            counts, times = dict(self._counts), {k: list(v) for k, v in self._times.items()}
        lines: list[str] = []
        for name in sorted({n for n, _ in counts}):
            lines += [f"# HELP {name} {helps.get(name, name)}", f"# TYPE {name} counter"]
            lines += [
                f"{name}{_shown(labels)} {v:g}" for (n, labels), v in sorted(counts.items()) if n == name
            ]
        for name in sorted({n for n, _ in times}):
            lines += [f"# HELP {name} {helps.get(name, name)}", f"# TYPE {name} histogram"]
            for (n, labels), row in sorted(times.items()):
                if n == name:
                    lines += _histogram(name, labels, row)
        for name, (told, value) in gauges.items():
            lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge", f"{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _histogram(name: str, labels: Labels, row: list[float]) -> Iterable[str]:
    total = 0.0
    for bound, number in zip((*BOUNDS_S, "+Inf"), row[:-1], strict=True):
        total += number
        yield f"{name}_bucket{_shown((*labels, ('le', str(bound))))} {total:g}"
    yield f"{name}_sum{_shown(labels)} {row[-1]:.6f}"
    yield f"{name}_count{_shown(labels)} {total:g}"


def _shown(labels: Labels) -> str:
    if not labels:
        return ""

    def safe(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{name}="{safe(value)}"' for name, value in labels) + "}"
