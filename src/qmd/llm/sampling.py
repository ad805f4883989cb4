"""The numbers that a text is sampled with. Knows no model."""

from __future__ import annotations

import math

from qmd.errors import UsageError


def check_sampling(*, temperature: float, top_p: float, seed: int | None) -> None:
    """Raises UsageError for a number out of range, and for one that is none (NaN)."""
    if not 0.0 < top_p <= 1.0 or not 0.0 <= temperature < math.inf:
        raise UsageError(f"top_p must lie in (0, 1] and temperature be >= 0; got {top_p}, {temperature}.")
    if seed is not None and seed < 0:
        raise UsageError(f"seed must be >= 0, or None for another text each time; got {seed}.")
