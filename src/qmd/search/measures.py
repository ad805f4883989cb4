"""How good a ranked list is, and whether two systems differ by more than chance. Knows ids and figures only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROUNDS = 10_000
SEED = 20_24


def measure(
    ranked: Sequence[str], relevant: Mapping[str, float], *, k: int = 10, depth: int = 100
) -> dict[str, float]:
    """P@k, Recall@k, Recall@depth, MRR@k and nDCG@k of one answer.

    relevant: id -> gain, above 0. nDCG with linear gains, as trec_eval has it; P@k divides by k.
    Raises ValueError if nothing is relevant.
    """
    if not relevant:
        raise ValueError("a question without a relevant document cannot be measured")
    first = ranked[:k]
    found = sum(item in relevant for item in first)
    gained = sum(relevant.get(item, 0.0) / math.log2(rank + 1) for rank, item in enumerate(first, start=1))
    best = sorted(relevant.values(), reverse=True)[:k]
    ideal = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, start=1))
    rank = next((rank for rank, item in enumerate(first, start=1) if item in relevant), 0)
    return {
        f"p@{k}": found / k,
        f"recall@{k}": found / len(relevant),
        f"recall@{depth}": len(relevant.keys() & set(ranked[:depth])) / len(relevant),
        f"mrr@{k}": 1 / rank if rank else 0.0,
        f"ndcg@{k}": gained / ideal,
    }


def randomisation_test(
    first: Sequence[float], second: Sequence[float], *, rounds: int = ROUNDS, seed: int = SEED
) -> float:
    """Two-sided p of a paired randomisation test (Smucker, Allan, Carterette 2007): how often random signs make the
    mean difference at least as large as it is. first, second: the measure of the same questions, in the same order.

    Exact over all 2^n signs up to n = 12. Raises ValueError if the lengths differ.
    """
    import numpy

    if len(first) != len(second):
        raise ValueError(f"{len(first)} values are not paired with {len(second)}")
    difference = numpy.asarray(second, numpy.float64) - numpy.asarray(first, numpy.float64)
    difference = difference[difference != 0]  # a tie says the same under both signs
    n = len(difference)
    if n == 0:
        return 1.0
    observed = abs(float(difference.sum())) - 1e-12
    if n <= 12:
        bits = (numpy.arange(1 << n)[:, None] >> numpy.arange(n)) & 1
        return float(numpy.mean(numpy.abs((2 * bits - 1) @ difference) >= observed))
    random = numpy.random.default_rng(seed)
    hits = 0
    for start in range(0, rounds, 1000):
        signs: NDArray[np.int8] = random.integers(0, 2, (min(1000, rounds - start), n), dtype=numpy.int8)
        hits += int((numpy.abs((2.0 * signs - 1) @ difference) >= observed).sum())
    return (hits + 1) / (rounds + 1)
