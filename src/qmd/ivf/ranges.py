"""Every row within a radius, instead of the k nearest. Knows no index class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qmd.ivf.lists import Lists
from qmd.ivf.metric import Metric, exact_scores
from qmd.ivf.operators import stable_order
from qmd.ivf.scan import Probes, expand, rows_at


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
