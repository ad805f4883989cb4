"""From what is known of a hit to the probability that it is relevant. Knows figures only.

Logistic models, fitted as `benchmarks/fit_calibration.py` does on English, Chinese and Japanese development
collections. No test set was fitted to; which features to take was decided with two of them in sight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FITTED_DOCUMENTS = 1_500
"""Documents of the collections that the models were fitted on."""
_HIT = {
    "keyword": (-13.335, 11.968, 1.839),
    "vector": (-9.69, 0.784, 7.162),
    "hybrid": (-10.601, 5.814, 0.543, 3.175, 0.457),
}
_ANY = {
    "keyword": (-13.47, 14.942, 2.548),
    "vector": (-5.35, 0.042, 12.091),
    "hybrid": (-9.019, 7.775, -0.145, 10.435, 0.318),
}
"""Constant; then weights of: square root of `match`, `deviations`, `cosine`, log(1 + words); by vector without match
and words, by keyword without deviations and cosine. AUROC of _ANY on collections left out of the fit: .94 to 1.00
hybrid, .89 to 1.00 keyword, .90 to .99 vector; half of the questions foreign, a third of them one to three words."""

NOTHING_BELOW = 0.5
"""Below this probability that any hit answers the question, the answer is that nothing does."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the stages found out about one hit. None: the list was not made, or did not find the document.

    score: as the last stage gave it, in [0, 1]; match: share of the question's words that document and passage match,
    weighed by how rare they are; deviations: standard deviations of the cosine above the index's background; words: how
    many were asked for; documents: how many the index has; reranked: the probability that the reranker gave, and
    rerank_weight its share.
    """

    mode: str
    score: float
    cosine: float | None = None
    words: int = 0
    match: float | None = None
    deviations: float | None = None
    documents: int = FITTED_DOCUMENTS
    reranked: float | None = None
    rerank_weight: float = 0.0


def probability(evidence: Evidence) -> float:
    """That the hit is relevant, in [0, 1]. What a reranker read, it says its share of, as in the order."""
    return _with_reranker(_of(_HIT, [evidence]), [evidence])


def any_relevant(evidence: Sequence[Evidence]) -> float | None:
    """Probability that the best hits hold anything relevant; None: no statement, there are none."""
    return _with_reranker(_of(_ANY, evidence), evidence) if evidence else None


def _with_reranker(known: float, evidence: Sequence[Evidence]) -> float:
    read = [e.reranked for e in evidence if e.reranked is not None]
    share = evidence[0].rerank_weight
    return (1 - share) * known + share * max(read) if read else known


def _of(models: Mapping[str, tuple[float, ...]], evidence: Sequence[Evidence]) -> float:
    match = max((e.match or 0.0 for e in evidence), default=0.0)
    deviations = max((e.deviations or 0.0 for e in evidence), default=0.0)
    cosine = max((e.cosine or 0.0 for e in evidence), default=0.0)
    first = evidence[0]
    mode = first.mode
    if mode == "hybrid" and all(e.deviations is None for e in evidence):
        mode = "keyword"
    length = math.log1p(first.words)
    constant, *weights = models[mode]
    features = {
        "keyword": (math.sqrt(max(match, 0.0)), length),
        "vector": (deviations, cosine),
        "hybrid": (math.sqrt(max(match, 0.0)), deviations, cosine, length),
    }[mode]
    logit = constant + sum(w * f for w, f in zip(weights, features, strict=True))
    # Of fewer documents, fewer match by chance. Reasoned, not fitted: half of the odds.
    logit += 0.5 * math.log(FITTED_DOCUMENTS / min(max(first.documents, 1), FITTED_DOCUMENTS))
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))
