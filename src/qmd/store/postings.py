"""Postings of words that were asked for, kept in memory with their scores. Exact: the sum is what FTS5 gives."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

KEPT_POSTINGS = 3_000_000
"""20 bytes each: 60 MB. The words that were not asked for longest go first."""
DENSE_IDS = 4_000_000

Ids = NDArray[np.int64]
Scores = NDArray[np.float64]
Rows = Sequence[tuple[int, float, float]]
Kept = tuple[Ids, Scores, NDArray[np.float32]]


class Postings:
    """expression -> (chunk ids, rising; BM25 of that expression alone; the same of the body alone). BM25 of several is
    the sum.

    All of it belongs to one state of the index, `generation`, and is dropped with it.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._generation = -1
        self._size = 0
        self._guard = threading.Lock()

    def holds(self, expressions: Iterable[str], generation: int) -> bool:
        return generation == self._generation and all(e in self._kept for e in expressions)

    def take(
        self, expressions: Sequence[str], generation: int, read: Callable[[str], Kept]
    ) -> list[tuple[Ids, Scores]]:
        """Postings of each expression; `read` gives those of one that is not kept."""
        with self._guard:
            if generation != self._generation:
                self._kept.clear()
                self._generation, self._size = generation, 0
            taken = []
            for expression in expressions:
                found = self._kept.get(expression)
                if found is None:
                    self._kept[expression] = found = read(expression)
                    self._size += found[0].shape[0]
                self._kept.move_to_end(expression)
                taken.append(found[:2])
            while self._size > KEPT_POSTINGS and len(self._kept) > 1:
                self._size -= self._kept.popitem(last=False)[1][0].shape[0]
            return taken

    def newest(self, generation: int) -> list[tuple[str, Kept]]:
        """All that is kept of this state, what was asked for last first."""
        with self._guard:
            return list(reversed(self._kept.items())) if generation == self._generation else []

    def ids(self, expression: str) -> Ids:
        return self._kept[expression][0]

    def among(self, expression: str, ids: Sequence[int] | Ids) -> Scores:
        """(n, 3): chunk id, BM25, BM25 of the body of those of `ids` that the expression, which is kept, is in."""
        have, scores, bodies = self._kept[expression]
        wanted = np.asarray(ids, dtype=np.int64)
        if not have.shape[0] or not wanted.shape[0]:
            return np.zeros((0, 3))
        place = np.minimum(np.searchsorted(have, wanted), have.shape[0] - 1)
        place = place[have[place] == wanted]
        return np.column_stack((have[place], scores[place], bodies[place]))


def as_arrays(rows: Rows) -> Kept:
    """(chunk id, BM25, BM25 of the body) of each row, as arrays."""
    return (
        np.fromiter((row[0] for row in rows), np.int64, len(rows)),
        np.fromiter((row[1] for row in rows), np.float64, len(rows)),
        np.fromiter((row[2] for row in rows), np.float32, len(rows)),
    )


def add_up(lists: Sequence[tuple[Ids, Scores]]) -> tuple[Ids, Scores]:
    """Ids in any of the lists, rising, with the sum of their scores (all above 0)."""
    highest = max((int(ids[-1]) for ids, _ in lists if ids.shape[0]), default=-1)
    if highest < DENSE_IDS:
        sums = np.zeros(highest + 1)
        for ids, scores in lists:
            sums[ids] += scores
        ids = np.flatnonzero(sums)
        return ids, sums[ids]
    unique, place = np.unique(np.concatenate([ids for ids, _ in lists]), return_inverse=True)
    total: Scores = np.zeros(unique.shape[0])
    np.add.at(total, place, np.concatenate([scores for _, scores in lists]))
    return unique, total


def meet(lists: Sequence[tuple[Ids, Scores]]) -> tuple[Ids, Scores]:
    """Ids in all of the lists, rising, with the sum of their scores."""
    (ids, sums), *others = sorted(lists, key=lambda item: item[0].shape[0])
    for other, scores in others:
        if not ids.shape[0]:
            break
        place = np.minimum(np.searchsorted(other, ids), other.shape[0] - 1)
        same = other[place] == ids
        ids, sums = ids[same], sums[same] + scores[place[same]]
    return ids, sums


def best(ids: Ids, scores: Scores, limit: int) -> list[tuple[int, float]]:
    """The `limit` highest scores, best first; equal scores by id."""
    if ids.shape[0] > limit:
        worst = np.partition(scores, ids.shape[0] - limit)[ids.shape[0] - limit]
        chosen = scores >= worst
        ids, scores = ids[chosen], scores[chosen]
    order = np.lexsort((ids, -scores))[:limit]
    return list(zip(ids[order].tolist(), scores[order].tolist(), strict=True))
