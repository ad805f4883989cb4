"""Indexes made of indexes: exact second look, own ids, shards over devices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from qmd.ivf.base import Index, selector_of
from qmd.ivf.flat import IndexFlat
from qmd.ivf.inverted import IndexIVF
from qmd.ivf.lists import Lists
from qmd.ivf.metric import Array, as_ids, as_rows, exact_scores, give_back, worst
from qmd.ivf.operators import search_sorted
from qmd.ivf.params import SearchParams


class _Wrapper:
    """Passes on what the wrapped index answers."""

    index: Any

    @property
    def d(self) -> int:
        return int(self.index.d)

    @property
    def metric(self) -> str:
        return str(self.index.metric)

    @property
    def ntotal(self) -> int:
        return int(self.index.ntotal)

    @property
    def is_trained(self) -> bool:
        return bool(self.index.is_trained)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.index.device
        return device

    @property
    def nprobe(self) -> int:
        return int(self.index.nprobe)

    @nprobe.setter
    def nprobe(self, value: int) -> None:
        self.index.nprobe = value

    @property
    def max_codes(self) -> int:
        return int(self.index.max_codes)

    @max_codes.setter
    def max_codes(self, value: int) -> None:
        self.index.max_codes = value

    @property
    def search_mode(self) -> str:
        return str(self.index.search_mode)

    @search_mode.setter
    def search_mode(self, value: str) -> None:
        self.index.search_mode = value

    def __len__(self) -> int:
        return self.ntotal

    def train(self, x: Array) -> None:
        self.index.train(x)

    def to(self, device: torch.device | str) -> Self:
        self.index.to(device)
        return self

    def cpu(self) -> Self:
        return self.to("cpu")

    def cuda(self, device: int | None = None) -> Self:
        return self.to("cuda" if device is None else f"cuda:{device}")

    def reset(self) -> None:
        self.index.reset()

    def state_dict(self) -> dict[str, Any]:
        from qmd.ivf.persist import to_state

        return to_state(self)

    def save(self, path: str | Path) -> None:
        from qmd.ivf.persist import save

        save(self, path)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; class, d and metric must agree."""
        from qmd.ivf.persist import another

        other = another(self, state)
        self.__dict__.clear()
        self.__dict__.update(other.__dict__)

    def clone(self) -> Self:
        return copy.deepcopy(self)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        mmap: bool = True,
        map_location: Any = None,
    ) -> Any:
        """As `Index.load`."""
        from qmd.ivf.persist import load

        index = load(path, device=map_location or device, mmap=mmap)
        if not isinstance(index, cls):
            raise ValueError(f"{path} holds a {type(index).__name__}, not a {cls.__name__}.")
        return index


class IndexRefineFlat(_Wrapper):
    """Search `index` for k * k_factor rows, then rank those by exact distance to the float32 rows kept
    here."""

    def __init__(self, index: Any, k_factor: float = 4.0) -> None:
        if index.ntotal:
            raise ValueError(f"the wrapped index holds {index.ntotal} rows; wrap it while it is empty.")
        self.index, self.k_factor = index, float(k_factor)
        self.refine_index = IndexFlat(index.d, index.metric, device=index.device)

    def to(self, device: torch.device | str) -> Self:
        self.refine_index.to(device)
        return super().to(device)

    def add(self, x: Array) -> None:
        first = self._next_id
        rows = as_rows(x, self.d, self.device)
        self.add_with_ids(rows, torch.arange(first, first + rows.shape[0], device=self.device))

    def add_with_ids(self, x: Array, ids: Array) -> None:
        """Ids must be new: the second look finds a row by its id."""
        numbers = as_ids(ids, None, self.device)
        if torch.unique(numbers).numel() != numbers.numel() or bool(self.refine_index._known(numbers).any()):
            raise ValueError(
                "an id is in the index already; IndexRefineFlat needs unique ids (use update_vectors)."
            )
        self.index.add_with_ids(x, ids)
        self.refine_index.add_with_ids(x, ids)
        self._order = None

    @property
    def _next_id(self) -> int:
        return int(self.index._next_id)

    _order: tuple[Tensor, Tensor, bool] | None = None

    def remove_ids(self, ids: Array) -> int:
        self._order = None
        self.refine_index.remove_ids(ids)
        return int(self.index.remove_ids(ids))

    def update_vectors(self, ids: Array, x: Array) -> None:
        self._order = None
        self.index.update_vectors(ids, x)
        self.refine_index.update_vectors(ids, x)

    def reset(self) -> None:
        self._order = None
        self.index.reset()
        self.refine_index.reset()

    def reconstruct(self, key: int) -> Tensor:
        return self.refine_index.reconstruct(key)

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> Tensor:
        return self.refine_index.reconstruct_n(n0, ni)

    def _places(self) -> tuple[Tensor, Tensor, bool]:
        """Ids held here, rising (none where they are 0, 1, 2 ...), their addresses, and whether these are the ids."""
        if self._order is None:
            address = self.refine_index._lists.all_addresses()
            held = self.refine_index._lists.take(address, "ids")
            numbers = torch.arange(held.numel(), device=held.device)
            dense = held.numel() > 0 and torch.equal(held, numbers)
            if not dense:
                order = torch.argsort(held)
                held, address = held[order], address[order]
            self._order = held[:0] if dense else held, address, dense and torch.equal(address, numbers)
        return self._order

    def _addresses(self, ids: Tensor) -> Tensor:
        held, address, _ = self._places()
        at = ids if not held.numel() else (search_sorted(held, ids) - 1)
        return torch.where(ids >= 0, address[at.clamp(0, address.shape[0] - 1)], -1)

    def search(
        self, q: Array, k: int, params: SearchParams | None = None, *, filter: Any = None
    ) -> tuple[Any, Any]:
        """As `Index.search`, with distances to the exact rows. params.k_factor replaces the index's own."""
        from qmd.ivf.scan import Probes, recheck

        found = self._at_once(q, k) if params is None and filter is None else None
        if found is not None:
            d, i = give_back(q, *found)
            return d, i
        qs = as_rows(q, self.d, self.device, what="queries")
        factor = self.k_factor if params is None or params.k_factor is None else params.k_factor
        flat = self.refine_index
        wanted = max(k, round(k * factor))
        if isinstance(self.index, IndexIVF) and self.is_trained and flat.ntotal and k > 0:
            params = params or SearchParams()
            lists = self.index._ready(params)
            scores, address = self.index._search(
                lists,
                self.index._shift(qs),
                wanted,
                params,
                selector_of(params, filter),
                self._row_source(lists),
            )
            scores, address = scores[:, :k], address[:, :k]
        else:
            _, ids = self.index.search(qs, wanted, params, filter=filter)
            if not flat.ntotal:
                return give_back(q, torch.full(ids[:, :k].shape, worst(flat.metric)), ids[:, :k])
            address, lists = self._addresses(ids), flat._lists
            scores, address = recheck(lists, flat._shift(qs), address, k, flat.metric, Probes(ids))
        held = lists.take(address.clamp(min=0).reshape(-1), "ids").view(address.shape)
        held.masked_fill_(address < 0, -1)
        d, i = give_back(q, scores if flat.metric == "l2" else -scores, held)
        return d, i

    def _at_once(self, q: Array, k: int) -> tuple[Tensor, Tensor] | None:
        """Distances and ids for a few queries, where row i has id i and all lie together."""
        flat, inner = self.refine_index, self.index
        if not isinstance(inner, IndexIVF) or k < 1 or len(flat._lists.slabs) != 1:
            return None
        if flat._offset is not None or inner._offset is not None:
            return None
        plan = inner._at_once(q, flat._lists.slabs[0].rows)
        if plan is None or not self._places()[2]:
            return None
        return plan.search(q, inner.nprobe, k, max(k, round(k * self.k_factor)))

    def _row_source(self, lists: Lists) -> Callable[[Tensor], Tensor]:
        """Exact rows for addresses in the wrapped index, shifted as its own rows are."""
        flat, inner = self.refine_index, self.index
        shift = None
        if flat._offset is not None or inner._offset is not None:
            zero = torch.zeros(self.d, device=self.device)
            shift = (zero if flat._offset is None else flat._offset) - (
                zero if inner._offset is None else inner._offset
            )

        def rows(address: Tensor) -> Tensor:
            there = self._addresses(lists.take(address, "ids"))
            x = flat._lists.take(there, "rows")
            return x if shift is None else x + shift

        return rows

    def range_search(
        self, q: Array, radius: float, params: SearchParams | None = None, *, filter: Any = None
    ) -> Any:
        """Exact distances of the wrapped index's hits. Rounding may lose rows at the very edge."""
        qs = as_rows(q, self.d, self.device, what="queries")
        lims, _, ids = self.index.range_search(qs, radius, params, filter=filter)
        rows: Tensor = self.refine_index.reconstruct_batch(ids)
        who = torch.repeat_interleave(torch.arange(qs.shape[0], device=qs.device), lims[1:] - lims[:-1])
        s = exact_scores(qs[who][:, None], rows[:, None], self.refine_index.metric)[:, 0]
        keep = s < (radius if self.metric == "l2" else -radius)
        counts = torch.bincount(who[keep], minlength=qs.shape[0])
        return give_back(
            q,
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            s[keep] if self.metric == "l2" else -s[keep],
            ids[keep],
        )


class IndexIDMap(_Wrapper):
    """Own ids over an index. Every index here has add_with_ids; this is for code written for Faiss."""

    def __init__(self, index: Any) -> None:
        if index.ntotal:
            raise ValueError(f"the wrapped index holds {index.ntotal} rows; wrap it while it is empty.")
        self.index = index

    def merge_from(self, other: Any, add_id: int = 0) -> None:
        """As `Index.merge_from`; other may be a map itself."""
        self.index.merge_from(other.index if isinstance(other, IndexIDMap) else other, add_id)

    def __getattr__(self, name: str) -> Any:
        if name == "index" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.index, name)


IndexIDMap2 = IndexIDMap


class IndexShards(_Wrapper):
    """Rows spread over indexes, for example one on each device; a search asks all and merges.

    Rows go to the shard that holds least. All shards share ids, d and metric.
    """

    def __init__(self, shards: list[Index] | None = None, *, threaded: bool = True) -> None:
        self.shards: list[Any] = []
        self.threaded = threaded
        for shard in shards or []:
            self.add_shard(shard)

    def add_shard(self, shard: Any) -> None:
        if self.shards and (shard.d, shard.metric) != (self.d, self.metric):
            raise ValueError(f"shard has {shard.metric}/{shard.d}; the others have {self.metric}/{self.d}.")
        self.shards.append(shard)

    @property
    def index(self) -> Any:
        if not self.shards:
            raise ValueError("IndexShards holds no shard; call add_shard first.")
        return self.shards[0]

    @property
    def ntotal(self) -> int:
        return sum(int(s.ntotal) for s in self.shards)

    @property
    def is_trained(self) -> bool:
        return all(s.is_trained for s in self.shards)

    @property
    def nprobe(self) -> int:
        return int(self.index.nprobe)

    @nprobe.setter
    def nprobe(self, value: int) -> None:
        for s in self.shards:
            s.nprobe = value

    @property
    def max_codes(self) -> int:
        return int(self.index.max_codes)

    @max_codes.setter
    def max_codes(self, value: int) -> None:
        for s in self.shards:
            s.max_codes = value

    @property
    def search_mode(self) -> str:
        return str(self.index.search_mode)

    @search_mode.setter
    def search_mode(self, value: str) -> None:
        for s in self.shards:
            s.search_mode = value

    def train(self, x: Array) -> None:
        """Train the first shard; the others take over what it learned, so that all have the same lists."""
        first = self.index
        first.train(x)
        for shard in self.shards[1:]:
            if (
                isinstance(first, Index)
                and isinstance(shard, Index)
                and shard._lists.nlist == first._lists.nlist
            ):
                shard.adopt(first)
            else:
                shard.train(x)

    @property
    def _next_id(self) -> int:
        return max(int(s._next_id) for s in self.shards)

    def add(self, x: Array) -> None:
        first = self._next_id
        rows = as_rows(x, self.d, self.device)
        self.add_with_ids(rows, torch.arange(first, first + rows.shape[0]))

    def add_with_ids(self, x: Array, ids: Array) -> None:
        rows = as_rows(x, self.d, self.device)
        numbers = as_ids(ids, rows.shape[0], self.device)
        sizes = np.asarray([s.ntotal for s in self.shards])
        goal = -(-(int(sizes.sum()) + rows.shape[0]) // len(self.shards))
        done = 0
        for at in np.argsort(sizes, kind="stable"):
            count = min(max(goal - int(sizes[at]), 0), rows.shape[0] - done)
            if count:
                self.shards[at].add_with_ids(rows[done : done + count], numbers[done : done + count])
                done += count

    def remove_ids(self, ids: Array) -> int:
        return sum(int(s.remove_ids(ids)) for s in self.shards)

    def reset(self) -> None:
        for s in self.shards:
            s.reset()

    def to(self, device: torch.device | str) -> Self:
        for s in self.shards:
            s.to(device)
        return self

    def reconstruct(self, key: int) -> Tensor:
        for s in self.shards:
            try:
                row: Tensor = s.reconstruct(key)
            except KeyError:
                continue
            return row
        raise KeyError(f"id {key} is not in any shard.")

    def search(
        self, q: Array, k: int, params: SearchParams | None = None, *, filter: Any = None
    ) -> tuple[Any, Any]:
        qs = as_rows(q, self.d, self.device, what="queries")

        def ask(shard: Any) -> tuple[Tensor, Tensor]:
            d, i = shard.search(qs.to(shard.device), k, params, filter=filter)
            return d.to(qs.device), i.to(qs.device)

        if self.threaded and len({str(s.device) for s in self.shards}) > 1:
            with ThreadPoolExecutor(len(self.shards)) as pool:
                answers = list(pool.map(ask, self.shards))
        else:
            answers = [ask(s) for s in self.shards]
        d, i = merge_topk([a[0] for a in answers], [a[1] for a in answers], k, self.metric)
        d, i = give_back(q, d, i)
        return d, i


def merge_topk(distances: list[Tensor], ids: list[Tensor], k: int, metric: str) -> tuple[Tensor, Tensor]:
    """The k best of several answers (n, k_i) for the same queries."""
    d, i = torch.cat(distances, 1), torch.cat(ids, 1)
    at = torch.topk(d, min(k, d.shape[1]), dim=1, largest=metric == "ip").indices
    return torch.gather(d, 1, at), torch.gather(i, 1, at)
