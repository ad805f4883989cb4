"""One line of progress on a terminal's standard error, with an estimate that admits when it does not know."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import Self, TextIO

from qmd.serve.cli.screen import clean_line, encodable, is_terminal

_WINDOW_S = 20.0
_FIRST_ESTIMATE_S = 2.0
_REDRAW_S = 0.1


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 10 min`: no finer than it can be known."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class ProgressLine:
    """Callable as the Python door's `progress(stage, done, total)`. Silent where standard error is no
    terminal.

    The estimate is the rate of the last 20 seconds carried on, and is shown only after two seconds of work
    with some of it done.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: object = None) -> None:
        self._stream = stream or sys.stderr
        self._on = is_terminal(self._stream)
        self._clock = clock if callable(clock) else time.monotonic
        self._stage = ""
        self._marks: deque[tuple[float, int]] = deque()
        self._drawn_at = float("-inf")
        self._drawn = False

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = float(self._clock())
        if stage != self._stage:
            self._stage = stage
            self._marks = deque([(now, done)])
            self._drawn_at = float("-inf")
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW_S:
            self._marks.popleft()
        if self._on and now - self._drawn_at >= _REDRAW_S:
            self._drawn_at = now
            self._draw(self.text(done, total))

    def left_s(self, done: int, total: int | None) -> float | None:
        """Seconds to go, or None while nobody can know."""
        (start, before), (now, _) = self._marks[0], self._marks[-1]
        if not total or done <= before or now - start < _FIRST_ESTIMATE_S:
            return None
        return max(0, total - done) * (now - start) / (done - before)

    def text(self, done: int, total: int | None) -> str:
        amount = f"{done:,}" if not total else f"{done:,} of {total:,} ({done * 100 // total}%)"
        left = self.left_s(done, total)
        return (
            f"{clean_line(self._stage)}: {amount}{'' if left is None else f', about {duration(left)} left'}"
        )

    def _draw(self, text: str) -> None:
        self._stream.write(f"\r{encodable(text)}\x1b[K")
        self._stream.flush()
        self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
