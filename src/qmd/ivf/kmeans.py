"""k-means for the coarse quantiser. Never touches the global random state."""

from __future__ import annotations

import torch
from torch import Tensor

from qmd.ivf.metric import Metric, parse_metric

_BLOCK = 4096


def assign(x: Tensor, centroids: Tensor, metric: Metric = "l2") -> tuple[Tensor, Tensor]:
    """Nearest centroid of each row. x (n, d), centroids (c, d) -> numbers (n,) int64, scores (n,) falling.

    L2 scores leave out ||x||^2. Equal scores take the lower number.
    """
    n = x.shape[0]
    number = torch.empty(n, dtype=torch.int64, device=x.device)
    score = torch.empty(n, device=x.device)
    bias = (centroids * centroids).sum(1) if metric == "l2" else centroids.new_zeros(centroids.shape[0])
    alpha = -2.0 if metric == "l2" else -1.0
    block = (
        max(64, min(_BLOCK, (1 << 21) // max(1, centroids.shape[0]))) if x.device.type == "cpu" else 1 << 16
    )
    for i in range(0, n, block):
        s = torch.addmm(bias, x[i : i + block], centroids.T, alpha=alpha)
        if s.device.type == "cpu":  # numpy's is the faster one
            at = torch.from_numpy(s.numpy().argmin(1))
            least = torch.gather(s, 1, at[:, None])[:, 0]
        else:
            least, at = torch.min(s, 1)
        score[i : i + block] = least
        number[i : i + block] = at
    return number, score


def kmeans(
    x: Tensor,
    nlist: int,
    *,
    metric: object = "l2",
    niter: int = 10,
    seed: int = 1234,
    balance: float = 0.0,
    max_points_per_centroid: int = 256,
) -> Tensor:
    """Cluster x (n, d) float32 into nlist centroids (nlist, d).

    metric "ip": spherical (centroids of unit length). balance: 0 = none; above it, 8 * balance rounds split
    the longest lists at the cost of the shortest, and the most even centroids are kept. Trains on a sample of
    max_points_per_centroid * nlist.
    An empty list takes half of a crowded one. Raises ValueError for fewer rows than lists.
    """
    metric = parse_metric(metric)
    n, d = x.shape
    if n < nlist:
        raise ValueError(f"training data has {n} rows; nlist={nlist} needs at least as many.")
    g = torch.Generator().manual_seed(seed)
    most = max_points_per_centroid * nlist
    order = torch.randperm(n, generator=g).to(x.device)
    if n > most:
        x = x[order[:most]]
        n = most
        order = torch.randperm(n, generator=g).to(x.device)
    centroids = x[order[:nlist]].clone()
    if metric == "ip":
        centroids = _unit(centroids)
    ones = torch.ones(n, device=x.device)
    even, best = float("inf"), centroids
    rounds = round(8 * balance) if nlist > 1 else 0
    for i in range(niter + 2 * rounds):
        number, _ = assign(x, centroids, metric)
        counts = torch.zeros(nlist, device=x.device).index_add_(0, number, ones)
        if rounds and i >= niter:
            uneven = float(counts.square().sum())
            if uneven < even:
                even, best = uneven, centroids
        sums = torch.zeros(nlist, d, device=x.device).index_add_(0, number, x)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1.0)[:, None], centroids)
        _repair(centroids, counts, g)
        if i >= niter and (i - niter) % 2 == 0:
            _split_crowded(centroids, counts)
        if metric == "ip":
            centroids = _unit(centroids)
    return best if rounds else centroids


def _split_crowded(centroids: Tensor, counts: Tensor) -> None:
    """Give the centroids of the shortest lists to the longest ones, while those are more than twice the
    mean."""
    order = torch.argsort(counts)
    most = max(1, counts.shape[0] // 16)
    large = order.flip(0)[:most]
    large = large[counts[large] > 2 * counts.mean()]
    small = order[: large.shape[0]]
    sign = torch.where(torch.arange(centroids.shape[1], device=centroids.device) % 2 == 0, 1 + 1e-3, 1 - 1e-3)
    centroids[small] = centroids[large] * sign
    centroids[large] *= 2 - sign


def _unit(x: Tensor) -> Tensor:
    unit: Tensor = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit


def _repair(centroids: Tensor, counts: Tensor, g: torch.Generator) -> None:
    """Each empty list takes a crowded list's centroid; the two are pushed apart by a hair (Faiss does the
    same)."""
    empty = (counts == 0).nonzero().reshape(-1)
    if not empty.numel():
        return
    weights = (counts - 1).clamp(min=0).double().cpu()
    if not bool(weights.sum() > 0):
        return
    donors = torch.multinomial(weights, empty.numel(), replacement=True, generator=g).to(centroids.device)
    eps = 1.0 / 1024
    sign = torch.where(torch.arange(centroids.shape[1], device=centroids.device) % 2 == 0, 1 + eps, 1 - eps)
    centroids[empty] = centroids[donors] * sign
    centroids[torch.unique(donors)] *= 2 - sign
