"""Expansion without a model: words of the best passages, for a second keyword list. Knows texts and counts only.

`feedback` is called with the texts of the best passages of the first lists. An empty answer means: not worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

FEEDBACK_PASSAGES = 0
"""Passages that are read for expansion; 0 switches it off."""
FEEDBACK_WEIGHT = 0.5
"""Weight of the expanded keyword list, against 1 of the question's own."""


def feedback(
    words: Sequence[str],
    passages: Sequence[str],
    document_frequency: Callable[[Iterable[str]], Mapping[str, int]],
    count: int,
) -> list[str]:
    """Words to look for beside `words`, best first.

    passages: texts of the best passages, best first; document_frequency: word -> passages that hold it, of `count`.
    """
    return []
