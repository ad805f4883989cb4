"""Inverted files: rows in lists by nearest centroid; a query reads only the nearest lists."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor

from qmd.ivf import cost
from qmd.ivf.base import Index
from qmd.ivf.codec import QType
from qmd.ivf.flat import IndexFlat
from qmd.ivf.grouped import scan_grouped
from qmd.ivf.kmeans import assign, kmeans
from qmd.ivf.lists import Lists
from qmd.ivf.metric import Array, Metric, as_rows, exact_scores
from qmd.ivf.operators import stable_order
from qmd.ivf.params import SearchParams, list_limits
from qmd.ivf.scan import Probes, expand, rows_at, scan_all, scan_each

_SHADOW_ROWS = 20_000
_SHADOW_TASKS = 12.0  # mean queries of a list
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
        d: int,
        nlist: int,
        nprobe: int,
        metric: object,
        qtype: QType,
        device: torch.device | str | None,
        by_residual: bool,
        seed: int,
        balance: float,
        niter: int,
    ) -> None:
        super().__init__(d, metric, nlist, qtype, device, by_residual=by_residual)
        self.nlist, self.nprobe = int(nlist), int(nprobe)
        self.max_codes = 0
        self.search_mode: SearchMode = "auto"
        self.seed, self.balance, self.niter = seed, balance, niter
        self.is_trained = False
        self.centroids = torch.zeros(0, d, device=self.device)
        self.last_search_stats: dict[str, Any] | None = None
        self._threshold: float | None = None
        self._ordered = "none"
        self._bias: tuple[Tensor, Tensor] | None = None  # the centroids that it is of, and their norms
        self.shadow: bool | None = None

    @property
    def auto_search_avg_group_threshold(self) -> float:
        return 8.0 if self._threshold is None else self._threshold

    @auto_search_avg_group_threshold.setter
    def auto_search_avg_group_threshold(self, value: float | None) -> None:
        self._threshold = None if value is None else float(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "nprobe" and (not isinstance(value, int) or value < 1):
            raise ValueError(f"nprobe is {value!r}; expected an integer of at least 1.")
        if name == "max_codes" and value < 0:
            raise ValueError(f"max_codes is {value}; expected 0 (no bound) or more.")
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
        """Learn the centroids (and an int8 codec's ranges) from x (n, d), n >= nlist. Refused once rows are
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
        if self._lists.codec.qtype == "int8":
            if self._by_residual:
                sample = rows[: max(1 << 16, self.nlist)]
                rows = sample - self.centroids[self._assign(sample)]
            self._lists.codec.train(rows)
        self.is_trained = True

    def adopt(self, other: Index) -> None:
        super().adopt(other)
        assert isinstance(other, IndexIVF)
        self.centroids = other.centroids.to(self.device)

    def set_centroids(self, centroids: Array) -> None:
        """Use given centroids (nlist, d) instead of training (fp32, fp16 and bf16 rows only)."""
        rows = as_rows(centroids, self.d, self.device, what="centroids")
        if rows.shape[0] != self.nlist or self.ntotal:
            raise ValueError(
                f"expected {self.nlist} centroids and an empty index; got {rows.shape[0]}, {self.ntotal}."
            )
        self._offset, self.centroids = None, rows.clone()
        self.is_trained = self._lists.codec.qtype != "int8"

    def _assign(self, x: Tensor) -> Tensor:
        return assign(x, self.centroids, self.metric)[0]

    def _coarse(self, q: Tensor, nprobe: int) -> tuple[Tensor, Tensor]:
        """Nearest lists of each query, nearest first: scores (n, p) (L2: squared distance less ||q||^2; IP:
        -product), lists."""
        c = self.centroids
        if self._bias is None or self._bias[0] is not c:
            self._bias = c, (c * c).sum(1) if self.metric == "l2" else c.new_zeros(c.shape[0])
        s = torch.addmm(self._bias[1], q, c.T, alpha=-2.0 if self.metric == "l2" else -1.0)
        value, lists = torch.topk(s, min(nprobe, self.nlist), dim=1, largest=False)
        return value, lists

    def rebuild_lists(self, *, ordering: str = "residual_norm_asc") -> None:
        """Sort every list by distance to its centroid, so that a prefix holds its most typical rows."""
        if ordering != "residual_norm_asc":
            raise ValueError(f"ordering is {ordering!r}; expected 'residual_norm_asc'.")
        base = self.centroids

        def key(list_no: int, rows: Tensor) -> Tensor:
            return (rows if self._by_residual else rows - base[list_no]).square().sum(1)

        self._lists.reorder(key)
        self._ordered, self._dirty = ordering, False

    def _probes(self, q: Tensor, params: SearchParams) -> Probes:
        nprobe = params.nprobe or self.nprobe
        if params.ordering(self.metric) != "none" and (self._dirty or self._ordered == "none"):
            self.rebuild_lists()
        score, lists = self._coarse(q, nprobe)
        max_codes = self.max_codes if params.max_codes is None else params.max_codes
        limits = None
        if max_codes or params.budget:
            if self.metric == "l2":
                score = score + (q * q).sum(1, keepdim=True)
            sizes = self._lists.table().on_device["sizes"][lists]
            limits = list_limits(params, score, sizes, max_codes, self.metric)
        return Probes(lists, score if self._by_residual else None, limits, self._centroids())

    def _filtered(self, probes: Probes, selector: Any, params: SearchParams) -> Probes | Tensor:
        """Probes with excluded rows' norms at inf, or all allowed addresses when they are few."""
        lists = self._lists
        table = lists.table()
        n, p = probes.lists.shape
        few = n * p * 4 < self.nlist
        norms = []
        total = 0
        if few:  # look at ids of the probed lists alone
            norms = [torch.full_like(s.norms, float("inf")) for s in lists.slabs]
            for list_no in torch.unique(probes.lists).tolist():
                for r in range(int(table.first[list_no]), int(table.first[list_no] + table.runs[list_no])):
                    slab = table.views[r][2]
                    start = int(table.start[r]) - lists.slabs[slab].base
                    span = slice(start, start + int(table.size[r]))
                    keep = selector.mask(lists.slabs[slab].ids[span])
                    norms[slab][span] = torch.where(keep, lists.slabs[slab].norms[span], float("inf"))
            return Probes(probes.lists, probes.const, probes.limits, probes.centroids, norms)
        masks = [selector.mask(s.ids) & (s.ids >= 0) for s in lists.slabs]
        total = sum(int(m.sum()) for m in masks)
        bound = self.ntotal * p // self.nlist if params.exact_below is None else params.exact_below
        if total <= bound:
            return torch.cat(
                [m.nonzero().reshape(-1) + s.base for m, s in zip(masks, lists.slabs, strict=True)]
            )
        norms = [torch.where(m, s.norms, float("inf")) for m, s in zip(masks, lists.slabs, strict=True)]
        return Probes(probes.lists, probes.const, probes.limits, probes.centroids, norms)

    def _search(self, q: Tensor, k: int, params: SearchParams, selector: Any) -> tuple[Tensor, Tensor]:
        probes = self._probes(q, params)
        if selector is not None and self.ntotal:
            filtered = self._filtered(probes, selector, params)
            if isinstance(filtered, Tensor):
                return scan_all(self._lists, q, filtered, k, self.metric, probes)
            probes = filtered
        grouped = self._use_grouped(q.shape[0], probes.lists.shape[1], params)
        if params.debug_stats:
            sizes = self._lists.table().on_device["sizes"][probes.lists]
            read = sizes if probes.limits is None else torch.minimum(sizes, probes.limits)
            self.last_search_stats = {
                "search_mode": "csr" if grouped else "matrix",
                "candidates_per_query": float(read.sum(1).double().mean()) if q.shape[0] else 0.0,
                "nprobe": probes.lists.shape[1],
                "list_ordering": params.ordering(self.metric),
            }
        if grouped:
            return scan_grouped(self._lists, q, probes, k, self.metric)
        codes = self._lists.shadows() if self._reads_shadows(q.shape[0], probes.lists.shape[1]) else None
        return scan_each(self._lists, q, probes, k, self.metric, codes)

    def _reads_shadows(self, nq: int, nprobe: int) -> bool:
        """Whether int8 shadows of the rows are read: for batches that visit a list with few queries."""
        lists = self._lists
        if self.shadow is False or not lists.codec.exact or nq * nprobe > _SHADOW_TASKS * self.nlist:
            return False
        if not all(s.writable for s in lists.slabs):
            return False
        return bool(self.shadow) or (
            self.ntotal >= _SHADOW_ROWS and cost.shadows_pay(self.device, self.d, torch.get_num_threads())
        )

    def _use_grouped(self, nq: int, nprobe: int, params: SearchParams) -> bool:
        mode = params.search_mode or self.search_mode
        if mode != "auto":
            return mode == "csr"
        if self._threshold is not None:
            return nq * nprobe / self.nlist >= self._threshold * (self.nlist / 512)
        if nq <= 1:
            return False
        mean = max(1, self.ntotal // self.nlist)
        rows_log2 = min(max(3, mean.bit_length() - (1 if mean & (mean - 1) == 0 else 0)), 14)
        shadow = self._reads_shadows(nq, nprobe)
        model = cost.measure(self.device, self.d, rows_log2, torch.get_num_threads(), shadow)
        return model.prefers_grouped(nq, nprobe, self.nlist, mean)

    def _range(
        self, q: Tensor, limit: float, params: SearchParams, selector: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return range_scan(self._lists, q, self._probes(q, params), limit, self.metric, selector)


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
        flat, dims, lists, kind = _arguments(quantizer, args, d, nlist, metric)
        super().__init__(dims, lists, nprobe, kind, "fp32", device, False, seed, balance, niter)
        _adopt(self, flat)


class IndexIVFScalarQuantizer(IndexIVF):
    """Rows of one byte (int8, a range for each dimension: Faiss's QT_8bit) or two (fp16, bf16) per value.

    Distances are those to the stored, rounded rows; wrap it in IndexRefineFlat for exact ones.
    by_residual: store the difference to the centroid (finer for clustered data, as Faiss does by default).
    """

    def __init__(
        self,
        quantizer: Any = None,
        *args: Any,
        d: int | None = None,
        nlist: int | None = None,
        nprobe: int = 1,
        metric: object = None,
        qtype: QType = "int8",
        by_residual: bool = False,
        device: torch.device | str | None = None,
        seed: int = 1234,
        balance: float = 0.0,
        niter: int = 10,
    ) -> None:
        if qtype not in ("int8", "fp16", "bf16"):
            raise ValueError(f"qtype is {qtype!r}; expected int8, fp16 or bf16.")
        flat, dims, lists, kind = _arguments(quantizer, args, d, nlist, metric)
        super().__init__(dims, lists, nprobe, kind, qtype, device, by_residual, seed, balance, niter)
        _adopt(self, flat)

    @property
    def qtype(self) -> QType:
        return self._lists.codec.qtype


def _arguments(
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


def _adopt(index: IndexIVF, flat: IndexFlat | None) -> None:
    if flat is not None and flat.ntotal == index.nlist:
        index.set_centroids(flat.reconstruct_n())


def range_scan(
    lists: Lists, q: Tensor, probes: Probes, limit: float, metric: Metric, selector: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with a score below `limit`, run by run with all queries of a run together; exact by a recheck."""
    dev, n = q.device, q.shape[0]
    table = lists.table()
    seg, _, limits = expand(table, probes)
    hit_q: list[Tensor] = []
    hit_a: list[Tensor] = []
    hit_s: list[Tensor] = []
    flat = seg.reshape(-1)
    for r in torch.unique(flat[flat >= 0]).tolist():
        picked, probe = (seg == r).nonzero(as_tuple=True)
        start, size = int(table.start[r]), int(table.size[r])
        for a in range(0, size, 8192):
            address = torch.arange(start + a, start + min(size, a + 8192), device=dev)
            x = rows_at(lists, address, probes.centroids)
            allowed = None if selector is None else selector.mask(lists.take(address, "ids"))
            norms = (x * x).sum(1) if metric == "l2" else x.new_zeros(x.shape[0])
            for b in range(0, picked.shape[0], 512):
                who = picked[b : b + 512]
                qs = q[who]
                s = torch.addmm(norms, qs, x.T, alpha=-2.0 if metric == "l2" else -1.0)
                scale = (
                    norms.max() + (qs * qs).sum(1, keepdim=True)
                    if metric == "l2"
                    else (qs.norm(dim=1, keepdim=True) * x.norm(dim=1).max())
                )
                if metric == "l2":
                    s += (qs * qs).sum(1, keepdim=True)
                ok = s <= limit + scale * 1e-5 + 1e-6
                if limits is not None:
                    ok &= (
                        torch.arange(a, a + x.shape[0], device=dev) < limits[who, probe[b : b + 512]][:, None]
                    )
                if allowed is not None:
                    ok &= allowed
                i, j = ok.nonzero(as_tuple=True)
                if not i.numel():
                    continue
                exact = exact_scores(qs[i][:, None], x[j][:, None], metric)[:, 0]
                inside = exact < limit
                hit_q.append(who[i][inside])
                hit_a.append(address[j][inside])
                hit_s.append(exact[inside])
    if not hit_q:
        empty = torch.zeros(0, dtype=torch.int64, device=dev)
        return torch.zeros(n + 1, dtype=torch.int64, device=dev), torch.zeros(0, device=dev), empty
    who_all = torch.cat(hit_q)
    order = stable_order(who_all)
    counts = torch.bincount(who_all, minlength=n)
    lims = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return lims, torch.cat(hit_s)[order], torch.cat(hit_a)[order]
