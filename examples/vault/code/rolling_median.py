"""Rolling median for gauge readings: removes the spikes that boats and birds make.

Median, not mean: one absurd value out of seven must not move the result at all.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator


def rolling_median(values: Iterable[float], window: int = 7) -> Iterator[float]:
    """Yield the median of the last `window` values, from the first value on.

    A sorted list beside a deque: O(window) per value, which for seven values beats any heap.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    recent: deque[float] = deque()
    ordered: list[float] = []
    for value in values:
        recent.append(value)
        insort(ordered, value)
        if len(recent) > window:
            del ordered[bisect_left(ordered, recent.popleft())]
        yield ordered[len(ordered) // 2]


def rises_faster_than(levels_cm: list[float], limit_cm_per_hour: float, interval_min: float = 10) -> bool:
    """True if the smoothed level rose faster than the limit over the last hour."""
    per_hour = max(1, round(60 / interval_min))
    smooth = list(rolling_median(levels_cm))
    return len(smooth) > per_hour and smooth[-1] - smooth[-1 - per_hour] > limit_cm_per_hour


if __name__ == "__main__":
    print(list(rolling_median([52, 52, 53, 190, 53, 54, 54, 55])))
