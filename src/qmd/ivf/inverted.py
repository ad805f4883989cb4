"""Inverted files: rows in lists by nearest centroid; a query reads only the nearest lists."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from qmd.ivf import cost, operators, tiles, workers
from qmd.ivf.base import Index
from qmd.ivf.codec import Codec
from qmd.ivf.flat import IndexFlat
from qmd.ivf.grouped import scan_grouped
from qmd.ivf.kmeans import assign, kmeans
from qmd.ivf.lists import Lists
from qmd.ivf.metric import Array, as_rows, give_back
from qmd.ivf.operators import row_products, smallest
from qmd.ivf.params import SearchParams, list_limits
from qmd.ivf.product import AnyCodec
from qmd.ivf.ranges import range_scan
from qmd.ivf.scan import ONE_BY_ONE, Probes, RowSource, scan_all, scan_each
from qmd.ivf.single import AtOnce
from qmd.ivf.slabs import Codes

_guard = threading.Lock()
_SHADOW_ROWS = 20_000
_BY_ITSELF = 16  # so few queries are not worth the handing over
_SHADOW_TASKS = 12.0  # mean queries of a list
_DEFAULT = SearchParams()
SearchMode = Literal["auto", "matrix", "csr"]


class IndexIVF(Index):
    """Common to all inverted files. `nprobe`, `max_codes` and `search_mode` may be set at any time.

    search_mode: "csr" groups queries by list, "matrix" goes query by query, "auto" takes the cheaper by a
    cost model measured on this device. Setting auto_search_avg_group_threshold replaces the model by the rule
    nq * nprobe / nlist >= threshold * nlist / 512.
    shadow: whether small batches read int8 shadows of float32 rows first (a quarter of the bytes; answers stay
    exact, since every query that their error leaves open is asked again; memory 1.25 times). None: where a
    measurement says that it pays, from 20,000 rows on, made at the first small batch; never for mapped files.
    """

    def __init__(
        self,
        codec: AnyCodec,
        nlist: int,
        nprobe: int,
        metric: object,
        device: torch.device | str | None,
        by_residual: bool,
        seed: int,
        balance: float,
        niter: int,
    ) -> None:
        super().__init__(codec, metric, nlist, device, by_residual=by_residual)
        self.nlist, self.nprobe = int(nlist), int(nprobe)
        self.max_codes = 0
        self.search_mode: SearchMode = "auto"
        self.seed, self.balance, self.niter = seed, balance, niter
        self.is_trained = False
        self.centroids = torch.zeros(0, self.d, device=self.device)
        self.last_search_stats: dict[str, Any] | None = None
        self._threshold: float | None = None
        self._ordered = "none"
        self._bias: tuple[Tensor, Tensor] | None = None  # the centroids that it is of, and their norms
        self.shadow: bool | None = None
        self._sizes_together: Tensor | None = None  # (nlist,) where other processes hold some of the lists

    @property
    def auto_search_avg_group_threshold(self) -> float:
        return 8.0 if self._threshold is None else self._threshold

    @auto_search_avg_group_threshold.setter
    def auto_search_avg_group_threshold(self, value: float | None) -> None:
        self._threshold = None if value is None else float(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "nprobe" and (not isinstance(value, int) or value < 1):
            raise ValueError(f"nprobe is {value!r}; expected an integer of at least 1.")
        if name == "max_codes":
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise ValueError(f"max_codes is {value!r}; expected 0 (no bound) or a larger integer.")
            value = int(value)
        if name == "search_mode" and value not in ("auto", "matrix", "csr"):
            raise ValueError(f"search_mode is {value!r}; expected auto, matrix or csr.")
        super().__setattr__(name, value)

    @property
    def by_residual(self) -> bool:
        return self._by_residual

    @property
    def list_sizes(self) -> Tensor:
        """(nlist,) int64 on the CPU."""
        return torch.from_numpy(self._lists.table().sizes.copy())

    @property
    def imbalance(self) -> float:
        """nlist * sum of squared list shares: 1 when all lists are equal (Faiss's imbalance factor)."""
        sizes = self.list_sizes.double()
        total = float(sizes.sum())
        return float(self.nlist * (sizes / total).square().sum()) if total else 1.0

    def _centroids(self) -> Tensor | None:
        return self.centroids if self._by_residual else None

    def to(self, device: torch.device | str) -> Self:
        self.centroids = self.centroids.to(device)
        return super().to(device)

    def train(self, x: Array) -> None:
        """Learn the centroids (and what the codes need) from x (n, d), n >= nlist. Refused once rows are
        in."""
        if self.ntotal:
            raise ValueError(f"the index holds {self.ntotal} rows; call reset() before train.")
        rows = as_rows(x, self.d, self.device, what="training data")
        if rows.shape[0] < self.nlist:
            raise ValueError(
                f"training data has {rows.shape[0]} rows; nlist={self.nlist} needs at least as many."
            )
        self._offset = None
        self._learn_offset(rows)
        rows = self._shift(rows)
        self.centroids = kmeans(
            rows, self.nlist, metric=self.metric, seed=self.seed, balance=self.balance, niter=self.niter
        )
        self._train_codes(rows)

    def train_codes(self, x: Array) -> None:
        """Learn what the codes need from x (n, d), with the centroids as they are (see `set_centroids`)."""
        if self.ntotal or not self.centroids.shape[0]:
            raise ValueError("expected an empty index that has centroids; call set_centroids or train first.")
        self._train_codes(self._shift(as_rows(x, self.d, self.device, what="training data")))

    def _train_codes(self, rows: Tensor) -> None:
        if self._lists.codec.learns:
            if self._by_residual:
                rows = rows[: max(1 << 16, self.nlist)]
                rows = rows - self.centroids[self._assign(rows)]
            self._lists.codec.train(rows, self.seed)
        self.is_trained = True

    def adopt(self, other: Index) -> None:
        super().adopt(other)
        assert isinstance(other, IndexIVF)
        self.centroids = other.centroids.to(self.device, copy=True)

    def set_centroids(self, centroids: Array) -> None:
        """Use given centroids (nlist, d) instead of training ; codes that learn from rows still want train_codes."""
        rows = as_rows(centroids, self.d, self.device, what="centroids")
        if rows.shape[0] != self.nlist or self.ntotal:
            raise ValueError(
                f"expected {self.nlist} centroids and an empty index; got {rows.shape[0]}, {self.ntotal}."
            )
        self._offset, self.centroids = None, rows.clone()
        self.is_trained = not self._lists.codec.learns

    def _assign(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:  # a row by itself: what does not depend on it is kept
            return self._list_scores(x).argmin(1)
        return assign(x, self.centroids, self.metric)[0]

    def _centroid_norms(self) -> Tensor:
        """(nlist,); 0 for inner products."""
        c = self.centroids
        if self._bias is None or self._bias[0] is not c:
            self._bias = c, (c * c).sum(1) if self.metric == "l2" else c.new_zeros(c.shape[0])
        return self._bias[1]

    def _list_scores(self, q: Tensor) -> Tensor:
        """Of each query with every centroid: (n, nlist). L2: squared distance less ||q||^2; IP: -product."""
        c, bias = self.centroids, self._centroid_norms()
        alpha = -2.0 if self.metric == "l2" else -1.0
        if q.shape[0] == 1:
            return torch.add(bias, row_products(c, q[0]), alpha=alpha)[None]
        return torch.addmm(bias, q, c.T, alpha=alpha)

    def _coarse(self, q: Tensor, nprobe: int) -> tuple[Tensor, Tensor]:
        """Nearest lists of each query, nearest first: scores (n, p) (L2: squared distance less ||q||^2; IP:
        -product), lists."""
        s = self._list_scores(q)
        some = min(nprobe, self.nlist)
        if s.device.type != "cpu" or s.shape[0] <= 16:
            value, lists = torch.topk(s, some, dim=1, largest=False)
            return value, lists
        value, lists = smallest(s, some)  # choosing first leaves less to sort
        value, order = torch.sort(value, dim=1)
        return value, torch.gather(lists, 1, order)

    def rebuild_lists(self, *, ordering: str = "residual_norm_asc") -> None:
        """Sort every list by distance to its centroid, so that a prefix holds its most typical rows."""
        if ordering != "residual_norm_asc":
            raise ValueError(f"ordering is {ordering!r}; expected 'residual_norm_asc'.")
        base = self.centroids

        def key(list_no: int, rows: Tensor) -> Tensor:
            return (rows if self._by_residual else rows - base[list_no]).square().sum(1)

        self._lists = self._lists.sorted(key)
        self._ordered, self._dirty = ordering, False

    def _ready(self, params: SearchParams) -> Lists:
        if params.ordering(self.metric) != "none" and (self._dirty or self._ordered == "none"):
            with _guard:
                if self._dirty or self._ordered == "none":
                    self.rebuild_lists()
        return self._lists

    def _probes(self, held: Lists, q: Tensor, params: SearchParams) -> Probes:
        nprobe = params.nprobe or self.nprobe
        if q.shape[0] <= _BY_ITSELF:
            score, lists = self._coarse(q, nprobe)
        else:
            score, lists = workers.share_rows(lambda cut: self._coarse(q[cut], nprobe), q.shape[0])
        max_codes = self.max_codes if params.max_codes is None else params.max_codes
        limits = None
        if max_codes or params.budget:
            if self.metric == "l2":
                score = score + (q * q).sum(1, keepdim=True)
            together = self._sizes_together
            sizes = (held.table().on_device["sizes"] if together is None else together)[lists]
            limits = list_limits(params, score, sizes, max_codes, self.metric)
        return Probes(lists, score if self._by_residual else None, limits, self._centroids())

    def _filtered(self, lists: Lists, probes: Probes, selector: Any, params: SearchParams) -> Probes | Tensor:
        """Probes with excluded rows' norms at inf, or all allowed addresses when they are few."""
        table = lists.table()
        n, p = probes.lists.shape
        few = params.exact_below is None and n * p * 4 < self.nlist and not tiles.wanted(self.device)
        if few:  # look at ids of the probed lists alone
            norms = [torch.full_like(s.norms, float("inf")) for s in lists.slabs]
            for list_no in torch.unique(probes.lists).tolist():
                for r in range(int(table.first[list_no]), int(table.first[list_no] + table.runs[list_no])):
                    slab = table.views[r][2]
                    start = int(table.start[r]) - lists.slabs[slab].base
                    span = slice(start, start + int(table.size[r]))
                    keep = selector.mask(lists.slabs[slab].ids[span])
                    norms[slab][span] = torch.where(keep, lists.slabs[slab].norms[span], float("inf"))
            return replace(probes, norms=norms)
        masks = [selector.mask(s.ids) & (s.ids >= 0) for s in lists.slabs]
        total = sum(int(m.sum()) for m in masks)
        bound = self.ntotal * p // self.nlist if params.exact_below is None else params.exact_below
        if total <= bound:
            return torch.cat(
                [m.nonzero().reshape(-1) + s.base for m, s in zip(masks, lists.slabs, strict=True)]
            )
        norms = [torch.where(m, s.norms, float("inf")) for m, s in zip(masks, lists.slabs, strict=True)]
        return replace(probes, norms=norms)

    def _search(
        self,
        lists: Lists,
        q: Tensor,
        k: int,
        params: SearchParams,
        selector: Any,
        source: RowSource | None = None,
    ) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():  # its small calls cost less
            if q.shape[0] <= _BY_ITSELF:
                found = self._find(lists, q, k, params, selector, source)
            else:
                found = workers.lead(lambda: self._find(lists, q, k, params, selector, source), self.device)
        return found[0].clone(), found[1].clone()

    def _find(
        self, lists: Lists, q: Tensor, k: int, params: SearchParams, selector: Any, source: RowSource | None
    ) -> tuple[Tensor, Tensor]:
        probes = replace(self._probes(lists, q, params), source=source)
        if selector is not None and lists.ntotal:
            filtered = self._filtered(lists, probes, selector, params)
            if isinstance(filtered, Tensor):
                return scan_all(lists, q, filtered, k, self.metric, probes)
            probes = filtered
        grouped = self._use_grouped(q.shape[0], probes.lists.shape[1], params)
        if params.debug_stats:
            sizes = lists.table().on_device["sizes"][probes.lists]
            read = sizes if probes.limits is None else torch.minimum(sizes, probes.limits)
            self.last_search_stats = {
                "search_mode": "csr" if grouped else "matrix",
                "candidates_per_query": float(read.sum(1).double().mean()) if q.shape[0] else 0.0,
                "nprobe": probes.lists.shape[1],
                "list_ordering": params.ordering(self.metric),
            }
        if grouped:
            return scan_grouped(lists, q, probes, k, self.metric)
        codes = self._codes(lists, q.shape[0], probes.lists.shape[1])
        return scan_each(lists, q, probes, k, self.metric, codes)

    def search(
        self, q: Array, k: int, params: SearchParams | None = None, *, filter: Any = None
    ) -> tuple[Any, Any]:
        if params is None and filter is None and k >= 1 and (plan := self._at_once(q)) is not None:
            found = plan.search(q, self.nprobe, int(k), int(k))
            if found is not None:
                d, i = give_back(q, *found)
                return d, i
        return super().search(q, k, params, filter=filter)

    def _at_once(self, q: Array, rows: Tensor | None = None) -> AtOnce | None:
        """What finds a few queries' nearest rows in one call, where these lists, codes and settings allow it. rows: of
        float32 by id, which decide instead of the stored ones."""
        n = len(q) if getattr(q, "ndim", 0) == 2 else 0
        if not 0 < n <= ONE_BY_ONE or self.device.type != "cpu" or self.max_codes or self._by_residual:
            return None
        if not self.ntotal or (rows is None and not self._lists.codec.exact):
            return None
        codes = self._codes(self._lists, n, self.nprobe)
        if codes is None or self._use_grouped(n, min(self.nprobe, self.nlist), _DEFAULT):
            return None
        table = self._lists.table()
        plan = table.at_once
        if not isinstance(plan, AtOnce) or not plan.stands(codes, self.centroids, rows):
            plan = table.at_once = AtOnce.of(
                self._lists, codes, self.centroids, self._centroid_norms(), self._offset, self.metric, rows
            )
        return plan

    def _reads_shadows(self, nq: int, nprobe: int) -> bool:
        """Whether int8 shadows of the rows are read: for batches that visit a list with few queries."""
        lists = self._lists
        if self.shadow is False or not lists.codec.exact or nq * nprobe > _SHADOW_TASKS * self.nlist:
            return False
        if not all(s.writable for s in lists.slabs):
            return False
        if self.shadow:
            return operators.reads_int8(self.device, self.d)
        return self.ntotal >= _SHADOW_ROWS and cost.shadows_pay(self.device, self.d, torch.get_num_threads())

    def _codes(self, lists: Lists, nq: int, nprobe: int) -> Codes | None:
        """int8 rows to be read for few queries, if any."""
        if lists.codec.qtype == "int8":
            return lists.own_codes() if operators.reads_int8(self.device, self.d) else None
        return lists.shadows() if self._reads_shadows(nq, nprobe) else None

    def _use_grouped(self, nq: int, nprobe: int, params: SearchParams) -> bool:
        mode = params.search_mode or self.search_mode
        if mode != "auto":
            return mode == "csr"
        if self._threshold is not None:
            return nq * nprobe / self.nlist >= self._threshold * (self.nlist / 512)
        if tiles.wanted(self.device):
            return True  # as few launches for one query as for many
        if nq <= 1:
            return False
        mean = max(1, self.ntotal // self.nlist)
        rows_log2 = min(max(3, mean.bit_length() - (1 if mean & (mean - 1) == 0 else 0)), 14)
        shadow = self._reads_shadows(nq, nprobe)
        model = cost.measure(self.device, self.d, rows_log2, torch.get_num_threads(), shadow)
        return model.prefers_grouped(nq, nprobe, self.nlist, mean)

    def _range(
        self, lists: Lists, q: Tensor, limit: float, params: SearchParams, selector: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return range_scan(lists, q, self._probes(lists, q, params), limit, self.metric, selector)


class IndexIVFFlat(IndexIVF):
    """Whole float32 rows: exact within the probed lists.

    IndexIVFFlat(d=128, nlist=512, nprobe=32, metric="l2") or, as in Faiss, (quantizer, d, nlist, metric): the
    quantizer is an IndexFlat; one that holds nlist rows gives the centroids. seed, balance, niter: see
    `kmeans`.
    """

    def __init__(
        self,
        quantizer: Any = None,
        *args: Any,
        d: int | None = None,
        nlist: int | None = None,
        nprobe: int = 1,
        metric: object = None,
        device: torch.device | str | None = None,
        seed: int = 1234,
        balance: float = 0.0,
        niter: int = 10,
    ) -> None:
        flat, dims, lists, kind = read_arguments(quantizer, args, d, nlist, metric)
        super().__init__(Codec("fp32", dims), lists, nprobe, kind, device, False, seed, balance, niter)
        use_centroids_of(self, flat)


def read_arguments(
    quantizer: Any, args: tuple[Any, ...], d: int | None, nlist: int | None, metric: object
) -> tuple[IndexFlat | None, int, int, object]:
    """Faiss's (quantizer, d, nlist, metric) or (d, nlist, metric), or keywords."""
    rest = list(args)
    flat: IndexFlat | None = None
    if isinstance(quantizer, Index):
        if not isinstance(quantizer, IndexFlat):
            raise ValueError(f"the quantizer is a {type(quantizer).__name__}; expected an IndexFlat.")
        flat = quantizer
    elif quantizer is not None:
        rest.insert(0, quantizer)
    if rest:
        d = rest.pop(0)
    if rest:
        nlist = rest.pop(0)
    if rest:
        metric = rest.pop(0)
    if rest or d is None or nlist is None:
        raise TypeError("expected (quantizer, d, nlist, metric) or the keywords d=, nlist=, metric=.")
    if metric is None:
        metric = flat.metric if flat is not None else "l2"
    return flat, int(d), int(nlist), metric


def use_centroids_of(index: IndexIVF, flat: IndexFlat | None) -> None:
    """Of a quantizer that holds as many rows as the index has lists."""
    if flat is not None and flat.ntotal == index.nlist:
        index.set_centroids(flat.reconstruct_n())
