"""Fuse ranked lists. Knows nothing about where the lists came from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def fuse_ranks(
    rankings: Mapping[str, Sequence[K]], weights: Mapping[str, float], *, k: int = 60
) -> list[tuple[K, float]]:
    """Weighted reciprocal-rank fusion (Cormack et al. 2009): score(id) = sum of weight / (k + rank), rank
    from 1.

    Returns (id, score), best first. The score is divided by that of an id that leads every list, so it lies
    in (0, 1]. Equal scores are ordered by best rank, then as first seen. Raises ValueError for a negative
    weight.
    """
    if any(weights[name] < 0 for name in rankings):
        raise ValueError("a fusion weight is negative")
    scores: dict[K, float] = {}
    best: dict[K, int] = {}
    for name, ranking in rankings.items():
        if weights[name] == 0:
            continue
        for rank, key in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + weights[name] / (k + rank)
            best[key] = min(best.get(key, rank), rank)
    top = sum(weights[name] for name in rankings) / (k + 1)
    return sorted(
        ((key, score / top) for key, score in scores.items()), key=lambda item: (-item[1], best[item[0]])
    )


FLOOR = 0.4
"""The best document's match is scaled to 1, but never one below this: what holds a tenth of the words stays little."""
PER_DEVIATION = 0.12
"""What a standard deviation of cosine above the background counts, beside 1 for the best keyword match."""


def fuse_scores(
    matches: Sequence[tuple[Mapping[K, float], float]], nearness: Sequence[tuple[Mapping[K, float], float]]
) -> dict[K, float]:
    """id -> score, best first: weighted sum of keyword matches and of nearness in meaning.

    matches: (id -> share of the question matched, in [0, 1]; weight) of each keyword list; nearness: (id -> standard
    deviations of cosine above the background; weight) of each vector list. Scores lie in [0, 1] but for a very far
    outlier, which is cut. Ranks know nothing of distances: fusing ranks (`fuse_ranks`) lost against keyword search
    alone wherever that was much the better list; this did on none of eleven collections.
    """
    total = sum(weight for _, weight in (*matches, *nearness))
    scores: dict[K, float] = {}
    for match, weight in matches:
        top = max(max(match.values(), default=0.0), FLOOR)
        for key, share in match.items():
            scores[key] = scores.get(key, 0.0) + weight * share / top
    for near, weight in nearness:
        for key, deviations in near.items():
            scores[key] = scores.get(key, 0.0) + weight * PER_DEVIATION * max(deviations, 0.0)
    scaled = {key: min(score / max(total, 1e-9), 1.0) for key, score in scores.items()}
    return dict(sorted(scaled.items(), key=lambda item: -item[1]))


def blend(fused: Sequence[float], scores: Sequence[float], weight: float) -> list[float]:
    """(1 - weight) * fused + weight * score, the fused scores divided by their best. Both lie in [0, 1]."""
    top = max(fused, default=0.0) or 1.0
    return [(1 - weight) * f / top + weight * float(s) for f, s in zip(fused, scores, strict=True)]
