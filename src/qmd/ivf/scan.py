"""Find the nearest rows in probed lists, query by query ("matrix"). Knows no index class.

One product a list into one row of scores, one top-k: light for a few queries. Many queries: `grouped`.
Both end in `recheck`: distances from differences in float32, so rounding in the products decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qmd.ivf import operators
from qmd.ivf.lists import Codes, Lists, Table
from qmd.ivf.metric import Metric

SPARE = 4  # groups, or rows, looked at beyond k, against rounding in the products
SPARE_CODED = 12
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

    def rows(self, cut: slice | Tensor) -> Probes:
        """The same for some of the queries."""
        return Probes(
            self.lists[cut],
            None if self.const is None else self.const[cut],
            None if self.limits is None else self.limits[cut],
            self.centroids,
            self.norms,
        )


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


def expand(table: Table, probes: Probes) -> tuple[Tensor, Tensor | None, Tensor | None]:
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


def norms_of(lists: Lists, table: Table, probes: Probes, seg: int) -> Tensor:
    if probes.norms is None:
        return table.views[seg][1]
    slab = lists.slabs[table.views[seg][2]]
    start = int(table.start[seg]) - slab.base
    return probes.norms[table.views[seg][2]][start : start + int(table.size[seg])]


def scan_each(
    lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric, codes: Codes | None = None
) -> tuple[Tensor, Tensor]:
    """One query after the other. -> scores (n, k) rising (L2: squared distance, IP: -product), addresses (n,
    k).

    codes: int8 shadows to read instead of the rows. A query whose k nearest rows the codes' error does not
    settle is asked again without them.
    """
    table = lists.table()
    codec = lists.codec
    alpha = -2.0 if metric == "l2" else -1.0
    coded = codec.query(q)
    spare = SPARE if codec.exact and codes is None else SPARE_CODED + k
    own8 = codec.qtype == "int8" and operators.has("int8_rows", q.device)
    fast8 = own8 or codes is not None
    narrow = coded.to(torch.bfloat16) if fast8 else coded
    most = int(table.size.max(initial=0)) if own8 else 0
    ones = torch.ones(most, dtype=torch.bfloat16, device=q.device)
    caps = None if probes.limits is None else probes.limits.tolist()
    found: list[Tensor] = []
    edges: list[Tensor] = []  # no row left out of `found` scores less
    for i, numbers in enumerate(probes.lists.tolist()):
        use, sizes, of_probe = _runs_to_read(table, numbers, None if caps is None else caps[i])
        if not use:
            found.append(torch.empty(0, dtype=torch.int64, device=q.device))
            edges.append(torch.full((), float("inf"), device=q.device))
            continue
        kept = [
            table.views[r][1] if probes.norms is None else norms_of(lists, table, probes, r) for r in use
        ]
        if caps is not None:
            kept = [v[:n] for v, n in zip(kept, sizes, strict=True)]
        scores = torch.cat(kept)
        if fast8:
            qi = narrow[i : i + 1]
            if codes is not None:
                pairs = [codes.views[r] for r in use]
                if caps is not None:
                    pairs = [(x[:n], scale[:n]) for (x, scale), n in zip(pairs, sizes, strict=True)]
            else:
                pairs = [(table.views[r][0][:n], ones[:n]) for r, n in zip(use, sizes, strict=True)]
            products = torch.cat([torch._weight_int8pack_mm(qi, x, scale) for x, scale in pairs], 1).view(-1)
        else:
            qi = coded[i]
            parts = [table.views[r][0] for r in use]
            if caps is not None:
                parts = [x[:n] for x, n in zip(parts, sizes, strict=True)]
            products = torch.cat(
                [operators.row_products(x if codec.exact else x.to(torch.float32), qi) for x in parts]
            )
        scores.add_(products, alpha=alpha)
        counts = np.asarray(sizes)
        if probes.const is not None:
            extra = probes.const[i][torch.tensor(of_probe, device=q.device)]
            scores.add_(torch.repeat_interleave(extra, torch.from_numpy(counts).to(q.device)))
        value, at = _smallest(scores, min(k + spare, scores.shape[0]))
        ends = np.cumsum(counts)
        shift = table.start[use] - (ends - counts)
        pos = at.cpu().numpy()
        address = torch.from_numpy(pos + shift[np.searchsorted(ends, pos, side="right")]).to(q.device)
        found.append(address if probes.norms is None else address.masked_fill_(torch.isinf(value), -1))
        edges.append(value[-1] if value.shape[0] < scores.shape[0] else value.new_full((), float("inf")))
    width = max((f.shape[0] for f in found), default=0)
    if len(found) == 1:
        candidates = found[0][None]
    else:
        candidates = torch.full((len(found), width), -1, dtype=torch.int64, device=q.device)
        for i, f in enumerate(found):
            candidates[i, : f.shape[0]] = f
    best, where = recheck(lists, q, candidates, k, metric, probes)
    if codes is not None:
        again = unsettled(best, torch.stack(edges), q, codes, metric)
        if again.numel():
            best[again], where[again] = scan_each(lists, q[again], probes.rows(again), k, metric)
    return best, where


def unsettled(scores: Tensor, edge: Tensor, q: Tensor, codes: Codes, metric: Metric) -> Tensor:
    """Queries whose k-th exact score (n, k) may be beaten by a row left out, though none of those had a score by
    codes below `edge` (n,)."""
    least = edge - codes.error(q) * (2.0 if metric == "l2" else 1.0)
    if metric == "l2":
        least = least + (q * q).sum(1)
    return (scores[:, -1] > least).nonzero().reshape(-1)


def _runs_to_read(
    table: Table, numbers: list[int], caps: list[int] | None
) -> tuple[list[int], list[int], list[int]]:
    """Runs of the lists, rows of each to read, and which of the lists each is of."""
    use: list[int] = []
    sizes: list[int] = []
    of_probe: list[int] = []
    for j, list_no in enumerate(numbers):
        left = caps[j] if caps is not None else 1 << 62
        first = int(table.first[list_no])
        for r in range(first, first + int(table.runs[list_no])):
            n = min(table.views[r][0].shape[0], left)
            if n > 0:
                left -= n
                use.append(r)
                sizes.append(n)
                of_probe.append(j)
    return use, sizes, of_probe


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
        value, at = torch.topk(s, min(k + SPARE, s.shape[1]), dim=1, largest=False)
        for_query.append(value)
        best_s = torch.cat([best_s, value], 1)
        best_a = torch.cat([best_a, part[at]], 1)
        keep = torch.topk(best_s, min(k + SPARE, best_s.shape[1]), dim=1, largest=False).indices
        best_s, best_a = torch.gather(best_s, 1, keep), torch.gather(best_a, 1, keep)
    return recheck(lists, q, best_a, k, metric, probes)
