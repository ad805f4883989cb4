"""Visits to many lists in one call. The same source runs as TorchScript, where threads do not wait for the
interpreter's lock, and as Python where there is no TorchScript. Knows no index."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., object])


_guard = threading.Lock()


def compiled(loop: _F) -> _F:
    """A function of this module as TorchScript, or as it is; compiled once, however many threads ask for it."""
    with _guard:
        ready: _F = _compile(loop)
    return ready


@lru_cache(maxsize=8)
def _compile(loop: _F) -> _F:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script: _F = torch.jit.script(loop)
            return script
    except Exception:  # noqa: BLE001 - each version of torch refuses in its own way, and the loop runs without it
        return loop


def minima(
    rows: list[Tensor],
    norms: list[Tensor],
    queries: list[Tensor],
    lines: list[Tensor],
    slots: list[Tensor],
    caps: list[Tensor],
    sizes: list[int],
    places: list[int],
    scores: Tensor,
    halves: Tensor,
    dense: Tensor,
    group: int,
    unit: int,
    alpha: float,
    into: bool,
) -> None:
    """For each i: scores of rows[i] (r, d), of any type, with queries[i] (m, d), the minima of their groups into
    lines[i] (u * unit * m,), those of their units into the lines slots[i] of dense (tasks, wide).

    sizes[i]: how many of the rows count; those beyond have infinite norms. caps[i]: of each query, only the first
    so many rows; no caps at all: all rows. slots[i] may be fewer than the queries, the last of which are
    then of no account. places[i]: where in `scores` its scores (whole groups, m) go. halves: a buffer. into: whether
    the device writes results into a part of a buffer.
    """
    none = float("inf")
    for i in range(len(rows)):
        m, count = queries[i].size(0), slots[i].size(0)
        height = (sizes[i] + group - 1) // group
        u = lines[i].numel() // (unit * m)
        read = min(norms[i].size(0), height * group)
        if len(caps) > 0:
            most = int(caps[i].max())
            if most < sizes[i]:  # no query of the piece wants more
                read = most
        full = scores.narrow(0, places[i], height * group * m).view(height * group, m)
        line, least = lines[i].view(u * unit, m), halves.narrow(0, 0, u * m).view(u, m)
        # a slice costs as much as its tenth of a small product: most pieces need none of these
        part = full if read == height * group else full[:read]
        x = rows[i] if rows[i].size(0) == read else rows[i][:read]
        x = x if x.dtype == torch.float32 else x.to(torch.float32)
        bias = (norms[i] if norms[i].size(0) == read else norms[i][:read]).unsqueeze(1)
        first = line if height == u * unit else line[:height]
        if into:
            torch.addmm(bias, x, queries[i].t(), alpha=alpha, out=part)
        else:
            part.copy_(torch.mm(x, queries[i].t()).mul_(alpha).add_(bias))
        if read < height * group:
            full[read:].fill_(none)
        if len(caps) > 0 and int(caps[i].min()) < read:
            place = torch.arange(height * group, device=full.device).unsqueeze(1)
            full[:, :count].masked_fill_(place >= caps[i], none)
        if height < u * unit:
            line[height:].fill_(none)
        if into:
            torch.amin(full.view(group, height, m), 0, out=first)
            torch.amin(line.view(unit, u, m), 0, out=least)
        else:
            first.copy_(full.view(group, height, m).min(0).values)
            least.copy_(line.view(unit, u, m).min(0).values)
        mine = least if count == m else least.narrow(1, 0, count)
        dense.narrow(1, 0, u).index_copy_(0, slots[i], mine.t())


def coded(
    codes: list[Tensor],
    scales: list[Tensor],
    norms: list[Tensor],
    queries: list[Tensor],
    slots: list[Tensor],
    scores: Tensor,
    alpha: float,
) -> None:
    """For each i: scores of codes[i] (r, d) int8 times scales[i] (r,) with queries[i] (m, d) bfloat16, into the lines
    slots[i] (m,) of scores."""
    for i in range(len(codes)):
        products = torch._weight_int8pack_mm(queries[i], codes[i], scales[i])
        value = torch.add(norms[i], products, alpha=alpha)
        scores[:, : codes[i].size(0)].index_copy_(0, slots[i], value)
