"""All queries of a list together ("csr"): one product a list, minima of groups, minima of units, then rows.

A group is G rows of a list, a unit is U groups. Of every group only the smallest score is kept, of every unit
the smallest of those. The k units with the smallest minima hold the k smallest group minima, and those k
groups hold the k nearest rows: only their rows are looked at again. Both are strided (group b of B has rows
b, b + B, b + 2B ...), so that a minimum is a vector operation over whole lines of a matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qmd.ivf import operators, scratch
from qmd.ivf.lists import Lists, Table
from qmd.ivf.metric import Metric
from qmd.ivf.scan import SPARE, SPARE_CODED, Probes, expand, norms_of, recheck, sort_tasks

GROUP = 8
UNIT = 8
_QUERY_BLOCK = 2048  # queries of one pass
_MINIMA = 1 << 24  # group minima of one pass
_SCORE_BLOCK = 512  # queries of one product
_INF = float("inf")


def scan_grouped(lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """-> scores (n, k) rising (L2: squared distance, IP: -product), addresses (n, k)."""
    n = q.shape[0]
    reach = max(1, lists.ntotal // max(1, lists.nlist)) * probes.lists.shape[1] // GROUP
    step = max(1, min(_QUERY_BLOCK, (1 << 23) // max(k, 1), 2 * _MINIMA // max(1, reach)))
    if n <= step:
        return _scan_block(lists, q, probes, k, metric)
    parts = []
    for i in range(0, n, step):
        cut = slice(i, i + step)
        parts.append(_scan_block(lists, q[cut], probes.rows(cut), k, metric))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _scan_block(lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    dev, table = q.device, lists.table()
    seg, const, limits = expand(table, probes)
    n, s = seg.shape
    if not table.views or not n or not s:
        return recheck(lists, q, seg[:, :0], k, metric, probes)
    flat = seg.reshape(-1)
    order, counts = sort_tasks(flat, len(table.views))
    groups = -(-table.size // GROUP)
    units = -(-groups // UNIT)
    # group minima of a task: UNIT lines of units[run]; tasks lie in their sorted order
    per_run = counts * units * UNIT
    base = np.cumsum(per_run) - per_run
    total = int(per_run.sum())
    wide = int(units[counts > 0].max(initial=1))
    minima = scratch.take("minima", total, dev)
    dense = scratch.take("units", n * s * wide, dev).fill_(_INF).view(n * s, wide)
    alpha = -2.0 if metric == "l2" else -1.0
    coded = lists.codec.query(q)
    _fill(lists, table, probes, coded, torch.div(order, s, rounding_mode="floor"), counts, base, units, minima,
          dense, alpha, limits, order)  # fmt: skip
    run = flat.index_select(0, order)
    before = torch.from_numpy(np.cumsum(counts) - counts).to(dev)
    units_t = torch.from_numpy(units).to(dev)
    first = torch.from_numpy(base).to(dev)[run] + (torch.arange(order.shape[0], device=dev) - before[run]) * (
        units_t[run] * UNIT
    )
    where = torch.zeros(n * s, dtype=torch.int64, device=dev)
    where[order] = first
    if const is not None:
        dense.add_(const.reshape(-1, 1))
    spare = SPARE if lists.codec.exact else SPARE_CODED
    keep = min(k + spare, s * wide)
    least, at = torch.topk(dense.view(n, s * wide), keep, dim=1, largest=False, sorted=False)
    slot = torch.div(at, wide, rounding_mode="floor")
    column = at - slot * wide
    slot += torch.arange(0, n * s, s, device=dev)[:, None]
    run = flat.index_select(0, slot.view(-1)).view(n, keep).clamp_(min=0)
    line = units_t[run]
    lane = torch.arange(UNIT, device=dev)
    place = (where[slot] + column)[..., None] + line[..., None] * lane
    value = minima.index_select(0, place.view(-1).clamp_(max=max(total - 1, 0))).view(n, keep, UNIT)
    if const is not None:
        value += const.reshape(-1)[slot][..., None]
    value.masked_fill_(torch.isinf(least)[..., None], _INF)
    keep_groups = min(k + spare, keep * UNIT)
    value, at = torch.topk(value.view(n, keep * UNIT), keep_groups, dim=1, largest=False, sorted=False)
    unit = torch.div(at, UNIT, rounding_mode="floor")
    run = torch.gather(run, 1, unit)
    group = torch.gather(column, 1, unit) + (at - unit * UNIT) * torch.gather(line, 1, unit)
    height = torch.from_numpy(groups).to(dev)[run]
    row = group[..., None] + torch.arange(GROUP, device=dev) * height[..., None]
    size = table.on_device["size"][run]
    if limits is not None:
        slots = torch.gather(slot, 1, unit)
        size = torch.minimum(size, limits.reshape(-1)[slots])
    bad = (row >= size[..., None]) | torch.isinf(value)[..., None]
    candidates = row.add_(table.on_device["start"][run][..., None]).masked_fill_(bad, -1).view(n, -1)
    if probes.norms is not None:  # a row beside an allowed one may itself be excluded
        allowed = probes.norms[0] if len(probes.norms) == 1 else torch.cat(probes.norms)
        candidates.masked_fill_(torch.isinf(allowed[candidates.clamp(min=0)]), -1)
    return recheck(lists, q, candidates, k, metric, probes)


def _fill(
    lists: Lists,
    table: Table,
    probes: Probes,
    coded: Tensor,
    query_of: Tensor,
    counts: np.ndarray,
    base_of: np.ndarray,
    units_of: np.ndarray,
    minima: Tensor,
    dense: Tensor,
    alpha: float,
    limits: Tensor | None,
    order: Tensor,
) -> None:
    """Minima of the groups of every touched run into `minima`, of its units into its tasks' lines of `dense`."""
    d, dev = lists.codec.d, coded.device
    touched = np.nonzero(counts)[0]
    widest = int(table.size[touched].max(initial=0)) + GROUP
    # products of at most so many tasks
    block = min(_SCORE_BLOCK if dev.type == "cpu" else 1 << 14, int(counts.max(initial=1)))
    scores = scratch.take("scores", block * widest, dev)
    qbuf = scratch.take("queries", block * d, dev).view(block, d)
    half = scratch.take("halves", block * (widest // GROUP + UNIT) // 2 + block * UNIT, dev)
    flat_limits = limits.reshape(-1)[order] if limits is not None else None
    exact = lists.codec.exact
    plain = operators.has("mm_out", dev) and operators.has("amin_out", dev)
    cuts = [(r, min(block, m - at), at == 0) for r, m in zip(touched.tolist(), counts[touched].tolist(), strict=True)
            for at in range(0, m, block)]  # fmt: skip
    pieces = [count for _, count, _ in cuts]
    who, slots = torch.split(query_of, pieces), torch.split(order, pieces)
    caps = torch.split(flat_limits, pieces) if flat_limits is not None else None
    base = 0
    for i, (r, count, first) in enumerate(cuts):
        if first:
            u, base, n = int(units_of[r]), int(base_of[r]), int(table.size[r])
            height = -(-n // GROUP)
            pad = height * GROUP
            whole = table.padded[r] if exact and probes.norms is None else None
            if whole is not None:
                rows, norms = whole  # whole groups: rows beyond the run have infinite norms
            else:
                rows = table.views[r][0]
                norms = table.views[r][1] if probes.norms is None else norms_of(lists, table, probes, r)
                rows = rows if exact else rows.to(torch.float32)
            transposed, have = rows.T, norms.shape[0]
        full = scores[: count * pad].view(count, pad)
        part = full if pad == have else full[:, :have]
        if plain:
            qs = torch.index_select(coded, 0, who[i], out=qbuf[:count])
            torch.addmm(norms, qs, transposed, alpha=alpha, out=part)
        else:
            operators.biased_product(norms, coded.index_select(0, who[i]), rows, alpha, part)
        if pad != have:
            full[:, have:] = _INF
        if caps is not None and bool((caps[i] < n).any()):
            full.masked_fill_(torch.arange(pad, device=dev) >= caps[i][:, None], _INF)
        stop = base + count * u * UNIT
        lines = minima[base:stop].view(count, u * UNIT)
        base = stop
        if height != u * UNIT:
            lines[:, height:] = _INF
            target = lines[:, :height]
        else:
            target = lines
        if plain:
            torch.amin(full.view(count, GROUP, height), 1, out=target)
        else:
            operators.group_minimum(full.view(count, GROUP, height), target)
        # pairwise minima of halves: UNIT lines of u become one
        out = half[: count * 4 * u].view(count, 4 * u)
        least = torch.minimum(lines[:, : 4 * u], lines[:, 4 * u :], out=out)
        least = torch.minimum(least[:, : 2 * u], least[:, 2 * u :])
        least = torch.minimum(least[:, :u], least[:, u:])
        (dense if u == dense.shape[1] else dense[:, :u]).index_copy_(0, slots[i], least)
