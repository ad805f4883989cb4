"""Nearest vectors by scanning all of them. Knows rows and their ids; nothing of documents.

Exact scoring always decides. From `PRESCAN_ROWS` rows on, and from the second search over the same matrix (a single
search would not earn back the preparation), a cheap pass over small codes picks the candidates that are scored
exactly: int8 codes and `numkong` kernels. Without that package every search scans exactly.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

try:
    import numkong
except ImportError:  # an optional accelerator: the exact scan needs nothing
    numkong = None

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Method = Literal["auto", "exact", "int8"]

PRESCAN_ROWS = 20_000
CANDIDATES_PER_HIT = 8
LEAST_CANDIDATES = 200
"""Rows rescored exactly: int8 keeps the order but for near-ties."""
SUBSET_SHARE = 0.2
"""Below this share of allowed rows, gathering them is cheaper than scanning all."""


class Scan:
    """A matrix ready to be searched. rows: (n, d) float32, L2-normalised, may be memory-mapped; ids: (n,) int64."""

    def __init__(self, rows: Floats, ids: Ids) -> None:
        if rows.ndim != 2 or ids.shape != (rows.shape[0],):
            raise ValueError(f"rows {rows.shape} and ids {ids.shape} do not belong together")
        self.rows = rows
        self.ids = ids
        self.searches = 0
        self._codes: NDArray[np.int8] | None = None

    def search(
        self, query: Floats, k: int, *, allowed: Ids | None = None, method: Method = "auto"
    ) -> tuple[Ids, Floats]:
        """The k best rows by inner product. query: (d,). Returns ids and scores, best first, equal scores by id.

        allowed: only rows with these ids take part; fewer than k rows give fewer results.
        Raises ValueError if d differs.
        """
        n, d = self.rows.shape
        if query.shape != (d,):
            raise ValueError(f"the query has shape {query.shape}, the rows have {d} dimensions")
        query = np.ascontiguousarray(query, dtype=np.float32)
        mask = None if allowed is None else np.isin(self.ids, allowed)
        live = n if mask is None else int(mask.sum())
        if live == 0 or k <= 0:
            return self.ids[:0], np.empty(0, np.float32)
        if method == "auto":
            method = self._choose(n)
        self.searches += 1
        if mask is not None and live < n * SUBSET_SHARE:
            places = np.flatnonzero(mask)
        elif method == "exact":
            return self._best(self.rows @ query, k, mask)
        else:
            rough = self._rough_scores(query)
            if mask is not None:
                rough = np.where(mask, rough, -np.inf)
            places = _top(rough, min(max(k * CANDIDATES_PER_HIT, LEAST_CANDIDATES), live))
        scores = self.rows[np.sort(places)] @ query
        return _ordered(self.ids[np.sort(places)], scores, k)

    def _choose(self, n: int) -> Method:
        if n < PRESCAN_ROWS or self.searches == 0:
            return "exact"
        return "exact" if numkong is None else "int8"

    def _best(self, scores: Floats, k: int, mask: NDArray[np.bool_] | None) -> tuple[Ids, Floats]:
        live = scores.shape[0]
        if mask is not None:
            scores = np.where(mask, scores, np.float32(-np.inf))
            live = int(mask.sum())
        places = _top(scores, min(k, live))
        # Rows that tie with the last one are let in before the ids decide.
        worst = scores[places].min()
        tied = np.flatnonzero(scores == worst)
        if tied.shape[0] > 1:
            places = np.union1d(places, tied)
        return _ordered(self.ids[places], scores[places], k)

    def _rough_scores(self, query: Floats) -> NDArray[np.float64]:
        """(n,) scores that order rows nearly as the inner product does; only their order means something."""
        if self._codes is None:
            self._codes = _int8(self.rows)
        return np.asarray(numkong.dot(self._codes, _int8(query[None])[0], "int8"), dtype=np.float64)


def _top(scores: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    n = scores.shape[0]
    return np.argpartition(scores, n - k)[n - k :] if k < n else np.arange(n)


def _ordered(ids: Ids, scores: Floats, k: int) -> tuple[Ids, Floats]:
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def _int8(rows: Floats) -> NDArray[np.int8]:
    """One scale for all rows, so that products compare: 1/sqrt(d) is a unit row's typical value, 4.5 of it clips rarely."""
    codes = np.empty(rows.shape, np.int8)
    scale = np.float32(127 * np.sqrt(rows.shape[1]) / 4.5)
    for start in range(0, rows.shape[0], 8192):
        block = np.rint(rows[start : start + 8192] * scale)
        codes[start : start + 8192] = np.clip(block, -127, 127)
    return codes
