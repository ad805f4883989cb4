"""One query after the other on the CPU, in numpy: for so few queries a call costs more than its work.

Reads each probed list once, through int8 codes where there are some, and names the rows that may be among the
nearest. Knows no index class.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from qmd.ivf.lists import Lists
from qmd.ivf.metric import Metric
from qmd.ivf.slabs import Codes, Table

_Number = TypeVar("_Number", float, Tensor)

_GROUP = 16
_MOST = 512  # rows looked at again for a query, and 4 more for each hit


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
    coded = codec.query(q)
    narrow = coded.to(torch.bfloat16) if codes is not None else coded
    slack = codes.error(coded).mul_(-2.0 * alpha).tolist() if codes is not None else [0.0] * q.shape[0]
    keep = k if codes is not None else k + spare
    near = codes is None and metric == "l2" and codec.exact
    length = torch.linalg.vecdot(q, q).tolist() if near else []
    again = []
    found = []
    segs = seg.numpy()
    whole = bool(segs.min(initial=0) >= 0)
    for i, line in enumerate(segs):
        runs = line if whole else line[line >= 0]
        sizes = table.size[runs]
        ends = np.cumsum(sizes)
        if not len(runs) or not ends[-1]:
            found.append(np.zeros(0, np.int64))
            continue
        numbers = runs.tolist()
        views = [table.views[r] for r in numbers]
        one = narrow[i : i + 1]
        if codes is not None:
            parts = [torch._weight_int8pack_mm(one, *codes.views[r]) for r in numbers]
        else:
            parts = [codec.products(v[0], one[0]) for v in views]
        bias = torch.cat([v[1] for v in views] if norms is None else _cut(lists, table, runs, norms))
        value = bias.add_(torch.cat(parts, -1).view(-1), alpha=alpha).numpy()
        if const is not None:
            value += np.repeat(const[i].numpy()[line >= 0], sizes)
        if limits is not None:
            allowed = np.repeat(limits[i].numpy()[line >= 0] + ends - sizes, sizes)
            value[np.arange(value.shape[0]) >= allowed] = np.inf
        at = smallest(value, keep, slack[i], (length[i], q.shape[1]) if near else None)
        if codes is not None and at.shape[0] > _MOST + 4 * k:
            again.append(i)
            at = at[:0]
        shift = table.start[runs] - (ends - sizes)
        found.append(at + shift[np.searchsorted(ends, at, side="right")])
    if len(found) == 1:
        return torch.from_numpy(found[0][None]), again
    address = np.full((len(found), max((f.shape[0] for f in found), default=0)), -1, np.int64)
    for row, f in zip(address, found, strict=True):
        row[: f.shape[0]] = f
    return torch.from_numpy(address), again


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


def _cut(lists: Lists, table: Table, runs: np.ndarray, norms: list[Tensor]) -> list[Tensor]:
    parts = []
    for r in runs.tolist():
        slab = table.views[r][2]
        start = int(table.start[r]) - lists.slabs[slab].base
        parts.append(norms[slab][start : start + int(table.size[r])])
    return parts
