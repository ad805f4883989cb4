"""One index over several processes: the coarse quantiser in each, every list in one of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qmd.ivf.inverted import IndexIVF
from qmd.ivf.metric import Array, as_ids, as_rows, give_back
from qmd.ivf.params import SearchParams
from qmd.ivf.wrap import merge_topk


class DistributedIVF:
    """Wraps each process's own empty IndexIVF. All methods are collective: every process calls them alike.

    List l lives in process l mod world size. Every process gives the same rows and queries and gets the same
    answer.
    The process group must be initialised; its backend must move tensors of the index's device (gloo: CPU).
    """

    def __init__(self, index: IndexIVF, group: Any = None) -> None:
        self.index, self.group = index, group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self._next_id = 0

    @property
    def ntotal(self) -> int:
        return self._sum(self.index.ntotal)

    def _sum(self, value: int) -> int:
        t = torch.tensor([value], device=self.index.device)
        dist.all_reduce(t, group=self.group)
        return int(t)

    def train(self, x: Array) -> None:
        """Train in the first process, give the result to all."""
        state: list[Any] = [None]
        if self.rank == 0:
            try:
                self.index.train(x)
                learned = {name: t.cpu() for name, t in self.index._lists.codec.learned().items()}
                state[0] = (self.index.centroids.cpu(), learned, self.index._offset)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others wait for it
                state[0] = error
        source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        dist.broadcast_object_list(state, src=source, group=self.group)
        if isinstance(state[0], Exception):
            raise state[0]
        centroids, learned, offset = state[0]
        device = self.index.device
        self.index.centroids = centroids.to(device)
        self.index._lists.codec.relearn(learned, device)
        self.index._offset = None if offset is None else offset.to(device)
        self.index.is_trained = True

    def add(self, x: Array) -> None:
        rows = as_rows(x, self.index.d, self.index.device)
        self.add_with_ids(rows, torch.arange(self._next_id, self._next_id + rows.shape[0]))

    def add_with_ids(self, x: Array, ids: Array) -> None:
        rows = as_rows(x, self.index.d, self.index.device)
        numbers = as_ids(ids, rows.shape[0], self.index.device)
        mine = self.index._assign(self.index._shift(rows)) % self.world == self.rank
        self.index.add_with_ids(rows[mine], numbers[mine])
        if numbers.numel():
            self._next_id = max(self._next_id, int(numbers.max()) + 1)

    def remove_ids(self, ids: Array) -> int:
        return self._sum(self.index.remove_ids(ids))

    def search(
        self, q: Array, k: int, params: SearchParams | None = None, *, filter: Any = None
    ) -> tuple[Any, Any]:
        """As `Index.search`; each process looks into its own of the probed lists."""
        qs = as_rows(q, self.index.d, self.index.device, what="queries")
        if self.index.max_codes or (params is not None and (params.max_codes or params.budget)):
            # bounds are of what all processes hold together
            sizes = self.index.list_sizes.to(self.index.device)
            dist.all_reduce(sizes, group=self.group)
            self.index._sizes_together = sizes
        d, i = self.index.search(qs, k, params, filter=filter)
        all_d: list[Tensor] = [torch.empty_like(d) for _ in range(self.world)]
        all_i: list[Tensor] = [torch.empty_like(i) for _ in range(self.world)]
        dist.all_gather(all_d, d.contiguous(), group=self.group)
        dist.all_gather(all_i, i.contiguous(), group=self.group)
        d, i = merge_topk(all_d, all_i, k, self.index.metric)
        d, i = give_back(q, d, i)
        return d, i
