"""Find the nearest rows in probed lists: two roads to the same exact answer. Knows no index class.

grouped ("csr"): tasks (query, list) sorted by list; one product a list; of every group of G rows only the
minimum is
kept. The k groups with the smallest minima hold the k nearest rows, so only their rows are looked at again.
per query ("matrix"): one product a (query, list) into one row of scores, one top-k. Light for a few queries.
Both end in `recheck`: distances from differences in float32, so rounding in the products decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qmd.ivf import operators
from qmd.ivf.lists import Lists, Table
from qmd.ivf.metric import Metric, exact_scores

GROUP = 8  # rows that share one minimum
UNIT = 8  # minima that move together
_SPARE = 4  # groups, or rows, looked at beyond k, against rounding in the products
_SPARE_CODED = 12
_QUERY_BLOCK = 2048  # queries of one grouped pass
_SCORE_BLOCK = 256  # queries of one product
_RECHECK_BYTES = 3 << 20  # rows gathered at a time: they should stay in a shared cache


@dataclass(frozen=True, slots=True)
class Probes:
    """What to scan. lists (n, p) int64; const (n, p) added to every score of that list, or None.

    limits (n, p): only the first so many rows of the list, or None. centroids (nlist, d): rows are residuals
    to them, or None. norms: one tensor for each slab, replacing the stored norms (inf = not allowed), or
    None.
    """

    lists: Tensor
    const: Tensor | None = None
    limits: Tensor | None = None
    centroids: Tensor | None = None
    norms: list[Tensor] | None = None


def rows_at(lists: Lists, address: Tensor, centroids: Tensor | None) -> Tensor:
    """Decoded float32 rows at addresses (c,), freshly allocated: (c, d)."""
    raw = lists.take(address, "rows")
    rows = lists.codec.decode(raw)
    return rows if centroids is None else rows + centroids[lists.list_of(address)]


def recheck(
    lists: Lists, q: Tensor, address: Tensor, k: int, metric: Metric, probes: Probes
) -> tuple[Tensor, Tensor]:
    """Exact top k among candidate addresses (n, c), -1 for none. -> scores (n, k) rising, addresses (n,
    k)."""
    n, c = address.shape
    d = lists.codec.d
    k_here = min(k, c)
    scores = torch.full((n, k), float("inf"), device=q.device)
    best = torch.full((n, k), -1, dtype=torch.int64, device=q.device)
    if not c:
        return scores, best
    step = (
        max(1, _RECHECK_BYTES // (c * d * 4)) if q.device.type == "cpu" else max(1, (1 << 28) // (c * d * 4))
    )
    plain = lists.codec.exact and probes.centroids is None
    buffer = torch.empty(min(step, n) * c, d, device=q.device) if plain else None
    safe = address.clamp(min=0)
    for i in range(0, n, step):
        part = safe[i : i + step]
        count = part.shape[0]
        if buffer is not None:
            x = lists.take(part.reshape(-1), "rows", buffer[: count * c]).view(count, c, d)
        else:
            x = rows_at(lists, part.reshape(-1), probes.centroids).view(count, c, d)
        qi = q[i : i + step, None]
        s = x.sub_(qi).square_().sum(-1) if metric == "l2" else x.mul_(qi).sum(-1).neg_()
        s.masked_fill_(address[i : i + step] < 0, float("inf"))
        value, at = torch.topk(s, k_here, dim=1, largest=False)
        scores[i : i + step, :k_here] = value
        best[i : i + step, :k_here] = torch.gather(address[i : i + step], 1, at)
    best.masked_fill_(torch.isinf(scores), -1)
    return scores, best


def _expand(table: Table, probes: Probes) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Runs instead of lists: run numbers (n, s) with -1 for none, and const and limits to match."""
    dev = table.on_device
    lists = probes.lists.clamp(min=0)
    first, runs = dev["first"][lists], dev["runs"][lists]
    runs = torch.where(probes.lists >= 0, runs, 0)
    if table.most_runs <= 1:
        seg = torch.where(runs > 0, first, -1)
        return seg, probes.const, probes.limits
    width = table.most_runs
    step = torch.arange(width, device=first.device)
    seg = torch.where(step < runs[..., None], first[..., None] + step, -1)
    n = seg.shape[0]
    const = None if probes.const is None else probes.const[..., None].expand(seg.shape).reshape(n, -1)
    limits = None
    if probes.limits is not None:
        limits = (probes.limits[..., None] - dev["offset"][seg.clamp(min=0)]).clamp_(min=0).reshape(n, -1)
    return seg.reshape(n, -1), const, limits


def _norms_of(lists: Lists, table: Table, probes: Probes, seg: int) -> Tensor:
    if probes.norms is None:
        return table.views[seg][1]
    slab = lists.slabs[table.views[seg][2]]
    start = int(table.start[seg]) - slab.base
    return probes.norms[table.views[seg][2]][start : start + int(table.size[seg])]


def scan_each(lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """One query after the other. -> scores (n, k) rising (L2: squared distance, IP: -product), addresses (n,
    k)."""
    table = lists.table()
    codec, views, size, start = lists.codec, table.views, table.size, table.start
    alpha = -2.0 if metric == "l2" else -1.0
    coded = codec.query(q)
    spare = _SPARE if codec.exact else max(_SPARE_CODED, k)
    fast8 = codec.qtype == "int8" and operators.has("int8_rows", q.device)
    narrow = coded.to(torch.bfloat16) if fast8 else coded
    ones = torch.ones(int(size.max(initial=0)) if fast8 else 0, dtype=torch.bfloat16, device=q.device)
    by_dot = codec.exact and q.device.type == "cpu"
    caps = None if probes.limits is None else probes.limits.tolist()
    found: list[Tensor] = []
    for i, numbers in enumerate(probes.lists.tolist()):
        use: list[tuple[int, int, int]] = []  # run, rows of it, probe
        for j, list_no in enumerate(numbers):
            left = caps[i][j] if caps is not None else 1 << 62
            for s in range(table.first[list_no], table.first[list_no] + table.runs[list_no]):
                if left > 0:
                    n = min(views[s][0].shape[0], left)
                    left -= n
                    use.append((s, n, j))
        if not use:
            found.append(torch.empty(0, dtype=torch.int64, device=q.device))
            continue
        parts = [views[s][0] if caps is None else views[s][0][:n] for s, n, _ in use]
        kept = [
            views[s][1] if probes.norms is None else _norms_of(lists, table, probes, s) for s, _, _ in use
        ]
        scores = torch.cat(kept if caps is None else [v[:n] for v, (_, n, _) in zip(kept, use, strict=True)])
        if fast8:
            qi = narrow[i : i + 1]
            products = torch.cat(
                [torch._weight_int8pack_mm(qi, x, ones[: x.shape[0]]) for x in parts], 1
            ).view(-1)
        elif by_dot:  # reads memory faster than mv here
            qi = coded[i]
            products = torch.cat([torch.linalg.vecdot(x, qi) for x in parts])
        else:
            qi = coded[i]
            products = torch.cat([torch.mv(x.to(torch.float32), qi) for x in parts])
        scores.add_(products, alpha=alpha)
        counts = np.asarray([n for _, n, _ in use])
        if probes.const is not None:
            extra = probes.const[i][torch.tensor([j for _, _, j in use], device=q.device)]
            scores.add_(torch.repeat_interleave(extra, torch.from_numpy(counts).to(q.device)))
        value, at = _smallest(scores, min(k + spare, scores.shape[0]))
        ends = np.cumsum(counts)
        shift = start[[s for s, _, _ in use]] - (ends - counts)
        pos = at.cpu().numpy()
        address = torch.from_numpy(pos + shift[np.searchsorted(ends, pos, side="right")]).to(q.device)
        found.append(address if probes.norms is None else address.masked_fill_(torch.isinf(value), -1))
    width = max((f.shape[0] for f in found), default=0)
    if len(found) == 1:
        candidates = found[0][None]
    else:
        candidates = torch.full((len(found), width), -1, dtype=torch.int64, device=q.device)
        for i, f in enumerate(found):
            candidates[i, : f.shape[0]] = f
    return recheck(lists, q, candidates, k, metric, probes)


def _smallest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and places of the k smallest of scores (n,), through minima of groups when that is shorter."""
    n = scores.shape[0]
    groups = n // 16
    if n < 4096 or 4 * k > groups:
        return torch.topk(scores, k, largest=False)
    body = scores[: groups * 16].view(16, groups)
    picked = torch.topk(body.amin(0), k, largest=False, sorted=False).indices
    places = (picked[:, None] + torch.arange(0, 16 * groups, groups, device=scores.device)).reshape(-1)
    if n > groups * 16:
        places = torch.cat([places, torch.arange(groups * 16, n, device=scores.device)])
    value, at = torch.topk(scores[places], k, largest=False)
    return value, places[at]


def scan_grouped(lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """All queries of a list together. Returns what `scan_each` returns."""
    n = q.shape[0]
    # k groups of every query are rechecked at once: fewer queries a pass when k is large.
    step = max(1, min(_QUERY_BLOCK, (1 << 23) // max(k, 1)))
    if n <= step:
        return _scan_block(lists, q, probes, k, metric)
    outs = []
    for i in range(0, n, step):
        cut = slice(i, i + step)
        part = Probes(
            probes.lists[cut],
            None if probes.const is None else probes.const[cut],
            None if probes.limits is None else probes.limits[cut],
            probes.centroids,
            probes.norms,
        )
        outs.append(_scan_block(lists, q[cut], part, k, metric))
    return torch.cat([o[0] for o in outs]), torch.cat([o[1] for o in outs])


def _scan_block(lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    table, dev = lists.table(), q.device
    seg, const, limits = _expand(table, probes)
    n, s = seg.shape
    if not table.views or not n or not s:
        return recheck(lists, q, seg[:, :0], k, metric, probes)
    units = -(-table.size // (GROUP * UNIT))  # units of each run
    flat_seg = seg.reshape(-1)
    if dev.type == "cpu":
        keys = flat_seg.numpy()
        if len(units) < 32000:
            keys = keys.astype(np.int16)  # numpy sorts 16 bits by radix
        order_np = np.argsort(keys, kind="stable")
        counts = np.bincount(flat_seg.numpy() + 1, minlength=len(units) + 1)
        order = torch.from_numpy(order_np)
    else:
        order = operators.stable_order(flat_seg)
        counts = torch.bincount(flat_seg + 1, minlength=len(units) + 1).cpu().numpy()
    skip = int(counts[0])
    counts = counts[1:]
    order = order[skip:]
    ntasks = order.shape[0]
    query_of = torch.div(order, s, rounding_mode="floor")
    # first unit of each task, in the order of the sorted tasks; one more unit at the end holds only inf
    per_run = counts * units
    run_base = np.cumsum(per_run) - per_run
    total_units = int(per_run.sum())
    minima = torch.empty((total_units + 1) * UNIT, device=dev)
    minima[total_units * UNIT :] = float("inf")
    alpha = -2.0 if metric == "l2" else -1.0
    codec = lists.codec
    coded = codec.query(q)
    _fill_minima(lists, table, probes, coded, query_of, counts, run_base, minima, alpha, limits, order)
    # where each (query, probe) finds its units
    run_of = flat_seg[order]
    units_t = torch.from_numpy(units).to(dev)
    task_first = torch.arange(ntasks, device=dev)
    before = torch.from_numpy(np.cumsum(counts) - counts).to(dev)
    task_unit = torch.from_numpy(run_base).to(dev)[run_of] + (task_first - before[run_of]) * units_t[run_of]
    unit_of = torch.full((n * s,), total_units, dtype=torch.int64, device=dev)
    unit_of[order] = task_unit
    unit_of = unit_of.view(n, s)
    if const is not None:
        task_const = const.reshape(-1)[order]
        lengths = units_t[run_of]
        minima[: total_units * UNIT].view(-1, UNIT).add_(
            torch.repeat_interleave(task_const, lengths)[:, None]
        )
    seg_units = torch.where(seg >= 0, units_t[seg.clamp(min=0)], 0)
    candidates = _pick_rows(lists, table, minima, seg, seg_units, unit_of, total_units, k, limits)
    if probes.norms is not None:  # a row beside an allowed one may itself be excluded
        allowed = (
            torch.cat(probes.norms)[candidates.clamp(min=0)]
            if len(probes.norms) > 1
            else probes.norms[0][candidates.clamp(min=0)]
        )
        candidates.masked_fill_(torch.isinf(allowed), -1)
    return recheck(lists, q, candidates, k, metric, probes)


def _fill_minima(
    lists: Lists,
    table: Table,
    probes: Probes,
    coded: Tensor,
    query_of: Tensor,
    counts: np.ndarray,
    run_base: np.ndarray,
    minima: Tensor,
    alpha: float,
    limits: Tensor | None,
    order: Tensor,
) -> None:
    """One product for each touched run; minima of its groups into `minima`.

    Groups are strided (group b has rows b, b + B, b + 2B ...): a minimum over rows of a matrix is a vector
    operation.
    """
    d, dev = lists.codec.d, coded.device
    touched = np.nonzero(counts)[0].tolist()
    widest = int((-(-table.size[touched] // (GROUP * UNIT))).max(initial=0)) * GROUP * UNIT
    block = min(_SCORE_BLOCK if dev.type == "cpu" else 1 << 14, int(counts.max(initial=1)))
    scores = torch.empty(block * widest, device=dev)
    qbuf = torch.empty(block, d, device=dev)
    flat_limits = limits.reshape(-1)[order] if limits is not None else None
    fast8 = lists.codec.qtype == "int8" and operators.has("int8_rows", dev)
    narrow = coded.to(torch.bfloat16) if fast8 else coded
    ones = torch.ones(widest, dtype=torch.bfloat16, device=dev) if fast8 else coded
    exact = lists.codec.exact
    mm_out = operators.has("mm_out", dev)
    inf = float("inf")
    task = 0
    for r in touched:
        m, n = int(counts[r]), int(table.size[r])
        rows = table.views[r][0]
        norms = table.views[r][1] if probes.norms is None else _norms_of(lists, table, probes, r)
        few = fast8 and m <= 6
        by_rows = exact and 1 < m <= 6 and dev.type == "cpu"
        if not exact and not few:
            rows = rows.to(torch.float32)
        wide = -(-n // (GROUP * UNIT)) * UNIT  # groups
        pad = wide * GROUP
        base = int(run_base[r]) * UNIT
        for at in range(0, m, block):
            count = min(block, m - at)
            pick = query_of[task : task + count]
            full = scores[: count * pad].view(count, pad)
            part = full if pad == n else full[:, :n]
            if few:
                products = torch._weight_int8pack_mm(narrow.index_select(0, pick), rows, ones[:n])
                torch.add(norms, products, alpha=alpha, out=part)
            elif by_rows:  # BLAS streams the longer matrix once when it comes first
                torch.add(norms, torch.mm(rows, coded.index_select(0, pick).T).T, alpha=alpha, out=part)
            elif exact and count == 1 and dev.type == "cpu":
                torch.add(norms, torch.linalg.vecdot(rows, coded[int(pick)]), alpha=alpha, out=part[0])
            else:
                qs = operators.take_rows(coded, pick, qbuf[:count])
                if mm_out:
                    torch.addmm(norms, qs, rows.T, alpha=alpha, out=part)
                else:
                    operators.biased_product(norms, qs, rows, alpha, part)
            if pad != n:
                full[:, n:] = inf
            if flat_limits is not None:
                cap = flat_limits[task : task + count]
                if bool((cap < n).any()):
                    part.masked_fill_(torch.arange(n, device=dev) >= cap[:, None], inf)
            out = minima[base : base + count * wide].view(count, wide)
            operators.group_minimum(full.view(count, GROUP, wide), out)
            base += count * wide
            task += count


def _pick_rows(
    lists: Lists,
    table: Table,
    minima: Tensor,
    seg: Tensor,
    seg_units: Tensor,
    unit_of: Tensor,
    none: int,
    k: int,
    limits: Tensor | None,
) -> Tensor:
    """Addresses (n, c) of all rows in the k groups with the smallest minima, -1 where there is none."""
    n, s = seg.shape
    dev = seg.device
    ends = torch.cumsum(seg_units, 1)
    width = int(ends[:, -1].max())
    if width == 0:
        return torch.full((n, 0), -1, dtype=torch.int64, device=dev)
    first = unit_of - (ends - seg_units)  # unit = first[probe] + place
    spare = _SPARE if lists.codec.exact else _SPARE_CODED
    keep = min(k + spare, width * UNIT)
    by_unit = minima.view(-1, UNIT)
    step = max(1, (1 << 22) // (width * UNIT))
    picked: list[Tensor] = []
    values: list[Tensor] = []
    place = torch.arange(width, device=dev)
    for i in range(0, n, step):
        e = ends[i : i + step]
        probe = operators.search_sorted(e, place.expand(e.shape[0], width).contiguous())
        unit = torch.gather(first[i : i + step], 1, probe.clamp(max=s - 1)).add_(place)
        unit.masked_fill_(probe >= s, none)
        dense = by_unit.index_select(0, unit.view(-1)).view(e.shape[0], width * UNIT)
        value, at = torch.topk(dense, keep, dim=1, largest=False, sorted=False)
        values.append(value)
        picked.append(at)
    group = torch.cat(picked) if len(picked) > 1 else picked[0]
    value = torch.cat(values) if len(values) > 1 else values[0]
    spot = torch.div(group, UNIT, rounding_mode="floor")
    probe = operators.search_sorted(ends, spot).clamp_(max=s - 1)
    run = torch.gather(seg, 1, probe).clamp_(min=0)
    groups = (
        table.on_device["size"][run]
        .add_(GROUP * UNIT - 1)
        .div_(GROUP * UNIT, rounding_mode="floor")
        .mul_(UNIT)
    )
    begin = torch.gather(ends - seg_units, 1, probe)
    within = group - begin * UNIT
    row = within[..., None] + torch.arange(GROUP, device=dev) * groups[..., None]
    size = table.on_device["size"][run]
    if limits is not None:
        size = torch.minimum(size, torch.gather(limits, 1, probe))
    bad = (row >= size[..., None]) | torch.isinf(value)[..., None]
    address = row.add_(table.on_device["start"][run][..., None])
    return address.masked_fill_(bad, -1).view(n, -1)


def scan_all(
    lists: Lists, q: Tensor, address: Tensor, k: int, metric: Metric, probes: Probes
) -> tuple[Tensor, Tensor]:
    """Exact top k of each query among the same few rows `address` (c,)."""
    if address.shape[0] == 0 or q.shape[0] == 0:
        return recheck(lists, q, address[None, :0].expand(q.shape[0], 0), k, metric, probes)
    best_s = torch.full((q.shape[0], 0), float("inf"), device=q.device)
    best_a = torch.full((q.shape[0], 0), -1, dtype=torch.int64, device=q.device)
    for i in range(0, address.shape[0], 1 << 14):
        part = address[i : i + (1 << 14)]
        x = rows_at(lists, part, probes.centroids)
        for_query = []
        norms = (x * x).sum(1) if metric == "l2" else torch.zeros(x.shape[0], device=x.device)
        s = torch.addmm(norms, q, x.T, alpha=-2.0 if metric == "l2" else -1.0)
        value, at = torch.topk(s, min(k + _SPARE, s.shape[1]), dim=1, largest=False)
        for_query.append(value)
        best_s = torch.cat([best_s, value], 1)
        best_a = torch.cat([best_a, part[at]], 1)
        keep = torch.topk(best_s, min(k + _SPARE, best_s.shape[1]), dim=1, largest=False).indices
        best_s, best_a = torch.gather(best_s, 1, keep), torch.gather(best_a, 1, keep)
    return recheck(lists, q, best_a, k, metric, probes)


__all__ = ["Probes", "exact_scores", "recheck", "rows_at", "scan_all", "scan_each", "scan_grouped"]
