"""Which road is cheaper for this batch: a few constants measured on the device, then arithmetic."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from qmd.ivf import operators


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds. each: one list for one query. touch: visiting a list in the grouped road. task: one query
    more in it.

    select_each, select_grouped: choosing and rechecking, for each query. start: fixed part of a grouped pass.
    """

    each: float
    touch: float
    task: float
    select_each: float
    select_grouped: float
    start: float

    def prefers_grouped(self, nq: int, nprobe: int, nlist: int) -> bool:
        tasks = nq * nprobe
        touched = nlist * (1.0 - (1.0 - 1.0 / nlist) ** tasks) if nlist > 1 else 1.0
        one_by_one = tasks * self.each + nq * self.select_each
        grouped = self.start + touched * self.touch + tasks * self.task + nq * self.select_grouped
        return grouped < one_by_one


def _time(device: torch.device, work: object, repeat: int) -> float:
    assert callable(work)
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
def measure(device: torch.device, d: int, rows_log2: int, threads: int) -> Cost:
    """Time both roads' steps on random rows: lists of 2**rows_log2 rows of d. About 50 ms."""
    n = 1 << rows_log2
    g = torch.Generator().manual_seed(0)
    lists = max(2, min(128, (1 << 24) // (n * d)))  # together larger than a cache: a search reads cold lists
    x = torch.full((lists * n, d), 0.5, device=device)
    q = torch.randn(32, d, generator=g).to(device)
    norms = torch.zeros(n, device=device)
    out = torch.empty(32, n, device=device)
    groups = max(1, n // 8)
    rows = [x[i * n : (i + 1) * n] for i in range(lists)]
    turn = iter(range(1 << 40))

    def one() -> None:
        operators.row_products(rows[next(turn) % lists], q[0])

    def group(m: int) -> None:
        torch.addmm(norms, q[:m], rows[next(turn) % lists].T, alpha=-2, out=out[:m])
        if n >= 8:
            torch.amin(out[:m, : groups * 8].view(m, 8, groups) if groups * 8 == n else out[:m, None], 1)

    each = _time(device, one, 16)
    g1, g32 = _time(device, lambda: group(1), 8), _time(device, lambda: group(32), 8)
    task = max(0.0, (g32 - g1) / 31)
    call = _time(device, lambda: norms[:8].add_(1.0), 16)
    return Cost(each + call, g1 + 6 * call, task, 45 * call, 15 * call, 120 * call)


@lru_cache(maxsize=64)
def shadows_pay(device: torch.device, d: int, threads: int) -> bool:
    """Whether reading int8 codes takes at most two thirds of reading float32 rows, memory being cold. About 20 ms."""
    if not operators.has("int8_rows", device):
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

    return _time(device, coded, 64) * 1.5 < _time(device, whole, 64)
