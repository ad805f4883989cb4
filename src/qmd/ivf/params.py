"""What a search may be told: how far to look (SearchParams) and among which ids (filters)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from qmd.ivf.metric import as_ids
from qmd.ivf.operators import is_in

Profile = Literal["exact", "speed", "approx", "approx_fast", "approx_balanced", "approx_quality"]
PRESET_BUDGETS = {
    "approx": 65_536,
    "approx_fast": 32_768,
    "approx_balanced": 65_536,
    "approx_quality": 131_072,
}
_PROFILES = ("exact", "speed", *PRESET_BUDGETS)


@runtime_checkable
class IDSelector(Protocol):
    """Chooses ids; the same answer on every device."""

    def mask(self, ids: Tensor) -> Tensor:
        """ids (n,) int64 -> bool (n,)."""
        ...


class IDSelectorBatch:
    """The ids of a list."""

    def __init__(self, ids: Any) -> None:
        self.ids = torch.unique(as_ids(ids, None, torch.device("cpu")))

    def mask(self, ids: Tensor) -> Tensor:
        return is_in(ids, self.ids.to(ids.device))


IDSelectorArray = IDSelectorBatch


@dataclass(frozen=True, slots=True)
class IDSelectorRange:
    """imin <= id < imax."""

    imin: int
    imax: int

    def mask(self, ids: Tensor) -> Tensor:
        return (ids >= self.imin) & (ids < self.imax)


class IDSelectorMask:
    """`mask[id]` says whether the id is allowed; ids past the end are not."""

    def __init__(self, mask: Any) -> None:
        t = mask if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask, dtype=bool))
        if t.dtype != torch.bool or t.ndim != 1:
            raise ValueError(
                f"filter mask is {t.dtype} of shape {tuple(t.shape)}; expected bool of shape (n,)."
            )
        self.allowed = t

    def mask(self, ids: Tensor) -> Tensor:
        allowed = self.allowed.to(ids.device)
        if not allowed.numel():
            return torch.zeros_like(ids, dtype=torch.bool)
        inside = (ids >= 0) & (ids < allowed.shape[0])
        return allowed[ids.clamp(0, allowed.shape[0] - 1)] & inside


@dataclass(frozen=True, slots=True)
class IDSelectorNot:
    sel: IDSelector

    def mask(self, ids: Tensor) -> Tensor:
        return ~self.sel.mask(ids)


@dataclass(frozen=True, slots=True)
class IDSelectorAnd:
    lhs: IDSelector
    rhs: IDSelector

    def mask(self, ids: Tensor) -> Tensor:
        return self.lhs.mask(ids) & self.rhs.mask(ids)


@dataclass(frozen=True, slots=True)
class IDSelectorOr:
    lhs: IDSelector
    rhs: IDSelector

    def mask(self, ids: Tensor) -> Tensor:
        return self.lhs.mask(ids) | self.rhs.mask(ids)


def as_selector(filter: Any) -> IDSelector | None:
    """A filter as given: None, an IDSelector, a boolean mask over ids, ids, or a function of an id tensor."""
    if filter is None:
        return None
    if hasattr(filter, "__array__") and not isinstance(filter, Tensor):
        filter = np.asarray(filter)  # pandas' columns and numpy's masked arrays have a `mask` of another kind
    elif isinstance(filter, IDSelector):
        return filter
    if callable(filter):
        return _Predicate(filter)
    kind = filter.dtype if isinstance(filter, Tensor) else np.asarray(filter).dtype
    if kind in (torch.bool, np.dtype(bool)):
        return IDSelectorMask(filter)
    return IDSelectorBatch(filter)


@dataclass(frozen=True, slots=True)
class _Predicate:
    function: Callable[[Tensor], Tensor]

    @torch.inference_mode(False)  # what the caller's function keeps is its own
    def mask(self, ids: Tensor) -> Tensor:
        return self.function(ids)


@dataclass(frozen=True, slots=True)
class SearchParams:
    """One search's settings; None takes the index's own.

    nprobe: lists looked into. max_codes: stop after the list in which so many rows were seen; 0 = no bound.
    candidate_budget: rows looked at for each query, shared among its lists. budget_strategy: equal shares, or
    nearer lists get more. use_per_list_sizes: every list keeps its share to itself (a prefix of its rows is
    read); without it lists are read whole, nearest first, until the budget is spent. list_ordering
    "residual_norm_asc": rows nearest their centroid come first in a list. A preset sets candidate_budget,
    use_per_list_sizes and, for L2, list_ordering; an argument that is given wins.
    min_codes_per_list, max_codes_cap_per_list: bounds on a list's share. strict_budget: shares are cut until
    their
    sum is within the budget. dynamic_nprobe: a budget too small to give each list min_codes_per_list uses
    fewer
    lists. sel or filter: only these ids. exact_below: a filter that allows at most so many rows is answered
    by looking at all of them, whichever list they are in; None decides by cost, 0 never.
    """

    profile: Profile = "speed"
    nprobe: int | None = None
    max_codes: int | None = None
    candidate_budget: int | None = None
    use_per_list_sizes: bool | None = None
    budget_strategy: Literal["uniform", "distance_weighted"] = "distance_weighted"
    list_ordering: Literal["none", "residual_norm_asc"] | None = None
    min_codes_per_list: int = 0
    max_codes_cap_per_list: int = 0
    strict_budget: bool = False
    dynamic_nprobe: bool = False
    approximate: bool | None = None
    debug_stats: bool = False
    search_mode: Literal["auto", "matrix", "csr"] | None = None
    sel: Any = None
    filter: Any = None
    k_factor: float | None = None
    exact_below: int | None = None

    def __post_init__(self) -> None:
        if self.profile not in _PROFILES:
            raise ValueError(f"profile is {self.profile!r}; expected one of {', '.join(_PROFILES)}.")
        if self.budget_strategy not in ("uniform", "distance_weighted"):
            raise ValueError(
                f"budget_strategy is {self.budget_strategy!r}; expected uniform or distance_weighted."
            )
        if self.list_ordering not in (None, "none", "residual_norm_asc"):
            raise ValueError(f"list_ordering is {self.list_ordering!r}; expected none or residual_norm_asc.")
        if self.search_mode not in (None, "auto", "matrix", "csr"):
            raise ValueError(f"search_mode is {self.search_mode!r}; expected auto, matrix or csr.")
        if self.nprobe is not None and self.nprobe < 1:
            raise ValueError(f"nprobe is {self.nprobe}; expected at least 1.")
        for name in ("max_codes", "candidate_budget", "min_codes_per_list", "max_codes_cap_per_list"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; expected 0 (none) or more.")

    @property
    def budget(self) -> int:
        """The candidate budget in force; 0 = none."""
        if self.profile == "exact":
            return 0
        if self.candidate_budget is not None:
            return self.candidate_budget
        if self.approximate is False:
            return 0
        return PRESET_BUDGETS.get(self.profile, 0)

    @property
    def per_list(self) -> bool:
        if self.use_per_list_sizes is not None:
            return self.use_per_list_sizes
        wants = (
            self.min_codes_per_list
            or self.max_codes_cap_per_list
            or self.strict_budget
            or self.dynamic_nprobe
        )
        return self.profile in PRESET_BUDGETS or bool(wants)

    def ordering(self, metric: str) -> str:
        """The list order wanted; "none" for inner product, whose residuals say nothing about the score."""
        if metric != "l2":
            if self.list_ordering == "residual_norm_asc":
                raise ValueError(
                    "list_ordering='residual_norm_asc' needs metric='l2'; this index has metric='ip'."
                )
            return "none"
        if self.list_ordering is not None:
            return self.list_ordering
        return "residual_norm_asc" if self.profile in PRESET_BUDGETS and self.budget else "none"

    @property
    def selector(self) -> IDSelector | None:
        one, two = as_selector(self.sel), as_selector(self.filter)
        if one is not None and two is not None:
            return IDSelectorAnd(one, two)
        return one if one is not None else two


SearchParametersIVF = SearchParams
SearchParameters = SearchParams


def list_limits(
    params: SearchParams, distances: Tensor, sizes: Tensor, max_codes: int, metric: str
) -> Tensor | None:
    """Rows to read of each probed list, nearest list first, or None for all.

    distances, sizes: (n, p), coarse score (falling) and length of each probed list -> (n, p) int64.
    """
    limits: Tensor | None = None
    if max_codes:
        before = torch.cumsum(sizes, 1) - sizes
        limits = torch.where(before < max_codes, sizes, 0)
    budget = params.budget
    if not budget:
        return limits
    p = sizes.shape[1]
    if not params.per_list:
        before = torch.cumsum(sizes, 1) - sizes
        share = torch.minimum((budget - before).clamp_(min=0), sizes)
    else:
        if params.budget_strategy == "uniform" or metric != "l2":
            weights = torch.ones_like(distances)
        else:
            weights = 1.0 / distances.clamp(min=1e-12).sqrt()
        if params.dynamic_nprobe and params.min_codes_per_list:
            lists = max(1, budget // params.min_codes_per_list)
            weights[:, min(lists, p) :] = 0.0
        share = (weights * (budget / weights.sum(1, keepdim=True))).ceil().to(torch.int64)
        if params.min_codes_per_list:
            share = torch.where(weights > 0, share.clamp(min=params.min_codes_per_list), share)
        if params.max_codes_cap_per_list:
            share = share.clamp(max=params.max_codes_cap_per_list)
        share = torch.minimum(share, sizes)
        if params.strict_budget:
            before = torch.cumsum(share, 1) - share
            share = torch.minimum(share, (budget - before).clamp_(min=0))
    return share if limits is None else torch.minimum(limits, share)
