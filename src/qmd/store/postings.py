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

    All of it belongs to one state of the index, `generation`, and is dropped with it. What was given out stays whole.
    """

    def __init__(self) -> None:
        self._state: tuple[int, OrderedDict[str, Kept]] = (-1, OrderedDict())
        self._size = 0
        self._guard = threading.Lock()

    def get(self, expression: str, generation: int) -> Kept | None:
        """None where it is not kept. Waits for nobody."""
        state, kept = self._state
        return kept.get(expression) if state == generation else None

    def take(self, expressions: Iterable[str], generation: int, read: Callable[[str], Kept]) -> list[Kept]:
        """Postings of each expression; `read` gives those of one that is not kept."""
        with self._guard:
            if generation != self._state[0]:
                self._state, self._size = (generation, OrderedDict()), 0
            kept = self._state[1]
            taken = []
            for expression in expressions:
                found = kept.get(expression)
                if found is None:
                    kept[expression] = found = read(expression)
                    self._size += found[0].shape[0]
                kept.move_to_end(expression)
                taken.append(found)
            while self._size > KEPT_POSTINGS and len(kept) > 1:
                self._size -= kept.popitem(last=False)[1][0].shape[0]
            return taken

    def newest(self, generation: int) -> list[tuple[str, Kept]]:
        """All that is kept of this state, what was asked for last first."""
        with self._guard:
            state, kept = self._state
            return list(reversed(kept.items())) if state == generation else []


def among(kept: Kept, ids: Sequence[int] | Ids) -> Scores:
    """(n, 3): chunk id, BM25, BM25 of the body of those of `ids` that the postings hold."""
    have, scores, bodies = kept
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
