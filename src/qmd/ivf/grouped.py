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
from qmd.ivf.lists import Codes, Lists, Table
from qmd.ivf.metric import Metric
from qmd.ivf.scan import SPARE, SPARE_CODED, Probes, expand, norms_of, recheck, sort_tasks, unsettled

GROUP = 8
UNIT = 8
_QUERY_BLOCK = 2048  # queries of one pass
_MINIMA = 1 << 24  # group minima of one pass
_SCORE_BLOCK = 512  # queries of one product
_FEW = 8  # queries of a list for which int8 codes are read rather than rows
_INF = float("inf")


def scan_grouped(
    lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric, codes: Codes | None = None
) -> tuple[Tensor, Tensor]:
    """-> scores (n, k) rising (L2: squared distance, IP: -product), addresses (n, k).

    codes: int8 shadows of the rows, read instead of them where a list has few queries. A query whose k nearest
    rows the codes' error does not settle is asked again without them.
    """
    n, table = q.shape[0], lists.table()
    reach = max(1, lists.ntotal // max(1, lists.nlist)) * probes.lists.shape[1] // GROUP
    step = max(1, min(_QUERY_BLOCK, (1 << 23) // max(k, 1), 4 * _MINIMA // max(1, reach)))
    out_s: list[Tensor] = []
    out_a: list[Tensor] = []
    for i in range(0, n, step) if n else [0]:
        cut = slice(i, i + step)
        part = probes if n <= step else probes.rows(cut)
        scores, address, again = _scan_block(lists, table, q[cut], part, k, metric, codes)
        if again is not None and again.numel():
            scores[again], address[again], _ = _scan_block(
                lists, table, q[cut][again], part.rows(again), k, metric, None
            )
        out_s.append(scores)
        out_a.append(address)
    return (out_s[0], out_a[0]) if len(out_s) == 1 else (torch.cat(out_s), torch.cat(out_a))


def _scan_block(
    lists: Lists, table: Table, q: Tensor, probes: Probes, k: int, metric: Metric, codes: Codes | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    dev = q.device
    seg, const, limits = expand(table, probes)
    n, s = seg.shape
    if not table.views or not n or not s:
        return *recheck(lists, q, seg[:, :0], k, metric, probes), None
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
          dense, alpha, limits, order, codes)  # fmt: skip
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
    spare = SPARE if codes is None and lists.codec.exact else SPARE_CODED + k
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
    scores, address = recheck(lists, q, candidates, k, metric, probes)
    if codes is None:
        return scores, address, None
    edge = value.amax(1)  # infinite when there are no other rows
    return scores, address, unsettled(scores, edge, q, codes, metric)


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
    codes: Codes | None,
) -> None:
    """Minima of the groups of every touched run into `minima`, of its units into its tasks' lines of `dense`."""
    d, dev = lists.codec.d, coded.device
    touched = np.nonzero(counts)[0].tolist()
    widest = int(table.size[touched].max(initial=0)) + GROUP
    block = min(_SCORE_BLOCK if dev.type == "cpu" else 1 << 14, int(counts.max(initial=1)))
    scores = scratch.take("scores", block * widest, dev)
    qbuf = scratch.take("queries", block * d, dev).view(block, d)
    half = scratch.take("halves", block * (widest // GROUP + UNIT), dev)
    flat_limits = limits.reshape(-1)[order] if limits is not None else None
    own8 = lists.codec.qtype == "int8" and operators.has("int8_rows", dev)
    narrow = coded.to(torch.bfloat16) if own8 or codes is not None else coded
    ones = torch.ones(widest, dtype=torch.bfloat16, device=dev) if own8 else coded
    exact = lists.codec.exact
    plain = operators.has("mm_out", dev) and operators.has("amin_out", dev)
    all_counts, sizes = counts.tolist(), table.size.tolist()
    bases, all_units = base_of.tolist(), units_of.tolist()
    task = 0
    for r in touched:
        m, n, u = all_counts[r], sizes[r], all_units[r]
        few8 = (own8 or codes is not None) and m <= _FEW
        padded = table.padded[r] if exact and not few8 and probes.norms is None else None
        if padded is not None:
            rows, norms = padded  # whole groups: rows beyond the run have infinite norms
        else:
            rows = table.views[r][0]
            norms = table.views[r][1] if probes.norms is None else norms_of(lists, table, probes, r)
        if few8:
            rows, scales = (rows, ones[:n]) if codes is None else codes.views[r]
        elif not exact:
            rows = rows.to(torch.float32)
        by_rows = exact and not few8 and 1 < m <= 6 and dev.type == "cpu"
        transposed = rows.T
        height = -(-n // GROUP)
        have, pad, base = norms.shape[0], height * GROUP, bases[r]
        for at in range(0, m, block):
            count = min(block, m - at)
            tasks = slice(task, task + count)
            full = scores[: count * pad].view(count, pad)
            part = full if pad == have else full[:, :have]
            if few8:
                products = torch._weight_int8pack_mm(narrow.index_select(0, query_of[tasks]), rows, scales)
                torch.add(norms, products, alpha=alpha, out=part)
            elif by_rows:  # BLAS streams the longer matrix once when it comes first
                products = torch.mm(rows, coded.index_select(0, query_of[tasks]).T)
                torch.add(norms, products.T, alpha=alpha, out=part)
            elif exact and count == 1 and dev.type == "cpu":
                products = operators.row_products(rows, coded[int(query_of[task])])
                torch.add(norms, products, alpha=alpha, out=part[0])
            elif plain:
                qs = torch.index_select(coded, 0, query_of[tasks], out=qbuf[:count])
                torch.addmm(norms, qs, transposed, alpha=alpha, out=part)
            else:
                operators.biased_product(norms, coded.index_select(0, query_of[tasks]), rows, alpha, part)
            if pad != have:
                full[:, have:] = _INF
            if flat_limits is not None:
                cap = flat_limits[tasks]
                if bool((cap < n).any()):
                    full.masked_fill_(torch.arange(pad, device=dev) >= cap[:, None], _INF)
            lines = minima[base : base + count * u * UNIT].view(count, u * UNIT)
            if height != u * UNIT:
                lines[:, height:] = _INF
            operators.group_minimum(full.view(count, GROUP, height), lines[:, :height])
            # pairwise minima of halves: UNIT lines of u become one
            a = torch.minimum(
                lines[:, : 4 * u], lines[:, 4 * u :], out=half[: count * 4 * u].view(count, 4 * u)
            )
            b = torch.minimum(a[:, : 2 * u], a[:, 2 * u :])
            dense[:, :u].index_copy_(0, order[tasks], torch.minimum(b[:, :u], b[:, u:]))
            base += count * u * UNIT
            task += count
