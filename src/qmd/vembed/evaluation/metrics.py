"""Ranking metrics over a similarity matrix. Ties count against the model.

A row is a query, a column a candidate. `relevant` says which columns are right: None means column i for row i
(one-to-one pairs), a (n,) integer array one right column a row, a (n, m) boolean array any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def compute_recall_at_k(similarities: ArrayLike, k: int, relevant: ArrayLike | None = None) -> float:
    """Share of the right candidates that stand among the first k, averaged over queries.

    similarities: (n, m), higher is nearer. With one right candidate a query this is the usual Recall@k of
    text-image retrieval. A right candidate that ties with a wrong one stands behind it.
    """
    return float(np.mean(recalls_at_k(similarities, k, relevant)))


def recalls_at_k(similarities: ArrayLike, k: int, relevant: ArrayLike | None = None) -> Floats:
    """(n,) the recall of each query, for `bootstrap`."""
    ranks, right = _pessimistic_ranks(similarities, relevant)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    found: Floats = (right & (ranks <= k)).sum(axis=1) / right.sum(axis=1)
    return found


def compute_mrr(similarities: ArrayLike, relevant: ArrayLike | None = None) -> float:
    """Mean reciprocal rank of the first right candidate."""
    return float(np.mean(reciprocal_ranks(similarities, relevant)))


def reciprocal_ranks(similarities: ArrayLike, relevant: ArrayLike | None = None) -> Floats:
    """(n,) 1 / rank of each query's first right candidate."""
    ranks, right = _pessimistic_ranks(similarities, relevant)
    best: Floats = np.where(right, ranks, np.inf).min(axis=1)
    return 1.0 / best


def compute_ndcg_at_k(similarities: ArrayLike, k: int, relevant: ArrayLike | None = None) -> float:
    """Normalised discounted cumulative gain with binary gains (Jarvelin and Kekalainen 2002)."""
    ranks, right = _pessimistic_ranks(similarities, relevant)
    gains = np.where(right & (ranks <= k), 1.0 / np.log2(ranks + 1.0), 0.0).sum(axis=1)
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))
    return float(np.mean(gains / ideal[np.minimum(right.sum(axis=1), k) - 1]))


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(
    per_query: ArrayLike,
    *,
    seed: int = 0,
) -> Interval:
    """Mean of a per-query figure, (n,), with its 95% interval by percentile bootstrap over queries (Efron 1979)."""
    values = np.asarray(per_query, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected one figure a query, got shape {values.shape}")
    draws = np.random.default_rng(seed).integers(0, len(values), (1000, len(values)))
    low, high = np.quantile([values[draw].mean() for draw in draws], [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def _pessimistic_ranks(
    similarities: ArrayLike, relevant: ArrayLike | None
) -> tuple[NDArray[np.int64], Bools]:
    """(n, m) rank of every candidate from 1, wrong ones first among equals; (n, m) which are right."""
    scores = np.asarray(similarities)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"similarities must be (queries, candidates), got shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError("similarities contain NaN")
    right = _right_columns(relevant, *scores.shape)
    order = np.lexsort((right, -scores.astype(np.float64)), axis=1)
    ranks = np.empty(scores.shape, dtype=np.int64)
    np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None, :], axis=1)
    return ranks, right


def _right_columns(relevant: ArrayLike | None, n: int, m: int) -> Bools:
    if relevant is None:
        if m < n:
            raise ValueError(f"one-to-one pairs need at least as many candidates as queries, got {n} x {m}")
        return np.eye(n, m, dtype=np.bool_)
    given = np.asarray(relevant)
    if given.dtype == np.bool_ and given.shape == (n, m):
        if not given.any(axis=1).all():
            raise ValueError("every query needs at least one right candidate")
        return given
    if given.shape == (n,) and np.issubdtype(given.dtype, np.integer):
        if given.min() < 0 or given.max() >= m:
            raise ValueError(f"relevant names columns outside 0..{m - 1}")
        right = np.zeros((n, m), dtype=np.bool_)
        right[np.arange(n), given] = True
        return right
    raise ValueError(
        f"relevant must be None, ({n},) integers or ({n}, {m}) booleans, got shape {given.shape}"
    )
