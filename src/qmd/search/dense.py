"""Nearest vectors by scanning all of them. Knows rows and their ids; nothing of documents.

Exact scoring always decides. From `PRESCAN_ROWS` rows on, a cheap pass over int8 codes picks the candidates
that are
scored exactly, where `numkong` is installed. Without that package every search scans exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qmd.store.matrix import quantise

numkong: Any
try:
    import numkong
except ImportError:  # an optional accelerator: the exact scan needs nothing
    numkong = None

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Method = Literal["auto", "exact", "int8"]

PRESCAN_ROWS = 20_000
MORE_CANDIDATES = 200
"""Rows scored exactly beyond those wanted: int8 keeps the order but for near-ties."""
SUBSET_SHARE = 0.2
"""Below this share of allowed rows, gathering them is cheaper than scanning all."""


BACKGROUND_ROWS = 512
USUAL = (0.1, 0.09, 24)
"""Mean and deviation of cosines between questions and passages of other subjects, and the number of rows that this
counts for: on an index of two passages there is no background to measure."""


@dataclass(frozen=True, slots=True)
class Background:
    """Mean and standard deviation of a question's cosines with passages at large."""

    mean: float
    deviation: float

    def z(self, cosine: float) -> float:
        """Deviations above the mean."""
        return (cosine - self.mean) / self.deviation


class Scan:
    """A matrix ready to be searched.

    rows: (n, d) float32, L2-normalised, may be memory-mapped; ids: (n,) int64, negative where a row is gone;
    codes: (n, d) int8 and scales: (n,) float32 with rows ~ codes * scales[:, None]; made when needed if not
    given.
    """

    def __init__(
        self,
        rows: Floats,
        ids: Ids,
        codes: NDArray[np.int8] | None = None,
        scales: Floats | None = None,
    ) -> None:
        if rows.ndim != 2 or ids.shape != (rows.shape[0],):
            raise ValueError(f"rows {rows.shape} and ids {ids.shape} do not belong together")
        # Views: picking rows from a memory map itself costs more than from what it maps.
        self.rows = rows.view(np.ndarray)
        self.ids = ids
        self._live = None if rows.shape[0] == 0 or ids.min() >= 0 else ids >= 0
        self._places: tuple[Ids, NDArray[np.intp]] | None = None
        self._codes = None if codes is None or scales is None else (codes.view(np.ndarray), scales)
        self._usual: NDArray[np.intp] | None = None

    def search(
        self, query: Floats, k: int, *, allowed: Ids | None = None, method: Method = "auto"
    ) -> tuple[Ids, Floats]:
        """The k best rows by inner product. query: (d,). Returns ids and scores, best first, equal scores
        by id.

        allowed: only rows with these ids take part; fewer than k rows give fewer results.
        Raises ValueError if d differs.
        """
        n, d = self.rows.shape
        if query.shape != (d,):
            raise ValueError(f"the query has shape {query.shape}, the rows have {d} dimensions")
        query = np.ascontiguousarray(query, dtype=np.float32)
        mask = self.mask(allowed)
        live = n if mask is None else int(mask.sum())
        if live == 0 or k <= 0:
            return self.ids[:0], np.empty(0, np.float32)
        if method == "auto":
            method = "int8" if numkong is not None and n >= PRESCAN_ROWS else "exact"
        if mask is not None and live < n * SUBSET_SHARE:
            places = np.flatnonzero(mask)
        elif method == "exact":
            return self._best(self.rows @ query, k, mask)
        else:
            rough = self._rough_scores(query)
            if mask is not None:
                rough = np.where(mask, rough, -np.inf)
            places = _top(rough, min(k + MORE_CANDIDATES, live))
        return self.best_of(places, query, k)

    def mask(self, allowed: Ids | None) -> NDArray[np.bool_] | None:
        """(n,): which rows take part; None for all."""
        return self._live if allowed is None else np.isin(self.ids, allowed)

    def best_of(self, places: NDArray[np.intp], query: Floats, k: int) -> tuple[Ids, Floats]:
        """The k best of some rows, scored exactly."""
        places = np.sort(places)
        return _ordered(self.ids[places], self.rows[places] @ query, k)

    def score(self, query: Floats, ids: Sequence[int]) -> dict[int, float]:
        """id -> inner product, of those of `ids` that are there."""
        wanted, rows = self._find(ids)
        return dict(zip(wanted.tolist(), (self.rows[rows] @ query).tolist(), strict=True))

    def middle(self, ids: Sequence[int]) -> Floats | None:
        """(d,) unit vector amid the rows of those of `ids` that are there; None where none is."""
        _, rows = self._find(ids)
        if not rows.shape[0]:
            return None
        mean = self.rows[rows].mean(axis=0)
        middle: Floats = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
        return middle

    def _find(self, ids: Sequence[int]) -> tuple[Ids, NDArray[np.intp]]:
        """Those of `ids` that are there, and their rows."""
        if self._places is None:
            order = np.argsort(self.ids, kind="stable")
            self._places = (self.ids[order], order)
        sorted_ids, order = self._places
        wanted = np.asarray(ids, dtype=np.int64)
        if not sorted_ids.shape[0] or not wanted.shape[0]:
            return self.ids[:0], order[:0]
        at = np.minimum(np.searchsorted(sorted_ids, wanted), sorted_ids.shape[0] - 1)
        found = sorted_ids[at] == wanted
        return wanted[found], order[at[found]]

    def background(self, query: Floats, without: Ids | None = None) -> Background:
        """From rows spread evenly over the matrix, those that are gone and `without` left out. That choice is made
        once."""
        if self._usual is None:
            self._usual = self._spread(without)
        mean, deviation, weight = USUAL
        cosines = self.rows[self._usual] @ query
        count = cosines.shape[0]
        centre = (mean * weight + float(cosines.sum())) / (weight + count)
        spread = deviation**2 * weight + float(np.square(cosines - cosines.mean()).sum() if count else 0.0)
        return Background(centre, (spread / (weight + count)) ** 0.5)

    def _spread(self, without: Ids | None) -> NDArray[np.intp]:
        n = self.rows.shape[0]
        if without is None or not without.shape[0]:
            places = np.unique(np.linspace(0, max(n - 1, 0), min(n, BACKGROUND_ROWS)).astype(np.intp))
            return places if self._live is None else places[self._live[places]]
        kept = np.flatnonzero((self.ids >= 0) & ~np.isin(self.ids, without))
        m = kept.shape[0]
        at = np.unique(np.linspace(0, max(m - 1, 0), min(m, BACKGROUND_ROWS)).astype(np.intp))
        return kept[at]

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

    def _rough_scores(self, query: Floats) -> Floats:
        """(n,) scores that order rows nearly as the inner product does; only their order means something."""
        if self._codes is None:
            self._codes = quantise(self.rows)
        codes, scales = self._codes
        query_codes = quantise(query[None])[0][0]
        dots = np.asarray(numkong.dot(codes, query_codes, "int8"))
        rough: Floats = np.multiply(dots, scales, dtype=np.float32, casting="unsafe")
        return rough


def _top(scores: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    n = scores.shape[0]
    return np.argpartition(scores, n - k)[n - k :] if k < n else np.arange(n)


def _ordered(ids: Ids, scores: Floats, k: int) -> tuple[Ids, Floats]:
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]
