"""All queries of a list together ("csr"): one product a list, minima of groups, minima of units, then rows.

A group is GROUP rows of a list, a unit is UNIT groups. Of every group only the smallest score is kept, of every unit
the smallest of those. The k units with the smallest minima hold the k smallest group minima, and those k
groups hold the k nearest rows: only their rows are looked at again. Both are strided (group b of B has rows
b, b + B, b + 2B ...) and scores lie row by row, a column for each query, so that a minimum is one operation over
whole lines of memory however few the queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qmd.ivf import loops, operators, scratch, tiles, workers
from qmd.ivf.lists import Lists
from qmd.ivf.metric import Metric
from qmd.ivf.scan import SPARE, SPARE_CODED, Probes, expand, norms_of, recheck, settle, sort_tasks
from qmd.ivf.slabs import Table
from qmd.ivf.tiles import Minima

SHAPES = ((512, 2, 32), (192, 4, 16), (0, 8, 8))
"""(d from, GROUP, UNIT): the wider the rows, the fewer of them should be looked at again. A unit has 64 rows."""
_QUERY_BLOCK = 2048  # queries of one pass
_MINIMA = 1 << 24  # group minima of one pass: more would be memory that is not kept
_KEPT = 20 << 20  # scores of one pass that are all kept: a query's best groups are then not read again
_FAR_BLOCK, _FAR_MINIMA = 1 << 15, 1 << 27  # the same for devices that want much work at once
_SCORE_BLOCK = 512  # queries of one product
_GATHERED = 1 << 20  # values of queries laid side by side for the next products
_VECTOR, _LOOSE = 8, 5  # queries of a product are a multiple of _VECTOR, unless they are no more than _LOOSE
_INF = float("inf")


def shape_of(d: int) -> tuple[int, int]:
    """Rows of a group and groups of a unit, for rows of d values."""
    return next((group, unit) for least, group, unit in SHAPES if d >= least)


def scan_grouped(lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """-> scores (n, k) rising (L2: squared distance, IP: -product), addresses (n, k)."""
    n = q.shape[0]
    group, _ = shape_of(lists.codec.d)
    sizes = lists.table().sizes.astype(np.float64)  # long lists are probed more often
    reach = float((sizes * sizes).sum() / max(1.0, sizes.sum())) * probes.lists.shape[1] / group
    block, most = (_FAR_BLOCK, _FAR_MINIMA) if tiles.wanted(q.device) else (_QUERY_BLOCK, _MINIMA)
    passes = -(-n // max(1, min(block, (1 << 23) // max(k, 1), int(most / max(1.0, reach)))))
    step = -(-n // max(1, passes))
    if n <= step:
        return _scan_block(lists, q, probes, k, metric)
    parts = []
    for i in range(0, n, step):
        cut = slice(i, i + step)
        parts.append(_scan_block(lists, q[cut], probes.rows(cut), k, metric))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Products to make: `run`, `count` queries, and where the piece's group minima begin; all (pieces,).

    width: columns of the product, the count rounded up: BLAS kernels take whole vectors of queries, and what is left
    over one by one, so that 47 cost 1.6 times what 48 do.
    score, scores: where its scores begin, and how many there are, 0 where they are not kept.
    units, height: (runs,), units and groups of each run. A piece's minima are `unit` * units lines of `width` values.
    """

    group: int
    unit: int

    run: np.ndarray
    count: np.ndarray
    width: np.ndarray
    begin: np.ndarray
    score: np.ndarray
    total: int
    scores: int
    units: np.ndarray
    height: np.ndarray

    @classmethod
    def of(cls, d: int, counts: np.ndarray, size: np.ndarray, most: int) -> _Pieces:
        """counts: tasks of each run; no piece has more than `most`."""
        group, unit = shape_of(d)
        units = -(-size // (group * unit))
        number = -(-counts // most)
        run = np.repeat(np.arange(len(counts)), number)
        nth = np.arange(len(run)) - np.repeat(np.cumsum(number) - number, number)
        count = np.minimum(counts[run] - nth * most, most)
        width = np.where(count > _LOOSE, -(-count // _VECTOR) * _VECTOR, count)
        height = -(-size // group)
        room, all_ = width * units[run] * unit, width * height[run] * group
        begin, score = np.cumsum(room) - room, np.cumsum(all_) - all_
        total, scores = int(room.sum()), int(all_.sum())
        if scores > _KEPT:  # one buffer for all, one after the other
            score, scores = np.zeros_like(score), 0
        return cls(group, unit, run, count, width, begin, score, total, scores, units, height)

    def cut(self, cut: slice) -> _Pieces:
        """Some of the pieces."""
        return replace(
            self,
            run=self.run[cut],
            count=self.count[cut],
            width=self.width[cut],
            begin=self.begin[cut],
            score=self.score[cut],
        )


def _scan_block(lists: Lists, q: Tensor, probes: Probes, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    dev, table = q.device, lists.table()
    seg, const, limits = expand(table, probes)
    n, s = seg.shape
    if not table.views or not n or not s:
        return recheck(lists, q, seg[:, :0], k, metric, probes)
    flat = seg.reshape(-1)
    if limits is not None:  # a list of which nothing is to be read is no task
        flat = flat.masked_fill(limits.reshape(-1) <= 0, -1)
    made = (_by_tiles if tiles.wanted(dev) else _by_run)(lists, table, q, probes, flat, limits, metric)
    if const is not None:
        made.dense.add_(const.reshape(-1, 1))
    seg = flat.view(n, s)
    allowed = None
    if probes.norms is not None:
        allowed = probes.norms[0] if len(probes.norms) == 1 else torch.cat(probes.norms)

    def choose(cut: slice) -> tuple[Tensor, Tensor]:
        inner = made.tasks(slice(cut.start * s, cut.stop * s))
        own = None if const is None else const[cut], None if limits is None else limits[cut]
        near, edge = _candidates(table, inner, seg[cut], own, allowed, k, lists)
        best, where = recheck(lists, q[cut], near, k, metric, probes)
        if edge is None or tiles.wanted(dev):  # asking another device would wait for it
            return best, where
        return settle(lists, q[cut], probes.rows(cut), k, metric, best, where, edge)

    return workers.share_rows(choose, n)


def _candidates(
    table: Table,
    made: Minima,
    seg: Tensor,
    own: tuple[Tensor | None, Tensor | None],
    allowed: Tensor | None,
    k: int,
    lists: Lists,
) -> tuple[Tensor, Tensor | None]:
    """Addresses (n, c) among which the k nearest are, -1 for none, and a score (n,) that no other row is below, None
    where there is no other. seg: (n, s), run of each task; own: const and
    limits of the tasks (see `Probes`); allowed: norms, inf for a row that is excluded."""
    (n, s), dev, (const, limits) = seg.shape, seg.device, own
    flat, dense, minima = seg.reshape(-1), made.dense, made.minima
    group_rows, unit_groups = shape_of(lists.codec.d)
    wide = dense.shape[1]
    spare = SPARE if lists.codec.exact else SPARE_CODED
    least, at = operators.smallest(dense.view(n, s * wide), min(k + spare, s * wide))
    slot = torch.div(at, wide, rounding_mode="floor")
    column = at - slot * wide
    slot += torch.arange(0, n * s, s, device=dev)[:, None]
    run = flat.index_select(0, slot.view(-1)).view(slot.shape).clamp_(min=0)
    units = made.units[run]
    lane = torch.arange(unit_groups, device=dev)
    stride_here = made.stride[slot]
    place = (made.first[slot] + column * stride_here)[..., None] + (units * stride_here)[..., None] * lane
    value = minima.index_select(0, place.view(-1).clamp_(max=max(minima.shape[0] - 1, 0))).view(n, -1)
    if const is not None:
        value.view(place.shape).add_(const.reshape(-1)[slot][..., None])
    value.view(place.shape).masked_fill_(torch.isinf(least)[..., None], _INF)
    keep = k + spare
    all_ = value.shape[1] <= keep
    value, at = operators.smallest(value, min(keep, value.shape[1]))
    unit = torch.div(at, unit_groups, rounding_mode="floor")
    run = torch.gather(run, 1, unit)
    group = torch.gather(column, 1, unit) + (at - unit * unit_groups) * torch.gather(units, 1, unit)
    row = group[..., None] + torch.arange(group_rows, device=dev) * made.height[run][..., None]
    if made.scores is not None and made.begin is not None:
        slots = torch.gather(slot, 1, unit)
        place = made.begin[slots][..., None] + row * made.stride[slots][..., None]
        place.masked_fill_(torch.isinf(value)[..., None], 0)
        score = made.scores.index_select(0, place.view(-1)).view(place.shape)
        if const is not None:
            score.add_(const.reshape(-1)[slots][..., None])
        score.masked_fill_(torch.isinf(value)[..., None], _INF)
        row += table.on_device["start"][run][..., None]
        value, at = operators.smallest(score.view(n, -1), min(keep, score[0].numel()))
        near = torch.gather(row.view(n, -1), 1, at).masked_fill_(torch.isinf(value), -1)
        return near, value.amax(1)
    size = table.on_device["size"][run]
    if limits is not None:
        slots = torch.gather(slot, 1, unit)
        size = torch.minimum(size, limits.reshape(-1)[slots])
    bad = (row >= size[..., None]) | torch.isinf(value)[..., None]
    candidates = row.add_(table.on_device["start"][run][..., None]).masked_fill_(bad, -1).view(n, -1)
    if allowed is not None:  # a row beside an allowed one may itself be excluded
        candidates.masked_fill_(torch.isinf(allowed[candidates.clamp(min=0)]), -1)
    return candidates, None if all_ else value.amax(1)


def _by_tiles(
    lists: Lists, table: Table, q: Tensor, probes: Probes, flat: Tensor, limits: Tensor | None, metric: Metric
) -> Minima:
    ones = torch.ones_like(flat)
    counts = torch.zeros(len(table.views) + 1, dtype=torch.int64, device=q.device).index_add_(
        0, flat + 1, ones
    )
    caps = None if limits is None else limits.reshape(-1)
    coded, shape = lists.codec.query(q), shape_of(lists.codec.d)
    return tiles.make(
        lists, table, probes, coded, flat, operators.stable_order(flat), counts, caps, metric, shape
    )


def _by_run(
    lists: Lists, table: Table, q: Tensor, probes: Probes, flat: Tensor, limits: Tensor | None, metric: Metric
) -> Minima:
    dev, tasks = q.device, flat.shape[0]
    order, counts = sort_tasks(flat, len(table.views))
    pieces = _Pieces.of(lists.codec.d, counts, table.size, _SCORE_BLOCK)
    wide = int(pieces.units[counts > 0].max(initial=1))
    minima = scratch.take("minima", pieces.total, dev)
    kept = scratch.take("kept", pieces.scores, dev) if pieces.scores else None
    dense = scratch.take("units", tasks * wide, dev).fill_(_INF).view(tasks, wide)
    coded, starts = lists.codec.query(q), np.cumsum(pieces.count) - pieces.count

    def fill(cut: slice) -> None:
        some = pieces.cut(cut)
        begin = int(starts[cut.start])
        own = order[begin : begin + int(some.count.sum())]
        _fill(lists, table, probes, coded, some, own, minima, dense, kept, metric, limits)

    if len(pieces.run):
        workers.share(fill, len(pieces.run))
    first, begin, stride = _places(pieces, order, tasks)
    units, height = torch.from_numpy(pieces.units), torch.from_numpy(pieces.height)
    return Minima(minima, dense, first, stride, units, height, kept, begin)


def _places(pieces: _Pieces, order: Tensor, tasks: int) -> Tensor:
    """Where each task's first group minimum lies, where its first score does, and how far apart either are: (3,
    tasks)."""
    ends = np.cumsum(pieces.count)
    column = np.arange(order.shape[0]) - np.repeat(ends - pieces.count, pieces.count)
    places = torch.zeros(3, tasks, dtype=torch.int64)
    for line, begin in enumerate((pieces.begin, pieces.score)):
        places[line, order] = torch.from_numpy(np.repeat(begin, pieces.count) + column)
    places[2, order] = torch.from_numpy(np.repeat(pieces.width, pieces.count))
    return places


def _fill(
    lists: Lists,
    table: Table,
    probes: Probes,
    coded: Tensor,
    pieces: _Pieces,
    order: Tensor,
    minima: Tensor,
    dense: Tensor,
    kept: Tensor | None,
    metric: Metric,
    limits: Tensor | None,
) -> None:
    """Minima of the groups of every touched run into `minima`, of its units into its tasks' lines of `dense`, all
    scores into `kept`."""
    dev, codec = coded.device, lists.codec
    most = int(pieces.width.max(initial=1))
    longest = int(pieces.height[pieces.run].max(initial=0)) * pieces.group
    scores = scratch.take("scores", most * longest, dev) if kept is None else kept
    halves = scratch.take("halves", most * int(pieces.units[pieces.run].max(initial=1)), dev)
    room = pieces.units[pieces.run] * (pieces.unit * pieces.width)
    lines = torch.split(minima[int(pieces.begin[0]) : int(pieces.begin[-1] + room[-1])], room.tolist())
    counts, runs = pieces.count.tolist(), pieces.run.tolist()
    slots = torch.split(order, counts)
    caps = torch.split(limits.reshape(-1)[order], counts) if limits is not None else ()
    visit = loops.compiled(loops.minima)
    into = operators.has("mm_out", dev) and operators.has("amin_out", dev)
    decoded = codec.qtype == "pq"  # one run at a time
    at = 0
    for queries in _queries_of(coded, order, pieces, dense.shape[0] // coded.shape[0]):
        some = slice(at, at := at + len(queries))
        for part in [slice(i, i + 1) for i in range(some.start, some.stop)] if decoded else [some]:
            views = [_read_of(lists, table, probes, r) for r in runs[part]]
            visit(
                [codec.factor(rows) if decoded else rows for rows, _ in views],
                [norms for _, norms in views],
                list(queries[part.start - some.start : part.stop - some.start]),
                list(lines[part]),
                list(slots[part]),
                list(caps[part]),
                table.size[pieces.run[part]].tolist(),
                pieces.score[part].tolist(),
                scores,
                halves,
                dense,
                pieces.group,
                pieces.unit,
                -2.0 if metric == "l2" else -1.0,
                into,
            )


def _read_of(lists: Lists, table: Table, probes: Probes, run: int) -> tuple[Tensor, Tensor]:
    """Rows and norms of a run; whole groups where it can be, rows beyond the run have infinite norms."""
    if probes.norms is not None:
        return table.views[run][0], norms_of(lists, table, probes, run)
    padded = table.padded[run]
    return table.views[run][:2] if padded is None else padded


def _queries_of(coded: Tensor, order: Tensor, pieces: _Pieces, slots: int) -> Iterator[tuple[Tensor, ...]]:
    """Of each piece, some pieces at a time, its queries (width, d), the last again where the product is wider."""
    wide = np.cumsum(pieces.width)
    begin = np.cumsum(pieces.count) - pieces.count
    nth = np.arange(int(wide[-1])) - np.repeat(wide - pieces.width, pieces.width)
    task = np.repeat(begin, pieces.width) + np.minimum(nth, np.repeat(pieces.count - 1, pieces.width))
    who = torch.div(order, slots, rounding_mode="floor").index_select(
        0, torch.from_numpy(task).to(order.device)
    )
    step = max(1, _GATHERED // coded.shape[1])
    edge = 0
    while edge < len(wide):
        before = int(wide[edge - 1]) if edge else 0
        stop = max(edge + 1, int(np.searchsorted(wide, before + step, side="right")))
        some = who[before : int(wide[stop - 1])]
        into = scratch.take("queries", some.shape[0] * coded.shape[1], coded.device).view(-1, coded.shape[1])
        yield torch.split(operators.take_rows(coded, some, into), pieces.width[edge:stop].tolist())
        edge = stop
