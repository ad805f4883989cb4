"""What a verification costs on this machine, and how many tokens to propose because of it. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from qmd.draft.target import Cache, Target

ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 17)


@dataclass(frozen=True, slots=True)
class CostTable:
    """`relative[i]` is the time of a forward over i + 1 new tokens, in units of one over 1 token."""

    step_s: float
    relative: tuple[float, ...]

    def cost(self, rows: int) -> float:
        """c(rows) / c(1)."""
        return self.relative[min(rows, len(self.relative)) - 1]

    @classmethod
    def flat(cls, rows: int = 17) -> CostTable:
        """Free verification: every proposal pays. For tests and for a fixed draft length."""
        return cls(1.0, (1.0,) * rows)

    @classmethod
    def from_times(cls, times_s: dict[int, float]) -> CostTable:
        """Fill the gaps linearly; a longer verification never counts as cheaper than a shorter one."""
        rows = sorted(times_s)
        relative: list[float] = []
        for n in range(1, rows[-1] + 1):
            below = max(r for r in rows if r <= n)
            above = min(r for r in rows if r >= n)
            share = 0.0 if above == below else (n - below) / (above - below)
            t = times_s[below] + share * (times_s[above] - times_s[below])
            relative.append(max(t / times_s[rows[0]], relative[-1] if relative else 1.0))
        return cls(times_s[rows[0]], tuple(relative))

    @classmethod
    def measure(
        cls, target: Target, *, context: int = 256, repeats: int = 4, rows: Sequence[int] = ROWS
    ) -> CostTable:
        """Time the target on tokens of no meaning after a context of `context` tokens; the fastest of `repeats`."""
        rows = [n for n in rows if n < target.max_context - 1] or [1]
        context = max(1, min(context, target.max_context - max(rows) - 1))
        cache = target.new_cache()
        filler = [i % target.vocab_size for i in range(context)]
        target.forward(filler, cache, last_only=True)
        return cls.from_times(_time(target, cache, rows, repeats))


def _time(target: Target, cache: Cache, rows: Sequence[int], repeats: int) -> dict[int, float]:
    best = dict.fromkeys(rows, float("inf"))
    start = cache.length
    for _ in range(repeats):
        for n in rows:
            begin = time.perf_counter()
            logits = target.forward([i % target.vocab_size for i in range(n)], cache)
            float(logits[-1, 0])  # waits for an accelerator
            if n > 1:  # cutting back what fell belongs to a verification
                cache.crop(start)
            best[n] = min(best[n], time.perf_counter() - begin)
            cache.crop(start)
    return best


def best_length(
    confidence: Sequence[float], table: CostTable, *, token_cost: float = 0.0
) -> tuple[int, float]:
    """How many of the offered tokens to verify, and the expected gain over a plain step.

    confidence[i]: probability that token i stands if all before it do. token_cost: drafting one token, in steps of
    the target. gain(g) = (1 + sum of the products of confidence) / (c(g + 1) + g token_cost); gain(0) = 1.
    """
    best, gain = 0, 1.0
    expected, standing = 1.0, 1.0
    for g, chance in enumerate(confidence, start=1):
        standing *= chance
        expected += standing
        ratio = expected / (table.cost(g + 1) + g * token_cost)
        if ratio > gain:
            best, gain = g, ratio
    return best, gain


class Ledger:
    """Whether a proposer pays, from what it has done: tokens gained against time spent, in steps of the target."""

    def __init__(self, *, trial: int = 12) -> None:
        self.trial = trial
        self.steps = 0
        self.tokens = 0.0
        self.spent = 0.0

    def add(self, tokens: int, spent: float) -> None:
        # old steps fade, so that a proposer that stops paying is noticed and one that was unlucky can return
        self.steps += 1
        self.tokens = 0.95 * self.tokens + tokens
        self.spent = 0.95 * self.spent + spent

    @property
    def gain(self) -> float:
        return self.tokens / self.spent if self.spent else 1.0

    @property
    def pays(self) -> bool:
        return self.steps < self.trial or self.gain >= 1.0
