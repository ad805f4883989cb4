"""From logits to the distribution that is sampled, and the accept-or-resample rule that keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 switch the cuts off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"need a finite temperature >= 0, 0 < top_p <= 1, top_k >= 0; got {self}.")

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-6  # below it only the likeliest is left, and logits overflow


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities after temperature, then top-k, then top-p, in that order. logits (T, vocab) -> (T, vocab).

    top-p keeps the smallest set of likeliest tokens whose mass reaches p; at least one token.
    """
    if sampling.greedy:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / sampling.temperature
    vocab = logits.shape[-1]
    if 0 < sampling.top_k < vocab:
        floor = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    p = torch.softmax(logits, -1)
    if sampling.top_p < 1:
        width = min(vocab, 1024)
        top, where = p.topk(width, -1)
        if width < vocab and bool((top.sum(-1) < sampling.top_p).any()):
            top, where = p.sort(-1, descending=True)
        before = top.cumsum(-1) - top
        top = top.masked_fill(before >= sampling.top_p, 0.0)
        p = torch.zeros_like(p).scatter_(-1, where, top)
        p = p / p.sum(-1, keepdim=True)
    return p


def draw(p: Tensor, generator: torch.Generator | None = None) -> int:
    """One token from p (vocab,)."""
    return int(torch.multinomial(p, 1, generator=generator))


def accept(
    proposed: list[int], q: Tensor | None, p: Tensor, generator: torch.Generator | None = None
) -> tuple[int, int]:
    """How many proposed tokens stand, and the token that follows them (Leviathan et al. 2023).

    proposed: g tokens; q: (g, vocab) they were drawn from, None if the proposer is certain of each; p: (g+1, vocab).
    Token i stands with probability min(1, p/q); the first that falls is replaced by a draw from (p - q)+; if all
    stand, the bonus token is a draw from the last row. What comes out is distributed as p, whatever q is.
    """
    for i, token in enumerate(proposed):
        mass = 1.0 if q is None else float(q[i, token])
        if float(torch.rand((), generator=generator)) * mass < float(p[i, token]):
            continue
        if q is None:
            rest = p[i].clone()
            rest[token] = 0
        else:
            rest = (p[i] - q[i]).clamp_min(0)
        if float(rest.sum()) <= 0:  # rounding only: p and q agree
            rest = p[i]
        return i, draw(rest, generator)
    return len(proposed), draw(p[len(proposed)], generator)
