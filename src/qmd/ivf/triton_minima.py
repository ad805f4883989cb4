"""The one kernel: products of a tile of rows with a tile of queries, of which only minima leave the chip.

For NVIDIA and AMD cards, through Triton. A program makes one tile (see `tiles`): for each of the GROUP rows of its 64
groups one product of 64 rows with the queries, keeping the smaller score in registers; then the minimum over the
groups of each unit. Scores never reach memory: group minima are an eighth of them (or half, for wide rows), unit
minima a sixty-fourth.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from qmd.ivf.tiles import Job

PRECISIONS = ("ieee", "tf32x3") if torch.version.hip is None else ("ieee",)
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError, OSError, ValueError, subprocess.SubprocessError, triton.TritonError,
)  # fmt: skip
_TYPES = {
    torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.int8: tl.int8,
}  # fmt: skip


def runs_on(device: torch.device) -> bool:
    """Whether Triton makes code for the device: NVIDIA cards from Volta on, and AMD's."""
    return device.type == "cuda" and (
        torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)
    )


@triton.jit(do_not_specialize=["slots", "wide", "alpha"])
def minima_kernel(
    row_at, norm_at, queries, minima, dense, order, tile_run, tile_nth, sizes, all_units, counts, begins, firsts,
    limits, slots, wide, alpha,
    D: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr,
    DEPTH: tl.constexpr, KIND: tl.constexpr, LIMITED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    run = tl.load(tile_run + tile)
    nth = tl.load(tile_nth + tile)
    size = tl.load(sizes + run)
    units = tl.load(all_units + run)
    count = tl.load(counts + run)
    begin = tl.load(begins + run)
    across = (units + BLOCK - 1) // BLOCK
    height = (size + GROUP - 1) // GROUP
    lane = tl.arange(0, UNIT * BLOCK)
    column = nth % across * BLOCK + lane % BLOCK
    group = lane // BLOCK * units + column
    inside = column < units
    task = nth // across * QUERIES + tl.arange(0, QUERIES)
    some = task < count
    slot = tl.load(order + tl.load(firsts + run) + task, mask=some, other=0)
    who = slot // slots
    rows = tl.load(row_at + run).to(tl.pointer_type(KIND))
    norms = tl.load(norm_at + run).to(tl.pointer_type(tl.float32))
    least = tl.full((UNIT * BLOCK, QUERIES), float("inf"), tl.float32)
    for g in range(GROUP):
        row = g * height + group
        real = inside & (group < height) & (row < size)
        product = tl.zeros((UNIT * BLOCK, QUERIES), tl.float32)
        for k in range(0, D, DEPTH):
            at = k + tl.arange(0, DEPTH)
            x = tl.load(
                rows + row[:, None] * D + at[None, :], mask=real[:, None] & (at < D)[None, :], other=0
            )
            q = tl.load(
                queries + who[None, :] * D + at[:, None], mask=some[None, :] & (at < D)[:, None], other=0.0
            )
            product = tl.dot(x.to(tl.float32), q, product, input_precision=PRECISION)
        score = tl.load(norms + row, mask=real, other=float("inf"))[:, None] + alpha * product
        if LIMITED:
            limit = tl.load(limits + slot, mask=some, other=0)
            score = tl.where(row[:, None] < limit[None, :], score, float("inf"))
        least = tl.minimum(least, score)
    tl.store(
        minima + begin + group[:, None] * count + task[None, :], least, mask=inside[:, None] & some[None, :]
    )
    best = tl.min(tl.reshape(least, (UNIT, BLOCK, QUERIES)), axis=0)
    column = nth % across * BLOCK + tl.arange(0, BLOCK)
    tl.store(
        dense + slot[None, :] * wide + column[:, None], best, mask=(column < units)[:, None] & some[None, :]
    )


def least(job: Job, row_at: Tensor, norm_at: Tensor, minima: Tensor, dense: Tensor, precision: str) -> None:
    """All tiles of the job in one launch. row_at, norm_at (runs,): addresses in memory of runs' first row and norm."""
    codec = job.lists.codec
    limits: Any = job.limits if job.limits is not None else job.order
    minima_kernel[(job.run.shape[0],)](
        row_at, norm_at, job.coded, minima, dense, job.order, job.run, job.nth, job.table.on_device["size"],
        job.units, job.counts, job.begin, job.first, limits, job.slots, job.wide, job.alpha,
        D=codec.d, GROUP=job.group, UNIT=job.unit, BLOCK=job.block, QUERIES=job.queries, DEPTH=32,
        KIND=_TYPES[codec.dtype], LIMITED=job.limits is not None, PRECISION=precision,
    )  # fmt: skip
