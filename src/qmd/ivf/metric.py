"""Conventions of all indexes: what goes in, what comes out, what a distance is. Knows no index."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

Metric = Literal["l2", "ip"]
Array: TypeAlias = Any
"""A torch.Tensor or anything numpy takes for an array; results come back in the kind of the queries."""

_METRICS: dict[object, Metric] = {
    "l2": "l2", "ip": "ip", "L2": "l2", "IP": "ip", "inner_product": "ip", 1: "l2", 0: "ip",
}  # fmt: skip
METRIC_INNER_PRODUCT, METRIC_L2 = 0, 1


def parse_metric(metric: object) -> Metric:
    """`"l2"`, `"ip"`, or Faiss's METRIC_L2 (1) and METRIC_INNER_PRODUCT (0)."""
    if metric not in _METRICS:
        raise ValueError(f"metric is {metric!r}; expected 'l2' or 'ip' (Faiss's 1 or 0).")
    return _METRICS[metric]


def as_rows(x: Array, d: int, device: torch.device, *, what: str = "vectors") -> Tensor:
    """`x` as a contiguous (n, d) float32 tensor on `device`; the same memory where that is possible.

    Accepts (n, d) or (d,), any floating or integer dtype. Raises ValueError for another shape, NaN or
    infinity.
    """
    t = x if isinstance(x, Tensor) else torch.from_numpy(_readable(np.asarray(x)))
    if t.ndim == 1 and t.numel() == d:
        t = t[None]
    if t.ndim != 2 or t.shape[1] != d:
        raise ValueError(f"{what} have shape {tuple(t.shape)}; this index holds vectors of shape (n, {d}).")
    if t.is_complex() or t.dtype == torch.bool:
        raise ValueError(f"{what} have dtype {t.dtype}; expected a floating dtype.")
    if t.dtype != torch.float32 or t.device != device or t.requires_grad or not t.is_contiguous():
        t = t.detach().to(device=device, dtype=torch.float32, non_blocking=True).contiguous()
    # x * 0 summed is NaN exactly when some element is NaN or infinite; a sum costs one pass and no mask.
    if t.numel() and not math.isfinite(float(t.sum())) and not bool(torch.isfinite(t).all()):
        raise ValueError(f"{what} contain NaN or infinity; remove those rows first.")
    return t


def as_ids(ids: Array, n: int | None, device: torch.device) -> Tensor:
    """`ids` as an int64 tensor of shape (n,). -1 is refused: it pads results."""
    t = ids if isinstance(ids, Tensor) else torch.from_numpy(_readable(np.atleast_1d(np.asarray(ids))))
    if t.numel() == 0:
        t = t.to(torch.int64)
    if t.is_floating_point() or t.dtype == torch.bool:
        raise ValueError(f"ids have dtype {t.dtype}; expected integers.")
    t = t.detach().to(device=device, dtype=torch.int64).reshape(-1)
    if n is not None and t.shape[0] != n:
        raise ValueError(f"{t.shape[0]} ids for {n} vectors; expected one id for each vector.")
    if n is not None and t.numel() and bool((t < 0).any()):
        raise ValueError("ids must not be negative: -1 marks places without a hit.")
    if n is not None and t.numel() and int(t.max()) == 2**63 - 1:
        raise ValueError("the largest id is 2**63 - 2: `add` goes on behind it.")
    return t


def _readable(a: np.ndarray) -> np.ndarray:
    """torch warns about read-only numpy memory (a memory map); nothing here writes to its input."""
    if a.dtype == np.float16 or a.dtype.kind in "fiub":
        if not a.dtype.isnative:
            a = a.astype(a.dtype.newbyteorder("="))
        if not a.flags.writeable or any(s < 0 for s in a.strides):
            return a.copy() if any(s < 0 for s in a.strides) else _writable_view(a)
        return a
    raise ValueError(f"array has dtype {a.dtype}; expected numbers.")


def _writable_view(a: np.ndarray) -> np.ndarray:
    interface = dict(a.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return np.asarray(type("_View", (), {"__array_interface__": interface, "_base": a})())


def give_back(like: Array, *tensors: Tensor) -> tuple[Any, ...]:
    """`tensors` in the kind of `like`: torch stays torch (on the index's device), all else becomes numpy."""
    if isinstance(like, Tensor):
        return tensors
    return tuple(t.cpu().numpy() for t in tensors)


def worst(metric: Metric) -> float:
    """What pads distances: +inf for L2, -inf for inner product."""
    return float("inf") if metric == "l2" else float("-inf")


def exact_scores(q: Tensor, x: Tensor, metric: Metric) -> Tensor:
    """Scores that fall, computed without cancellation. q (B, 1, d), x (B, C, d) -> (B, C).

    L2: sum (x - q)^2 from differences, not from norms. IP: -sum x*q.
    """
    if metric == "l2":
        return (x - q).square_().sum(-1)
    return (x * q).sum(-1).neg_()
