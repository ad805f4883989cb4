"""Find the nearest rows in probed lists, query by query ("matrix"). Knows no index class.

One product a list into one row of scores, one top-k: light for a few queries. Many queries: `grouped`.
Both end in `recheck`: distances from differences in float32. Where the products' rounding could have decided
which rows come so far, as it can for tight clusters far from zero, `settle` looks at all of the query's rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from qmd.ivf import loops, operators, scratch, workers
from qmd.ivf.lists import Lists
from qmd.ivf.metric import Metric
from qmd.ivf.single import read_each, rounding
from qmd.ivf.slabs import Codes, Table

SPARE = 4  # groups, or rows, looked at beyond k, against rounding in the products
SPARE_CODED = 12
_SPARE_SHADOW = 96  # rows looked at beyond 2k where int8 products chose them
_TIE = 2e-5  # distances so near to each other, relatively, are equal
ONE_BY_ONE = 16  # so few queries share too few lists for a row of scores of all
_GROUP = 16
_SCORES = 1 << 23  # scores held at a time
_RECHECK_BYTES = 3 << 20  # rows gathered at a time: they should stay in a shared cache


RowSource: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Probes:
    """What to scan. lists (n, p) int64; const (n, p) added to every score of that list, or None.

    limits (n, p): only the first so many rows of the list, or None. centroids (nlist, d): rows are residuals
    to them, or None. norms: one tensor for each slab, replacing the stored norms (inf = not allowed), or
    None. source: gives the rows (c, d) float32 at addresses (c,) that the last look compares; None: the stored ones.
    """

    lists: Tensor
    const: Tensor | None = None
    limits: Tensor | None = None
    centroids: Tensor | None = None
    norms: list[Tensor] | None = None
    source: RowSource | None = None

    def rows(self, cut: slice | Tensor) -> Probes:
        """The same for some of the queries."""
        return Probes(
            self.lists[cut],
            None if self.const is None else self.const[cut],
            None if self.limits is None else self.limits[cut],
            self.centroids,
            self.norms,
            self.source,
        )


def rows_at(lists: Lists, address: Tensor, centroids: Tensor | None) -> Tensor:
    """Decoded float32 rows at addresses (c,), freshly allocated: (c, d)."""
    raw = lists.take(address, "rows")
    rows = lists.codec.decode(raw)
    return rows if centroids is None else rows + centroids[lists.list_of(address)]


def _plain(lists: Lists, probes: Probes) -> bool:
    """Whether the stored rows are what distances are measured to."""
    return lists.codec.exact and probes.centroids is None and probes.source is None


def recheck(
    lists: Lists, q: Tensor, address: Tensor, k: int, metric: Metric, probes: Probes
) -> tuple[Tensor, Tensor]:
    """Exact top k among candidate addresses (n, c), -1 for none. -> scores (n, k) rising, addresses (n,
    k)."""
    n, c = address.shape
    d = lists.codec.d
    k_here = min(k, c)
    step = max(1, (_RECHECK_BYTES if q.device.type == "cpu" else 1 << 28) // (max(c, 1) * d * 4))
    plain = _plain(lists, probes)
    padded = q.device.type != "cpu" or bool((address < 0).any())  # asking another device would wait for it
    safe = address.clamp(min=0) if padded else address
    buffer = torch.empty(step * c, d, device=q.device) if plain and n > step else None
    score = torch.empty(n, c, device=q.device)
    for i in range(0, n if c else 0, step):
        part = safe[i : i + step].reshape(-1)
        count = part.shape[0]
        if plain:
            x = lists.take(part, "rows", None if buffer is None else buffer[:count])
        else:
            x = probes.source(part) if probes.source else rows_at(lists, part, probes.centroids)
        x, qi = x.view(-1, c, d), q[i : i + step, None]
        score[i : i + step] = x.sub_(qi).square_().sum(-1) if metric == "l2" else x.mul_(qi).sum(-1).neg_()
    if padded:
        score.masked_fill_(address < 0, float("inf"))
    if n > ONE_BY_ONE and c > 2 * k_here:  # choosing for all at once leaves less to sort
        score, at = operators.smallest(score, k_here)
        address = torch.gather(address, 1, at)
    scores, at = torch.topk(score, k_here, dim=1, largest=False)
    best = torch.gather(address, 1, at)
    if k_here < k:
        best = torch.cat([best, best.new_full((n, k - k_here), -1)], 1)
        scores = torch.cat([scores, scores.new_full((n, k - k_here), float("inf"))], 1)
    if padded or k_here < k:
        best.masked_fill_(scores == float("inf"), -1)
    return scores, best


def settle(
    lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric, best: Tensor, where: Tensor, edge: Tensor
) -> tuple[Tensor, Tensor]:
    """The answers, those from differences or float64 that rounding in float32 products may have changed. edge (n,): no
    row that was not looked at again had a smaller score."""
    plain = _plain(lists, probes)
    open_ = doubtful(q, best, edge) if metric == "l2" and plain else q.new_zeros(0)
    if lists.nlist > 1:  # each query reads lists of its own
        for i in open_.tolist():
            one = slice(i, i + 1)
            rows = addresses(lists, probes.rows(one))
            best[one], where[one] = recheck(lists, q[one], rows[None], k, metric, probes)
    elif open_.numel() and operators.has("float64", q.device):
        rows = addresses(lists, probes.rows(slice(0, 1)))
        best[open_], where[open_] = scan_all(lists, q[open_], rows, k, metric, probes, torch.float64)
    return best, where


def doubtful(q: Tensor, best: Tensor, edge: Tensor) -> Tensor:
    """Queries (n, d) whose k-th distance (n, k) a row with a score of `edge` (n,) or more may yet beat by more than
    distances of float32 differ by anyway."""
    size, last = torch.linalg.vecdot(q, q), best[:, -1]
    error = rounding(size, last, q.shape[1])
    open_: Tensor = (last > size + edge - error) & (error > _TIE * last) & (last > 0)
    return open_.nonzero().reshape(-1)


def addresses(lists: Lists, probes: Probes) -> Tensor:
    """Of all rows that one query reads."""
    table = lists.table()
    seg, _, limits = expand(table, probes)
    parts = [torch.zeros(0, dtype=torch.int64, device=seg.device)]
    for i, r in enumerate(seg[0].tolist()):
        if r >= 0:
            start, size = int(table.start[r]), int(table.size[r])
            stop = size if limits is None else min(size, int(limits[0, i]))
            parts.append(torch.arange(start, start + stop, device=seg.device))
    address = torch.cat(parts)
    return address if probes.norms is None else address[torch.isfinite(torch.cat(probes.norms)[address])]


def expand(table: Table, probes: Probes) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Runs instead of lists: run numbers (n, s) with -1 for none, and const and limits to match."""
    dev = table.on_device
    if table.most_runs <= 1:
        return dev["run"][probes.lists], probes.const, probes.limits
    lists = probes.lists.clamp(min=0)
    first, runs = dev["first"][lists], dev["runs"][lists]
    runs = torch.where(probes.lists >= 0, runs, 0)
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
    """All scores of a few queries, then the smallest. -> scores (n, k) rising (L2: squared distance, IP:
    -product), addresses (n, k).

    codes: int8 to read instead of float32 products. A query whose k nearest rows the codes' error does not
    settle is asked again without them.
    """
    table = lists.table()
    seg, const, limits = expand(table, probes)
    n, s = seg.shape
    if not table.views or not n or not s:
        return recheck(lists, q, seg[:, :0], k, metric, probes)
    wide = -(-int(table.size.max()) // _GROUP) * _GROUP
    spare = SPARE if lists.codec.exact and codes is None else _SPARE_SHADOW + k
    if q.device.type == "cpu" and n <= ONE_BY_ONE:
        address, again = read_each(lists, table, q, seg, const, limits, probes.norms, k, spare, metric, codes)
        best, where = recheck(lists, q, address, k, metric, probes)
        return _ask_again(lists, q, probes, k, metric, best, where, again)
    step = max(1, _SCORES // (s * wide))
    if n > step:
        parts = [
            scan_each(lists, q[i : i + step], probes.rows(slice(i, i + step)), k, metric, codes)
            for i in range(0, n, step)
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    value, address = _read_few(lists, table, q, probes, seg, const, limits, wide, k + spare, metric, codes)
    best, where = recheck(lists, q, address, k, metric, probes)
    open_: list[int] = []
    if codes is None and address.shape[1] < s * wide:
        return settle(lists, q, probes, k, metric, best, where, value.amax(1))
    if codes is not None and lists.codec.exact:
        open_ = unsettled(best, value.amax(1), q, codes, metric).tolist()
    elif codes is not None and address.shape[1] < s * wide:
        open_ = too_near(value, k, lists.codec.query(q), codes, metric).tolist()
    return _ask_again(lists, q, probes, k, metric, best, where, open_)


def _ask_again(
    lists: Lists,
    q: Tensor,
    probes: Probes,
    k: int,
    metric: Metric,
    best: Tensor,
    where: Tensor,
    again: list[int],
) -> tuple[Tensor, Tensor]:
    """The answers, those of the queries `again` by reading the rows themselves."""
    if again:
        at = torch.tensor(again, device=q.device)
        best[at], where[at] = scan_each(lists, q[at], probes.rows(at), k, metric)
    return best, where


def _read_few(
    lists: Lists,
    table: Table,
    q: Tensor,
    probes: Probes,
    seg: Tensor,
    const: Tensor | None,
    limits: Tensor | None,
    wide: int,
    keep: int,
    metric: Metric,
    codes: Codes | None,
) -> tuple[Tensor, Tensor]:
    """-> the `keep` smallest scores (n, keep) and their addresses. Every list is read once for its queries."""
    (n, s), dev = seg.shape, q.device
    order, counts = sort_tasks(seg.reshape(-1), len(table.views))
    scores = scratch.take("scores", n * s * wide, dev).fill_(float("inf")).view(n * s, wide)
    touched = np.nonzero(counts)[0]
    ends = np.cumsum(counts[touched])
    coded = lists.codec.query(q)

    def read(cut: slice) -> None:
        begin = int(ends[cut.start - 1]) if cut.start else 0
        own = order[begin : int(ends[cut.stop - 1])]
        _read_runs(
            lists, table, coded, probes, touched[cut], counts[touched[cut]], own, scores, metric, codes
        )

    def choose(cut: slice) -> tuple[Tensor, Tensor]:
        part = scores[cut.start * s : cut.stop * s]
        if const is not None:
            part.add_(const[cut].reshape(-1, 1))
        if limits is not None:
            part.masked_fill_(torch.arange(wide, device=dev) >= limits[cut].reshape(-1, 1), float("inf"))
        return _choose_few(table, seg[cut], part.view(-1, s * wide), keep)

    if len(touched):
        workers.share(read, len(touched))
    return workers.share_rows(choose, n)


def _read_runs(
    lists: Lists,
    table: Table,
    coded: Tensor,
    probes: Probes,
    touched: np.ndarray,
    counts: np.ndarray,
    order: Tensor,
    scores: Tensor,
    metric: Metric,
    codes: Codes | None,
) -> None:
    """Scores of the runs `touched`, for tasks `order` sorted by run, into the tasks' lines of `scores`."""
    dev, codec = coded.device, lists.codec
    alpha = -2.0 if metric == "l2" else -1.0
    per_run, runs = counts.tolist(), touched.tolist()
    who = torch.div(order, scores.shape[0] // coded.shape[0], rounding_mode="floor")
    lines = torch.split(order, per_run)
    norms = [table.views[r][1] if probes.norms is None else norms_of(lists, table, probes, r) for r in runs]
    if codes is not None:
        views = [codes.views[r] for r in runs]
        queries = coded.to(torch.bfloat16).index_select(0, who)
        visit = loops.compiled(loops.coded)
        visit(
            [v[0] for v in views],
            [v[1] for v in views],
            norms,
            list(torch.split(queries, per_run)),
            list(lines),
            scores,
            alpha,
        )
        return
    for r, m, pick, line, norm in zip(runs, per_run, torch.split(who, per_run), lines, norms, strict=True):
        rows = table.views[r][0]
        if not codec.exact or dev.type != "cpu":
            products = torch.mm(coded.index_select(0, pick), codec.factor(rows).T)
        elif m == 1:
            products = operators.row_products(rows, coded[int(pick)])[None]
        else:  # BLAS streams the longer matrix once when it comes first
            products = torch.mm(rows, coded.index_select(0, pick).T).T
        scores[:, : rows.shape[0]].index_copy_(0, line, torch.add(norm, products, alpha=alpha))


def _choose_few(table: Table, seg: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """scores (n, s * wide) of runs seg (n, s) -> the `keep` smallest (n, keep), in no order, and their addresses."""
    (n, s), dev = seg.shape, seg.device
    wide = scores.shape[1] // s
    groups = s * wide // _GROUP
    keep = min(keep, s * wide)
    if keep < groups:
        least = torch.amin(scores.view(n, _GROUP, groups), 1)
        best = torch.topk(least, keep, dim=1, largest=False, sorted=False).indices
        places = (best[..., None] + torch.arange(0, s * wide, groups, device=dev)).view(n, -1)
        value, at = torch.topk(torch.gather(scores, 1, places), keep, dim=1, largest=False, sorted=False)
        at = torch.gather(places, 1, at)
    else:
        value, at = torch.topk(scores, keep, dim=1, largest=False, sorted=False)
    slot = torch.div(at, wide, rounding_mode="floor")
    start = table.on_device["start"][torch.gather(seg, 1, slot).clamp_(min=0)]
    address = (at - slot * wide).add_(start).masked_fill_(torch.isinf(value), -1)
    return value, address


def sort_tasks(flat: Tensor, runs: int) -> tuple[Tensor, np.ndarray]:
    """Tasks by run (those of no run left out), and the number of tasks of each run."""
    if flat.device.type == "cpu":
        keys = flat.numpy()
        counts = np.bincount(keys + 1, minlength=runs + 1)
        if runs < 32000:
            keys = keys.astype(np.int16)  # numpy sorts 16 bits by radix
        order = torch.from_numpy(np.argsort(keys, kind="stable"))
    else:
        order = operators.stable_order(flat)
        counts = torch.bincount(flat + 1, minlength=runs + 1).cpu().numpy()
    return order[int(counts[0]) :], counts[1:]


def unsettled(scores: Tensor, edge: Tensor, q: Tensor, codes: Codes, metric: Metric) -> Tensor:
    """Queries whose k-th exact score (n, k) may be beaten by a row left out, though none of those had a score by
    codes below `edge` (n,)."""
    least = torch.add(edge, codes.error(q), alpha=-2.0 if metric == "l2" else -1.0)
    if metric == "l2":
        least += torch.linalg.vecdot(q, q)
    return (scores[:, -1] > least).nonzero().reshape(-1)


def too_near(value: Tensor, k: int, coded: Tensor, codes: Codes, metric: Metric) -> Tensor:
    """Queries where a row left out may be nearer than the k-th by codes, of which `value` (n, c) are the smallest
    scores."""
    gap = value.amax(1).sub_(value.kthvalue(min(k, value.shape[1]), dim=1).values)
    error = codes.error(coded)
    return (gap < error * (4.0 if metric == "l2" else 2.0)).nonzero().reshape(-1)


def scan_all(
    lists: Lists,
    q: Tensor,
    address: Tensor,
    k: int,
    metric: Metric,
    probes: Probes,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Exact top k of each query among the same rows `address` (c,); dtype: of the products that choose."""
    if address.shape[0] == 0 or q.shape[0] == 0:
        return recheck(lists, q, address[None, :0].expand(q.shape[0], 0), k, metric, probes)
    best_s = torch.full((q.shape[0], 0), float("inf"), device=q.device, dtype=dtype)
    wide = q.to(dtype)
    best_a = torch.full((q.shape[0], 0), -1, dtype=torch.int64, device=q.device)
    for i in range(0, address.shape[0], 1 << 14):
        part = address[i : i + (1 << 14)]
        x = rows_at(lists, part, probes.centroids).to(dtype)
        norms = (x * x).sum(1) if metric == "l2" else x.new_zeros(x.shape[0])
        s = torch.addmm(norms, wide, x.T, alpha=-2.0 if metric == "l2" else -1.0)
        value, at = torch.topk(s, min(k + SPARE, s.shape[1]), dim=1, largest=False)
        best_s = torch.cat([best_s, value], 1)
        best_a = torch.cat([best_a, part[at]], 1)
        keep = torch.topk(best_s, min(k + SPARE, best_s.shape[1]), dim=1, largest=False).indices
        best_s, best_a = torch.gather(best_s, 1, keep), torch.gather(best_a, 1, keep)
    best, where = recheck(lists, q, best_a, k, metric, probes)
    plain = lists.codec.exact and probes.source is None and metric == "l2" and dtype == torch.float32
    if plain and address.shape[0] > best_s.shape[1] and operators.has("float64", q.device):
        open_ = doubtful(q, best, best_s.amax(1))
        if open_.numel():
            best[open_], where[open_] = scan_all(lists, q[open_], address, k, metric, probes, torch.float64)
    return best, where
