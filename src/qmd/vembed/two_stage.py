"""Search in two stages with Matryoshka vectors: few components find candidates, all of them decide."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmd.errors import UsageError


@dataclass(frozen=True, slots=True)
class TwoStageResult:
    """`scores` and `ids` (n, k), best first. `kept` is the share of the exact search's k hits that the two stages
    found too; the three times are those of all n queries."""

    scores: NDArray[np.float32]
    ids: NDArray[np.int64]
    kept: float
    fast_s: float
    precise_s: float
    exact_s: float


def two_stage_search(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    *,
    fast_dim: int,
    k: int = 10,
    candidates: int = 100,
) -> TwoStageResult:
    """queries (n, d) against vectors (m, d), unit rows: the best `candidates` at `fast_dim` components (renormalised),
    of these the best k by the whole vector; beside it one exact search, to say what the short cut lost.

    Equal scores go to the smaller id. Raises UsageError where the sizes do not fit.
    """
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise UsageError(
            f"queries {queries.shape} and vectors {vectors.shape} must be matrices of one width."
        )
    if not 1 <= fast_dim <= vectors.shape[1]:
        raise UsageError(f"fast_dim must be between 1 and {vectors.shape[1]}, not {fast_dim}.")
    if k < 1 or not len(vectors):
        raise UsageError(f"k must be at least 1 and there must be vectors, not k={k} of {len(vectors)}.")
    k = min(k, len(vectors))
    candidates = min(max(candidates, k), len(vectors))

    short = unit_rows(vectors[:, :fast_dim])  # made once, as an index would hold it
    start = time.perf_counter()
    found = nearest(unit_rows(queries[:, :fast_dim]) @ short.T, candidates)  # (n, candidates)
    fast_s = time.perf_counter() - start

    start = time.perf_counter()
    found.sort(axis=1)  # so that ties go to the smaller id
    precise = np.einsum("nd,ncd->nc", queries, vectors[found])
    order = nearest(precise, k)
    ids = np.take_along_axis(found, order, axis=1)
    scores = np.take_along_axis(precise, order, axis=1)
    precise_s = time.perf_counter() - start

    start = time.perf_counter()
    exact = nearest(queries @ vectors.T, k)
    exact_s = time.perf_counter() - start
    kept = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ids, exact, strict=True)]))
    return TwoStageResult(scores, ids, kept, fast_s, precise_s, exact_s)


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def nearest(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """(n, k) columns of the highest scores, best first, smaller columns first among equals."""
    found = np.empty((len(scores), k), dtype=np.int64)
    least = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    for row, (given, limit) in enumerate(zip(scores, least, strict=True)):
        columns = np.flatnonzero(given >= limit)  # k, and all that equal the last of them
        found[row] = columns[np.argsort(-given[columns], kind="stable")[:k]]
    return found
