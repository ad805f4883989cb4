"""The pieces that lists are made of: slabs of memory, runs inside them, a table of all runs, int8 shadows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(slots=True)
class Slab:
    """rows (R, width) as the codec stores them, ids (R,) int64, norms (R,) float32 = ||x||^2 (L2) or 0 (IP).

    Unused places have id -1 and an infinite norm. shadow: int8 codes (R, d) and bf16 scales (R,), row ~ code *
    scale, made when a search first wants them and kept up from then on.
    """

    rows: Tensor
    ids: Tensor
    norms: Tensor
    base: int
    writable: bool = True
    free: list[tuple[int, int]] = field(default_factory=list)  # (start, rows), sorted, merged
    shadow: tuple[Tensor, Tensor] | None = None

    def columns(self) -> tuple[Tensor, ...]:
        """Everything that moves when a row moves."""
        return (self.rows, self.ids, self.norms, *(self.shadow or ()))

    def take(self, need: int) -> int:
        """Start of `need` free rows in a row, or -1."""
        for i, (start, room) in enumerate(self.free):
            if room >= need:
                if room == need:
                    del self.free[i]
                else:
                    self.free[i] = (start + need, room - need)
                return start
        return -1

    def give(self, start: int, count: int) -> None:
        spans = sorted([*self.free, (start, count)])
        merged: list[tuple[int, int]] = []
        for s, n in spans:
            if merged and merged[-1][0] + merged[-1][1] == s:
                merged[-1] = (merged[-1][0], merged[-1][1] + n)
            else:
                merged.append((s, n))
        self.free = merged


@dataclass(slots=True)
class Run:
    slab: Slab
    start: int
    size: int
    capacity: int


@dataclass(slots=True)
class Table:
    """All runs, flat, list by list (CPU). first, runs: (nlist,); start (address), size, offset (in its
    list): (runs,).

    views: of each run its rows, norms and slab number. padded: rows and norms of each run, rounded up to whole
    groups of 8 (norms beyond the run are infinite), or None where that would reach into a neighbour. at_once: what
    a search of few queries keeps."""

    first: np.ndarray
    runs: np.ndarray
    sizes: np.ndarray
    start: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    views: list[tuple[Tensor, Tensor, int]]
    padded: list[tuple[Tensor, Tensor] | None]
    most_runs: int
    on_device: dict[str, Tensor]
    at_once: object = None


@dataclass(slots=True)
class Codes:
    """int8 rows with a scale each, shadows of float32 rows or rows that are stored so. How far they are off: worst >=
    ||row - code * scale|| and reach >= ||code * scale|| over all rows that have been here."""

    views: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    worst: float = 0.0
    reach: float = 0.0

    @torch.inference_mode(False)
    def make(self, slab: Slab) -> None:
        n, d = slab.rows.shape
        device = slab.rows.device
        slab.shadow = (
            torch.zeros(n, d, dtype=torch.int8, device=device),
            torch.zeros(n, dtype=torch.bfloat16, device=device),
        )

    def encode(self, slab: Slab, start: int, stop: int) -> None:
        assert slab.shadow is not None
        codes, scales = slab.shadow
        for a in range(start, stop, 4096):
            b = min(stop, a + 4096)
            x = slab.rows[a:b]
            # bfloat16 keeps 8 bits: a half percent more never rounds below
            step = (x.abs().amax(1) * (1.005 / 127)).clamp_(min=1e-30).to(torch.bfloat16)
            wide = step.to(torch.float32)[:, None]
            code = (x / wide).round_().clamp_(-127, 127)
            codes[a:b] = code
            scales[a:b] = step
            back = code.mul_(wide)
            self.reach = max(self.reach, float(back.norm(dim=1).max()) * 1.00001)
            self.worst = max(self.worst, float(back.sub_(x).norm(dim=1).max()) * 1.00001)

    def error(self, q: Tensor) -> Tensor:
        """(n,): no product of a query (n, d) with a code is further from the exact one, the rounding of the query and
        of the product to bfloat16 (2^-9 each) included."""
        sizes: Tensor = torch.linalg.vector_norm(q, dim=1)
        return sizes.mul_(self.worst + (2 * 2.0**-9 + 1e-5) * self.reach)


def longest(rows: Tensor) -> float:
    """No row of (n, d) int8 is longer."""
    return max(float(part.to(torch.float32).norm(dim=1).max()) for part in torch.split(rows, 4096)) * 1.00001


def copy_rows(source: Slab, span: slice, target: Slab, to: slice) -> None:
    for t, s in zip(target.columns(), source.columns(), strict=True):
        t[to] = s[span]


def padded_to_groups(run: Run) -> tuple[Tensor, Tensor] | None:
    stop = -(-run.size // 8) * 8
    if stop > run.capacity:
        return None
    span = slice(run.start, run.start + stop)
    return run.slab.rows[span], run.slab.norms[span]
