"""One query after the other on the CPU, in numpy: for so few queries a call costs more than its work.

Reads each probed list once, through int8 codes where there are some, and names the rows that may be among the
nearest; `AtOnce` does a whole plain search so. Knows no index class.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from qmd.ivf.lists import Lists
from qmd.ivf.metric import Metric
from qmd.ivf.operators import row_products
from qmd.ivf.slabs import Codes, Table

_Number = TypeVar("_Number", float, Tensor)

_GROUP = 16
_MOST = 512  # rows looked at again for a query, and 4 more for each hit
_NONE = np.zeros(0, np.int64)


def read_each(
    lists: Lists,
    table: Table,
    q: Tensor,
    seg: Tensor,
    const: Tensor | None,
    limits: Tensor | None,
    norms: list[Tensor] | None,
    k: int,
    spare: int,
    metric: Metric,
    codes: Codes | None,
) -> tuple[Tensor, list[int]]:
    """-> addresses (n, c) of rows among which the k nearest are, -1 for none; and queries of which too many rows
    came so near that the rows themselves had better be read.

    seg, const, limits: (n, s), runs and what `Probes` says of them; norms: instead of the stored ones, by slab.
    With codes, whose error is bounded, no nearest row can be missed; else `spare` rows allow for rounding.
    """
    codec = lists.codec
    alpha = -2.0 if metric == "l2" else -1.0
    coded, segs = codec.query(q), seg.numpy()
    slack = codes.error(coded).mul_(-2.0 * alpha).tolist() if codes is not None else [0.0] * q.shape[0]
    keep = k if codes is not None else k + spare
    near = codes is None and metric == "l2" and codec.exact
    length = torch.linalg.vecdot(q, q).tolist() if near else []
    if codes is not None:
        parts = coded_products(codes, coded.to(torch.bfloat16), segs)
    else:
        parts = [
            [codec.products(table.views[r][0], one)[None] for r in line if r >= 0]
            for line, one in zip(segs.tolist(), coded, strict=True)
        ]
    whole = bool(segs.min(initial=0) >= 0)
    again = []
    found = []
    for i, runs in enumerate(segs):
        real = slice(None) if whole else runs >= 0
        runs = runs[real]
        sizes = table.size[runs]
        ends = np.cumsum(sizes)
        if not len(runs) or not ends[-1]:
            found.append(_NONE)
            continue
        numbers = runs.tolist()
        bias = [table.views[r][1] for r in numbers] if norms is None else _cut(lists, table, numbers, norms)
        value = torch.cat(bias).add_(torch.cat(parts[i], 1).view(-1), alpha=alpha).numpy()
        if const is not None:
            value += np.repeat(const[i].numpy()[real], sizes)
        if limits is not None:
            allowed = np.repeat(limits[i].numpy()[real] + ends - sizes, sizes)
            value[np.arange(value.shape[0]) >= allowed] = np.inf
        at = smallest(value, keep, slack[i], (length[i], q.shape[1]) if near else None)
        if codes is not None and at.shape[0] > _MOST + 4 * k:
            again.append(i)
            at = at[:0]
        found.append(at + (table.start[runs] - ends + sizes)[ends.searchsorted(at, side="right")])
    if len(found) == 1:
        return torch.from_numpy(found[0][None]), again
    address = np.full((len(found), max((f.shape[0] for f in found), default=0)), -1, np.int64)
    for row, f in zip(address, found, strict=True):
        row[: f.shape[0]] = f
    return torch.from_numpy(address), again


def coded_products(codes: Codes, queries: Tensor, segs: np.ndarray) -> list[list[Tensor]]:
    """Of each query (n, d) bfloat16, the products (1, r) with each of its runs segs[i] (s,), those of -1 left out. A
    run that several queries want is read once."""
    views = codes.views
    if len(segs) == 1:
        return [[torch._weight_int8pack_mm(queries, *views[r]) for r in segs[0].tolist() if r >= 0]]
    flat, s = segs.reshape(-1), segs.shape[1]
    order = np.argsort(flat, kind="stable")
    order = order[np.count_nonzero(flat < 0) :]
    runs = flat[order]
    edges = np.flatnonzero(np.diff(runs, prepend=-1, append=-1)).tolist()
    numbers, tasks, asked = runs.tolist(), order.tolist(), (order // s).tolist()
    made: dict[int, Tensor] = {}
    ones = torch.split(queries, 1)
    for begin, end in itertools.pairwise(edges):
        code, scale = views[numbers[begin]]
        if end == begin + 1:
            made[tasks[begin]] = torch._weight_int8pack_mm(ones[asked[begin]], code, scale)
        else:
            some = torch._weight_int8pack_mm(torch.cat([ones[i] for i in asked[begin:end]]), code, scale)
            made.update(zip(tasks[begin:end], torch.split(some, 1), strict=True))
    return [[made[t] for t in range(i * s, i * s + s) if t in made] for i in range(len(segs))]


def rounding(size: _Number, near: _Number, d: int) -> _Number:
    """How far float32 products put the scores of rows within the squared distance `near` of a query of squared length
    `size`: such a row is no longer than `reach`, and d roundings mostly make up for one another."""
    reach = size**0.5 + near**0.5
    error: _Number = reach * (size**0.5 * d**0.5 + reach) * (4 * 2.0**-24)
    return error


def smallest(value: np.ndarray, k: int, slack: float, plain: tuple[float, int] | None = None) -> np.ndarray:
    """Places (rising) of all finite values (n,) up to `slack` above the k-th smallest, and of a few more. plain: the
    query's squared length and d, where instead of slack the rounding of float32 products counts.

    The k-th smallest minimum of groups stands for the k-th smallest value, which is not above it.
    """
    n = value.shape[0]
    least = value if n < 2 * _GROUP * k else value[: n // _GROUP * _GROUP].reshape(_GROUP, -1).min(0)
    edge = np.inf if least.shape[0] <= k else np.partition(least, k - 1)[k - 1]
    if plain is not None and edge < np.inf:
        slack = 2 * rounding(plain[0], max(plain[0] + float(edge), 0.0), plain[1])
    return np.flatnonzero(value <= edge + slack if edge < np.inf else value < np.inf)


def _cut(lists: Lists, table: Table, runs: list[int], norms: list[Tensor]) -> list[Tensor]:
    parts = []
    for r in runs:
        slab = table.views[r][2]
        start = int(table.start[r]) - lists.slabs[slab].base
        parts.append(norms[slab][start : start + int(table.size[r])])
    return parts


@dataclass(frozen=True, slots=True)
class AtOnce:
    """What a search of few queries reads that wants nothing but the nearest rows, all of them in one slab.

    rows: where the codes' rows lie, or at their ids where by_id. offset: taken off the queries; step: they are
    multiplied by it before they meet codes. table: run of each list, start and size of each run; norms: of each run.
    """

    codes: Codes
    table: tuple[np.ndarray, np.ndarray, np.ndarray]
    norms: list[np.ndarray]
    centroids: Tensor
    bias: np.ndarray
    offset: Tensor | None
    step: Tensor | None
    ids: Tensor
    rows: Tensor
    by_id: bool
    metric: Metric

    @classmethod
    def of(
        cls,
        lists: Lists,
        codes: Codes,
        centroids: Tensor,
        bias: Tensor,
        offset: Tensor | None,
        metric: Metric,
        rows: Tensor | None = None,
    ) -> AtOnce | None:
        """rows: by id, instead of those that the codes stand for. None where lists do not lie as is wanted."""
        table = lists.table()
        if len(lists.slabs) != 1 or table.most_runs > 1:
            return None
        slab = lists.slabs[0]
        return cls(
            codes=codes,
            table=(table.on_device["run"].numpy(), table.start, table.size),
            norms=[v[1].numpy() for v in table.views],
            centroids=centroids,
            bias=bias.numpy(),
            offset=offset,
            step=getattr(lists.codec, "step", None),
            ids=slab.ids,
            rows=slab.rows if rows is None else rows,
            by_id=rows is not None,
            metric=metric,
        )

    def stands(self, codes: Codes, centroids: Tensor, rows: Tensor | None) -> bool:
        """Whether it is still what `of` would make of the same lists."""
        same = self.codes is codes and self.centroids is centroids and self.by_id == (rows is not None)
        return same and (rows is None or rows is self.rows)

    def search(self, queries: Any, nprobe: int, k: int, keep: int) -> tuple[Tensor, Tensor] | None:
        """queries (n, d): distances and ids (n, k) of the k best of the `keep` best by codes. None where they are not
        plain finite float32, or where the codes leave too much open."""
        if isinstance(queries, Tensor):
            if queries.device.type != "cpu" or queries.dtype != torch.float32 or queries.requires_grad:
                return None
            queries = queries.numpy()
        if (
            not isinstance(queries, np.ndarray)
            or queries.dtype != np.float32
            or not queries.flags.c_contiguous
        ):
            return None
        lists, d = self.centroids.shape
        if not queries.flags.writeable or not queries.dtype.isnative or queries.shape[1] != d:
            return None
        q = torch.from_numpy(queries)
        with torch.inference_mode():
            answers = self._answer(q, min(nprobe, lists), k, keep)
            if answers is None:
                return None
            best = torch.stack([a[0] for a in answers])
            where = torch.stack([a[1] for a in answers])
            if not self.by_id:
                where = self.ids.index_select(0, where.view(-1)).view(where.shape)
        return (best if self.metric == "l2" else -best).clone(), where.clone()

    def _answer(self, q: Tensor, nprobe: int, k: int, keep: int) -> list[tuple[Tensor, Tensor]] | None:
        """Of each query its k best scores and where they are."""
        run, start, size = self.table
        alpha = np.float32(-2.0 if self.metric == "l2" else -1.0)
        if self.offset is not None:
            q = q - self.offset
        coded = q if self.step is None else q * self.step
        if len(q) == 1:
            score = row_products(self.centroids, q[0]).numpy()[None]
        else:
            score = torch.mm(q, self.centroids.T).numpy()
        score = score * alpha + self.bias
        if not np.isfinite(score.sum()):
            return None
        seg = run[np.argpartition(score, nprobe - 1, axis=1)[:, :nprobe]]
        parts = coded_products(self.codes, coded.to(torch.bfloat16), seg)
        slack = self.codes.error(coded).mul_(-2.0 * float(alpha)).tolist()
        answers = []
        for i, runs in enumerate(seg):
            if runs.min() < 0:
                runs = runs[runs >= 0]
            if not len(runs):
                return None
            sizes = size[runs]
            ends = sizes.cumsum()
            norms = self.norms
            value = torch.cat(parts[i], 1).to(torch.float32).numpy()[0]
            value *= alpha
            value += np.concatenate([norms[r] for r in runs.tolist()])
            at = smallest(value, keep, slack[i])
            if not k <= at.shape[0] <= _MOST + 4 * keep:
                return None
            at += (start[runs] - ends + sizes)[ends.searchsorted(at, side="right")]
            address = torch.from_numpy(at)
            if self.by_id:
                address = self.ids.index_select(0, address)
            x = self.rows.index_select(0, address)
            exact = x.sub_(q[i]).square_().sum(-1) if self.metric == "l2" else x.mul_(q[i]).sum(-1).neg_()
            best, order = torch.topk(exact, k, largest=False)
            answers.append((best, address.index_select(0, order)))
        return answers
