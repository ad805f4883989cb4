"""Group minima of all touched runs in a few operations, for devices that a loop over runs would leave waiting.

A tile is BLOCK unit columns of one run (of 64 rows each) against `queries` of its tasks. Where a Triton kernel runs
on the device, gives the right numbers and was the fastest when tried, it makes all tiles in one launch; else tiles
are gathered into batches for `baddbmm`. The numbers laid out are those that `grouped` wants.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from qmd.ivf.cost import time_of
from qmd.ivf.lists import Lists
from qmd.ivf.metric import Metric
from qmd.ivf.scan import Probes
from qmd.ivf.slabs import Table

LANES = 64  # group minima of a tile, for each query
_BATCH_BYTES = 1 << 28  # gathered rows and scores of one batch of tiles
_INF = float("inf")
Way: TypeAlias = Literal["batches", "ieee", "tf32x3"]
"""Torch alone; the kernel with float32 products; the kernel with three TF32 products for each, on tensor cores."""


def wanted(device: torch.device) -> bool:
    """Whether the device is one where many small operations wait for their launch."""
    return device.type != "cpu"


@dataclass(frozen=True, slots=True)
class Minima:
    """Every task's group minima and unit minima.

    minima: flat; `first`, `stride` (tasks,): a task's first minimum and how far apart its minima are. dense (tasks,
    wide): unit minima, infinite where there is no unit. units, height (runs,): units and groups of a run.
    scores, begin: all scores, where they were kept, and each task's first (tasks,); they are `stride` apart too.
    """

    minima: Tensor
    dense: Tensor
    first: Tensor
    stride: Tensor
    units: Tensor
    height: Tensor
    scores: Tensor | None = None
    begin: Tensor | None = None

    def tasks(self, cut: slice) -> Minima:
        """The same for some of the tasks."""
        begin = None if self.begin is None else self.begin[cut]
        return replace(
            self, dense=self.dense[cut], first=self.first[cut], stride=self.stride[cut], begin=begin
        )


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be made: tasks `order` (t,) sorted by run, `coded` (n, d) the queries, task // slots is a task's.

    counts, begin (runs,): tasks of a run, and where its minima begin. run, nth (tiles,): the run of a tile and its
    number there. limits (tasks,): only the first so many rows, or None.
    """

    lists: Lists
    table: Table
    probes: Probes
    coded: Tensor
    order: Tensor
    slots: int
    counts: Tensor
    begin: Tensor
    first: Tensor
    units: Tensor
    height: Tensor
    run: Tensor
    nth: Tensor
    limits: Tensor | None
    alpha: float
    group: int
    unit: int
    queries: int
    wide: int
    total: int

    @property
    def block(self) -> int:
        """Unit columns of a tile."""
        return LANES // self.unit


def make(
    lists: Lists,
    table: Table,
    probes: Probes,
    coded: Tensor,
    flat: Tensor,
    order: Tensor,
    counts: Tensor,
    limits: Tensor | None,
    metric: Metric,
    shape: tuple[int, int],
    way: Way | None = None,
) -> Minima:
    """flat: the run of every task, -1 for none; order: tasks sorted by run; counts (1 + runs,): tasks of none and of
    each run. All on the device, which is waited for once."""
    dev = coded.device
    group, unit = shape
    tasks = flat.shape[0]
    mean = order.shape[0] / max(1, len(table.views))
    queries = 16 if mean <= 16 else 32 if mean <= 32 else 64
    before, counts, size = counts[0], counts[1:], table.on_device["size"]
    units = -(-size // (group * unit))
    room = counts * units * unit
    ends = room.cumsum(0)
    per_run = -(-counts // queries) * -(-units // (LANES // unit))
    tile_ends = per_run.cumsum(0)
    total, number, wide = torch.stack([ends[-1], tile_ends[-1], (units * (counts > 0)).max()]).tolist()
    wide = max(1, wide)
    run = torch.repeat_interleave(per_run, output_size=number)
    nth = torch.arange(number, device=dev) - (tile_ends - per_run)[run]
    first_task = counts.cumsum(0) - counts + before
    begin, height = ends - room, -(-size // group)
    job = Job(
        lists, table, probes, coded, order, flat.shape[0] // coded.shape[0], counts, begin, first_task, units, height,
        run, nth, limits, -2.0 if metric == "l2" else -1.0, group, unit, queries, wide, total,
    )  # fmt: skip
    minima = torch.full((total + 1,), _INF, device=dev)  # one more of each for what lies outside
    dense = torch.full((tasks * wide + 1,), _INF, device=dev)
    if number:
        _WAYS[way or best_way(dev, lists.codec.d, lists.codec.dtype, queries)](job, minima, dense)
    places = torch.zeros(2, tasks, dtype=torch.int64, device=dev)
    at = flat[order]
    none = at < 0
    line = begin[at] + torch.arange(order.shape[0], device=dev) - first_task[at]
    places[0, order], places[1, order] = line.masked_fill_(none, 0), counts[at].masked_fill_(none, 0)
    return Minima(minima, dense[:-1].view(tasks, wide), places[0], places[1], units, height)


def _by_batches(job: Job, minima: Tensor, dense: Tensor) -> None:
    """Tiles as batches of one matrix product: rows are copied together, which costs less than a launch for each."""
    dev, codec = job.coded.device, job.lists.codec
    group, unit, block, queries = job.group, job.unit, job.block, job.queries
    lane = torch.arange(LANES, device=dev)
    norms = None if job.probes.norms is None else torch.cat(job.probes.norms)
    each = (group * LANES * (codec.d + queries)) * 4
    step = max(1, _BATCH_BYTES // each)
    for i in range(0, job.run.shape[0], step):
        run, nth = job.run[i : i + step], job.nth[i : i + step]
        across = -(-job.units[run] // block)
        task = (nth // across)[:, None] * queries + torch.arange(queries, device=dev)  # (b, queries)
        column = (nth % across)[:, None] * block + lane % block  # (b, LANES)
        u, count = job.units[run][:, None], job.counts[run][:, None]
        inside, some = column < u, task < count
        at = lane // block * u + column  # its group
        height, size = job.height[run][:, None], job.table.on_device["size"][run][:, None]
        row = torch.arange(group, device=dev)[:, None] * height[..., None] + at[:, None]  # (b, group, LANES)
        real = (inside & (at < height))[:, None] & (row < size[..., None])
        address = (row + job.table.on_device["start"][run][:, None, None]).masked_fill(~real, 0).view(-1)
        rows = codec.factor(job.lists.take(address, "rows")).view(run.shape[0], group * LANES, -1)
        bias = job.lists.take(address, "norms") if norms is None else norms.index_select(0, address)
        bias = bias.view(real.shape).masked_fill(~real, _INF).view(run.shape[0], -1, 1)
        order = job.order[(job.first[run][:, None] + task).masked_fill(~some, 0)]
        q = job.coded[order // job.slots]
        scores = torch.bmm(rows, q.transpose(1, 2)).mul_(job.alpha).add_(bias)
        scores = scores.view(-1, group, LANES, queries)
        if job.limits is not None:
            scores.masked_fill_(row[..., None] >= job.limits[order][:, None, None], _INF)
        least = scores.amin(1)
        keep = inside[..., None] & some[:, None]
        place = job.begin[run][:, None, None] + at[..., None] * count[..., None] + task[:, None]
        minima.index_copy_(0, place.masked_fill(~keep, job.total).view(-1), least.view(-1))
        keep, column = keep[:, :block], column[:, :block]
        place = (order * job.wide)[:, None] + column[..., None]
        place = place.masked_fill(~keep, dense.shape[0] - 1)
        dense.index_copy_(0, place.view(-1), least.view(-1, unit, block, queries).amin(1).view(-1))


@lru_cache(maxsize=1)
def kernels() -> ModuleType | None:
    """The module of the Triton kernel, where Triton is installed."""
    try:
        return importlib.import_module("qmd.ivf.triton_minima")
    except ImportError:
        return None


def _by_kernel(precision: str) -> Callable[[Job, Tensor, Tensor], None]:
    def fill(job: Job, minima: Tensor, dense: Tensor) -> None:
        module = kernels()
        assert module is not None
        device = job.table.on_device
        if "row_at" not in device:
            pointers = [[v[0].data_ptr(), v[1].data_ptr()] for v in job.table.views]
            device["row_at"], device["norm_at"] = torch.tensor(pointers).T.contiguous().to(job.coded.device)
        norm_at = device["norm_at"]
        if job.probes.norms is not None:  # other norms, slab by slab as the stored ones
            begin = torch.tensor([t.data_ptr() for t in job.probes.norms])
            base = torch.tensor([s.base for s in job.lists.slabs])
            slab = torch.tensor([v[2] for v in job.table.views])
            norm_at = (begin - 4 * base)[slab].to(norm_at.device) + 4 * device["start"]
        module.least(job, device["row_at"], norm_at, minima, dense, precision)

    return fill


_WAYS: dict[Way, Callable[[Job, Tensor, Tensor], None]] = {
    "batches": _by_batches,
    "ieee": _by_kernel("ieee"),
    "tf32x3": _by_kernel("tf32x3"),
}


@lru_cache(maxsize=64)
def best_way(device: torch.device, d: int, dtype: torch.dtype, queries: int) -> Way:
    """The fastest of the ways that run here and agree with torch's product, by trying each once for these shapes."""
    from qmd.ivf.codec import Codec, QType

    names: dict[torch.dtype, QType] = {
        torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8",
    }  # fmt: skip
    module = kernels()
    if dtype not in names or module is None or not module.runs_on(device):
        return "batches"
    runs, size = 32, 512
    lists = Lists(runs, Codec(names[dtype], d), device)
    x = torch.randn(runs * size, d, generator=torch.Generator().manual_seed(0)).to(device)
    where = torch.arange(runs * size, device=device) // size
    lists.append(where, (x * 16 if dtype == torch.int8 else x).to(dtype), where, x.square().sum(1))
    q, flat = x[: queries * 4], torch.arange(runs, device=device).repeat(queries * 4, 1)[:, : runs // 4]
    flat = (flat + torch.arange(queries * 4, device=device)[:, None] % 4 * (runs // 4)).reshape(-1)
    order, counts = torch.argsort(flat, stable=True), torch.bincount(flat + 1, minlength=runs + 1)
    probes = Probes(flat.view(queries * 4, -1))

    def work(way: Way) -> Minima:
        return make(lists, lists.table(), probes, q, flat, order, counts, None, "l2", (8, 8), way)

    want = work("batches").minima
    best: Way = "batches"
    least = time_of(device, lambda: work("batches"), 3)
    for way in module.PRECISIONS:
        try:
            got = work(way).minima
            if torch.allclose(
                got, want, rtol=2e-6, atol=2e-6 * float(want[torch.isfinite(want)].abs().max())
            ):
                took = time_of(device, lambda way=way: work(way), 3)  # type: ignore[misc]
                if took < least:
                    best, least = way, took
        except module.ERRORS:  # a compiler that is missing, a card that is too small
            continue
    return best
