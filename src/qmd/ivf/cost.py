"""Which road is cheaper for this batch: a few constants measured on the device, then arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from qmd.ivf import operators

_FEW_LISTS = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds. few, few_more: visiting a list with one query, and each further query, on the road that keeps all
    scores; grouped, grouped_more: the same on the road that keeps minima.

    row: choosing among scores, for each row that a query reads. select: choosing among minima, for each query.
    start: fixed part of a grouped pass.
    """

    few: float
    few_more: float
    grouped: float
    grouped_more: float
    row: float
    select: float
    start: float

    def prefers_grouped(self, nq: int, nprobe: int, nlist: int, rows: float) -> bool:
        """rows: mean length of a list. The measured constants decide where few and many are not plain: a list has 3
        to 8 queries in the mean. Where a query reads few lists, choosing among its rows weighs more than products."""
        tasks = nq * nprobe
        if nprobe <= _FEW_LISTS:
            return tasks >= 2 * nlist
        if not 3 * nlist < tasks < 8 * nlist:
            return tasks >= 8 * nlist
        touched = nlist * (1.0 - (1.0 - 1.0 / nlist) ** tasks) if nlist > 1 else 1.0
        few = touched * self.few + (tasks - touched) * self.few_more + tasks * rows * self.row
        grouped = touched * self.grouped + (tasks - touched) * self.grouped_more
        return self.start + grouped + nq * self.select < few


def time_of(device: torch.device, work: Callable[[], object], repeat: int) -> float:
    """Seconds of one call, the best of three rounds of `repeat`."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(repeat):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - begin) / repeat)
    return best


@lru_cache(maxsize=64)
def measure(device: torch.device, d: int, rows_log2: int, threads: int, shadow: bool) -> Cost:
    """Time both roads' steps on lists of 2**rows_log2 rows of d; shadow: int8 codes are read for few queries.
    About 50 ms."""
    n = 1 << rows_log2
    lists = max(2, min(128, (1 << 23) // (n * d)))  # together larger than a cache: a search reads cold lists
    x = torch.full((lists * n, d), 0.5, device=device)
    codes = torch.ones(lists * n if shadow else 0, d, dtype=torch.int8, device=device)
    scales = torch.ones(n, dtype=torch.bfloat16, device=device)
    q = torch.ones(32, d, device=device)
    narrow = q.to(torch.bfloat16)
    norms = torch.zeros(n, device=device)
    lines = torch.zeros(32, n, device=device)
    order = torch.arange(32, device=device)
    rows = [x[i * n : (i + 1) * n] for i in range(lists)]
    turn = iter(range(1 << 40))

    def few(m: int) -> None:
        i = next(turn) % lists
        if shadow:
            products = torch._weight_int8pack_mm(narrow[:m], codes[i * n : i * n + n], scales)
        elif m == 1:
            products = operators.row_products(rows[i], q[0])[None]
        else:
            products = torch.mm(rows[i], q[:m].T).T
        lines.index_copy_(0, order[:m], torch.add(norms, products, alpha=-2))

    def grouped(m: int) -> None:
        out = lines[:m]
        torch.addmm(norms, q[:m], rows[next(turn) % lists].T, alpha=-2, out=out)
        if n >= 64:
            least = torch.amin(out.view(m, 8, n // 8), 1)
            for width in (n // 16, n // 32, n // 64):
                least = torch.minimum(least[:, :width], least[:, width:])
            lines[:, : n // 64].index_copy_(0, order[:m], least)

    f1, f4 = time_of(device, lambda: few(1), 12), time_of(device, lambda: few(4), 12)
    g4, g32 = time_of(device, lambda: grouped(4), 6), time_of(device, lambda: grouped(32), 6)
    more = max(0.0, (g32 - g4) / 28)
    call = time_of(device, lambda: norms[:8].add_(1.0), 16)
    wide = torch.zeros(1, 16, 1024, device=device)
    row = time_of(device, lambda: torch.amin(wide, 1), 8) / wide.numel()
    return Cost(
        f1 + 4 * call,
        max(0.0, (f4 - f1) / 3),
        max(0.0, g4 - 3 * more) + 8 * call,
        more,
        row,
        20 * call,
        100 * call,
    )


@lru_cache(maxsize=64)
def shadows_pay(device: torch.device, d: int, threads: int) -> bool:
    """Whether reading int8 codes takes at most two thirds of reading float32 rows, memory being cold. About 20
    ms."""
    if not operators.reads_int8(device, d):
        return False
    n = 512
    lists = max(2, min(64, (1 << 23) // (n * d)))
    x = torch.full((lists * n, d), 0.5, device=device)
    codes = torch.ones(lists * n, d, dtype=torch.int8, device=device)
    scales = torch.ones(n, dtype=torch.bfloat16, device=device)
    q = torch.ones(1, d, device=device)
    narrow = q.to(torch.bfloat16)
    turn = iter(range(1 << 40))

    def whole() -> None:
        i = next(turn) % lists * n
        operators.row_products(x[i : i + n], q[0])

    def coded() -> None:
        i = next(turn) % lists * n
        torch._weight_int8pack_mm(narrow, codes[i : i + n], scales)

    return time_of(device, coded, 64) * 1.5 < time_of(device, whole, 64)
