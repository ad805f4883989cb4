"""Exact search over all rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qmd.ivf.base import Index
from qmd.ivf.codec import Codec
from qmd.ivf.lists import Lists
from qmd.ivf.operators import biased_product, group_minimum, search_sorted
from qmd.ivf.params import SearchParams
from qmd.ivf.ranges import range_scan
from qmd.ivf.scan import Probes, recheck, scan_all, settle

_TILE = 8192  # rows of one product
_GROUP = 16
_QUERIES = 256


class IndexFlat(Index):
    """All rows, compared with every query. `metric`: "l2" or "ip"."""

    is_trained = True

    def __init__(self, d: int, metric: object = "l2", *, device: torch.device | str | None = None) -> None:
        super().__init__(Codec("fp32", int(d)), metric, 1, device, by_residual=False)

    def _search(
        self, lists: Lists, q: Tensor, k: int, params: SearchParams, selector: Any
    ) -> tuple[Tensor, Tensor]:
        probes = Probes(torch.zeros(q.shape[0], 1, dtype=torch.int64, device=q.device))
        norms: list[Tensor] | None = None
        if selector is not None and lists.slabs:
            keep = [selector.mask(s.ids) & (s.ids >= 0) for s in lists.slabs]
            if sum(int(m.sum()) for m in keep) * 4 < self.ntotal:
                lists.table()
                address = torch.cat(
                    [m.nonzero().reshape(-1) + s.base for m, s in zip(keep, lists.slabs, strict=True)]
                )
                return scan_all(lists, q, address, k, self.metric, probes)
            norms = [torch.where(m, s.norms, float("inf")) for m, s in zip(keep, lists.slabs, strict=True)]
        return _scan_tiles(self, lists, q, k, norms, probes)

    def _range(
        self, lists: Lists, q: Tensor, limit: float, params: SearchParams, selector: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        probes = Probes(torch.zeros(q.shape[0], 1, dtype=torch.int64, device=q.device))
        return range_scan(lists, q, probes, limit, self.metric, selector)


def _scan_tiles(
    index: IndexFlat, lists: Lists, q: Tensor, k: int, norms: list[Tensor] | None, probes: Probes
) -> tuple[Tensor, Tensor]:
    """Group minima of every tile of rows, then the k best groups' rows exactly."""
    dev = q.device
    table = lists.table()
    alpha = -2.0 if index.metric == "l2" else -1.0
    tiles = [
        (
            int(start) + a,
            rows[a : a + _TILE],
            (held if norms is None else _cut(norms, lists, slab, start, size))[a : a + _TILE],
        )
        for (rows, held, slab), start, size in zip(
            table.views, table.start.tolist(), table.size.tolist(), strict=True
        )
        for a in range(0, size, _TILE)
    ]
    groups = [-(-t[1].shape[0] // _GROUP) for t in tiles]
    total = sum(groups)
    if not total or not q.shape[0]:
        return recheck(
            lists, q, torch.zeros(q.shape[0], 0, dtype=torch.int64, device=dev), k, index.metric, probes
        )
    ends = torch.tensor(groups, device=dev).cumsum(0)
    width = torch.tensor(groups, device=dev)
    start_of = torch.tensor([t[0] for t in tiles], device=dev)
    size_of = torch.tensor([t[1].shape[0] for t in tiles], device=dev)
    found, edges = [], []
    block = min(_QUERIES if dev.type == "cpu" else 4096, q.shape[0])
    scores = torch.empty(block * max(groups) * _GROUP, device=dev)
    step = torch.arange(_GROUP, device=dev)
    for i in range(0, q.shape[0], block):
        qs = q[i : i + block]
        m = qs.shape[0]
        minima = torch.empty(m, total, device=dev)
        done = 0
        for (_, rows, bias), g in zip(tiles, groups, strict=True):
            n = rows.shape[0]
            full = scores[: m * g * _GROUP].view(m, g * _GROUP)
            biased_product(bias, qs, rows, alpha, full[:, :n])
            if n < g * _GROUP:
                full[:, n:] = float("inf")
            group_minimum(full.view(m, _GROUP, g), minima[:, done : done + g])
            done += g
        value, at = torch.topk(minima, min(k + 4, total), dim=1, largest=False, sorted=False)
        edges.append(value.amax(1))
        tile = search_sorted(ends, at)
        row = (at - (ends - width)[tile])[..., None] + step * width[tile][..., None]
        bad = (row >= size_of[tile][..., None]) | torch.isinf(value)[..., None]
        found.append((row + start_of[tile][..., None]).masked_fill_(bad, -1).view(m, -1))
    candidates = torch.cat(found)
    if norms is not None:
        allowed = torch.cat(norms)[candidates.clamp(min=0)]
        candidates.masked_fill_(torch.isinf(allowed), -1)
    best, where = recheck(lists, q, candidates, k, index.metric, probes)
    if total <= k + 4:
        return best, where
    probes = replace(probes, norms=norms)
    return settle(lists, q, probes, k, index.metric, best, where, torch.cat(edges))


def _cut(norms: list[Tensor], lists: Any, slab: int, start: int, size: int) -> Tensor:
    begin = start - lists.slabs[slab].base
    return norms[slab][begin : begin + size]


class IndexFlatL2(IndexFlat):
    """Exact, squared Euclidean distance."""

    def __init__(self, d: int, *, device: torch.device | str | None = None) -> None:
        super().__init__(d, "l2", device=device)


class IndexFlatIP(IndexFlat):
    """Exact, inner product."""

    def __init__(self, d: int, *, device: torch.device | str | None = None) -> None:
        super().__init__(d, "ip", device=device)
