"""What a backend can do is found by trying, once for each device; what it cannot is replaced. Knows no
index."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_vecdot = getattr(np, "vecdot", None)  # numpy 2

_known: dict[tuple[str, str], bool] = {}


def int8_rows(q: Tensor, rows: Tensor) -> Tensor:
    """q (m, d) float, rows (n, d) int8 -> (m, n) bfloat16: the product, reading one byte for each weight."""
    return torch._weight_int8pack_mm(
        q.to(torch.bfloat16), rows, torch.ones(rows.shape[0], dtype=torch.bfloat16, device=rows.device)
    )


def reads_int8(device: torch.device, d: int) -> bool:
    """Whether rows of d values may go through `int8_rows`: torch's CPU kernel reads beyond rows of other widths."""
    return d % 8 == 0 and has("int8_rows", device)


def row_products(rows: Tensor, q: Tensor) -> Tensor:
    """rows (n, d) float32, q (d,) -> (n,). On the CPU numpy's loop of dot products reads memory fastest."""
    if rows.device.type == "cpu" and _vecdot is not None:
        return torch.from_numpy(_vecdot(rows.numpy(), q.numpy()))
    return torch.mv(rows, q)


def _try_int8_rows(device: torch.device) -> bool:
    q = torch.ones(2, 32, device=device)
    rows = torch.ones(32, 32, dtype=torch.int8, device=device)
    return bool((int8_rows(q, rows).float() == 32).all())


def _try_float64(device: torch.device) -> bool:
    return bool(torch.ones(2, dtype=torch.float64, device=device).sum() == 2)


def _try_isin(device: torch.device) -> bool:
    a = torch.arange(4, device=device)
    return bool(torch.isin(a, a[:2]).sum() == 2)


def _try_amin(device: torch.device) -> bool:
    out = torch.empty(2, 3, device=device)
    torch.amin(torch.ones(2, 4, 3, device=device), 1, out=out)
    return bool((out == 1).all())


def _try_mm_out(device: torch.device) -> bool:
    """Products and sums written into a strided part of a larger buffer."""
    out = torch.zeros(2, 4, device=device)
    q, x = torch.ones(2, 3, device=device), torch.ones(3, 3, device=device)
    torch.addmm(torch.ones(3, device=device), q, x.T, alpha=-2, out=out[:, :3])
    return bool((out[:, :3] == -5).all())


def _try_index_select_out(device: torch.device) -> bool:
    out = torch.zeros(2, 3, device=device)
    torch.index_select(torch.ones(4, 3, device=device), 0, torch.tensor([0, 1], device=device), out=out)
    return bool((out == 1).all())


def _try_searchsorted(device: torch.device) -> bool:
    a = torch.arange(8, device=device).view(2, 4)
    return bool((torch.searchsorted(a, a, right=True) == torch.arange(1, 5, device=device)).all())


def _try_stable_sort(device: torch.device) -> bool:
    return bool(torch.sort(torch.zeros(8, dtype=torch.int16, device=device), stable=True).indices[3] == 3)


_PROBES: dict[str, Callable[[torch.device], bool]] = {
    "int8_rows": _try_int8_rows,
    "float64": _try_float64,
    "isin": _try_isin,
    "amin_out": _try_amin,
    "mm_out": _try_mm_out,
    "index_select_out": _try_index_select_out,
    "searchsorted": _try_searchsorted,
    "stable_sort": _try_stable_sort,
}


def has(name: str, device: torch.device) -> bool:
    """Whether the device runs the named operation and gets a known case right; tried once, then
    remembered."""
    key = (name, str(device))
    if key not in _known:
        try:
            _known[key] = _PROBES[name](device)
        except (RuntimeError, NotImplementedError, TypeError, AttributeError):
            _known[key] = False
    return _known[key]


def forget() -> None:
    """Probe again at the next call (after a driver or a test changed what the device can do)."""
    _known.clear()


def is_in(ids: Tensor, wanted: Tensor) -> Tensor:
    """Boolean mask of `ids` that occur in `wanted`."""
    if wanted.numel() == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    if has("isin", ids.device):
        return torch.isin(ids, wanted)
    edges = torch.sort(wanted).values
    at = search_sorted(edges, ids) - 1
    return (at >= 0) & (edges[at.clamp(min=0)] == ids)


def search_sorted(edges: Tensor, values: Tensor) -> Tensor:
    """For each value the number of edges <= it. edges (n, p) rising, values (n, u) -> (n, u), row by row;
    or edges (p,) and values of any shape."""
    if has("searchsorted", edges.device):
        return torch.searchsorted(edges, values, right=True)
    if edges.ndim == 1:  # halving, for edges that may be many
        low, high = torch.zeros_like(values), torch.full_like(values, edges.shape[0])
        for _ in range(edges.shape[0].bit_length() + 1):
            middle = (low + high) // 2
            above = (middle < high) & (edges[middle.clamp(max=edges.shape[0] - 1)] <= values)
            low, high = torch.where(above, middle + 1, low), torch.where(above, high, middle)
        return low
    return (edges[:, None, :] <= values[:, :, None]).sum(-1)


def stable_order(keys: Tensor) -> Tensor:
    """Positions that sort small integer keys (n,), equal keys in the order they came."""
    if has("stable_sort", keys.device):
        return torch.sort(keys, stable=True).indices
    wide = keys.to(torch.int64) * keys.numel() + torch.arange(keys.numel(), device=keys.device)
    return torch.argsort(wide)


def take_rows(source: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """source[index], rows; into `out` where the device allows it."""
    if out is None:
        return source.index_select(0, index)
    if has("index_select_out", source.device):
        return torch.index_select(source, 0, index, out=out)
    return out.copy_(source.index_select(0, index))


def group_minimum(scores: Tensor, out: Tensor) -> None:
    """out (m, b) = minimum of scores (m, G, b) over G."""
    if has("amin_out", scores.device):
        torch.amin(scores, 1, out=out)
    else:
        out.copy_(scores.min(1).values)


def smallest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns of the k smallest of each line of x (n, w), in no order. numpy's selection is the faster one
    on the CPU, but finds values, not places: lines with ties at the edge go the other way."""
    n, w = x.shape
    if x.device.type == "cpu" and 0 < 2 * k < w:
        a = x.numpy()
        edge = np.partition(a, k - 1, axis=1)[:, k - 1 : k]
        found = np.flatnonzero(a <= edge)
        if found.shape[0] == n * k:
            places = torch.from_numpy(found).view(n, k)
            return x.take(places), places.remainder_(w)
    value, at = torch.topk(x, k, dim=1, largest=False, sorted=False)
    return value, at


def biased_product(bias: Tensor, x: Tensor, y: Tensor, alpha: float, out: Tensor) -> None:
    """out (m, n) = bias (one for each n, or (m, 1)) + alpha * x (m, d) @ y (n, d).T"""
    if has("mm_out", x.device):
        torch.addmm(bias, x, y.T, alpha=alpha, out=out)
    else:
        out.copy_((x @ y.T).mul_(alpha).add_(bias))
