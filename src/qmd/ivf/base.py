"""What every index that holds rows shares: adding, removing, reading back, moving, saving. Knows no
search."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from qmd.errors import IndexNotTrained
from qmd.ivf.lists import Lists
from qmd.ivf.metric import Array, Metric, as_ids, as_rows, give_back, parse_metric
from qmd.ivf.operators import is_in, search_sorted
from qmd.ivf.params import IDSelector, IDSelectorAnd, SearchParams, as_selector
from qmd.ivf.product import AnyCodec
from qmd.ivf.scan import rows_at

_LAST_ID = 2**63 - 2  # `add` goes on behind it
_OFF_CENTRE = 4.0  # centre L2 data when ||mean||^2 is this many times the variance


class Index:
    """Rows with int64 ids. Ids may repeat: `add_with_ids` appends, `remove_ids` removes every row of an id,
    `update_vectors` leaves one, `reconstruct` returns the first in storage."""

    d: int
    metric: Metric
    is_trained: bool

    def __init__(
        self,
        codec: AnyCodec,
        metric: object,
        nlist: int,
        device: torch.device | str | None,
        *,
        by_residual: bool,
    ) -> None:
        if codec.d < 1:
            raise ValueError(f"d is {codec.d}; expected at least 1.")
        if nlist < 1:
            raise ValueError(f"nlist is {nlist}; expected at least 1.")
        self.d, self.metric = codec.d, parse_metric(metric)
        self.device = torch.device(device or "cpu")
        self._lists = Lists(nlist, codec, self.device)
        self._next_id = 0
        self._offset: Tensor | None = None
        self._by_residual = by_residual
        self._dirty = True

    # ---- facts

    @property
    def ntotal(self) -> int:
        return self._lists.ntotal

    def __len__(self) -> int:
        return self.ntotal

    @property
    def metric_type(self) -> int:
        """Faiss's number: 1 for L2, 0 for inner product."""
        return 1 if self.metric == "l2" else 0

    @property
    def nbytes(self) -> int:
        """Bytes of rows, ids and norms, spare room included."""
        return self._lists.nbytes()

    def _centroids(self) -> Tensor | None:
        """(nlist, d) that rows are residuals to, or None."""
        return None

    def _assign(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], dtype=torch.int64, device=self.device)

    def train(self, x: Array) -> None:
        as_rows(x, self.d, self.device)

    def adopt(self, other: Index) -> None:
        """Take over what `other` learned in `train`. Raises ValueError when rows are in, or the indexes differ."""
        mine, theirs = self._lists.codec, other._lists.codec
        if self.ntotal:
            raise ValueError(f"the index holds {self.ntotal} rows; call reset() before adopt.")
        if (self.d, self.metric, self._lists.nlist, mine.kind, mine.width, self._by_residual) != (
            other.d, other.metric, other._lists.nlist, theirs.kind, theirs.width, other._by_residual,
        ):  # fmt: skip
            raise ValueError("the other index has another d, metric, nlist, code or by_residual.")
        self._offset = None if other._offset is None else other._offset.to(self.device, copy=True)
        mine.relearn({name: t.clone() for name, t in theirs.learned().items()}, self.device)
        self.is_trained = other.is_trained

    def _learn_offset(self, x: Tensor) -> None:
        """Off-centre L2 data are stored shifted: products of large norms would drown the distances."""
        if self.metric != "l2" or x.shape[0] < 2:
            return
        mean = x.mean(0)
        spread = (x - mean).square_().sum(1).mean()
        if bool(mean.square().sum() > _OFF_CENTRE * spread):
            self._offset = mean

    def _shift(self, x: Tensor) -> Tensor:
        return x if self._offset is None else x - self._offset

    # ---- change

    def add(self, x: Array) -> None:
        """Append rows (n, d) under the next free ids: ntotal onwards as long as no id was given by hand."""
        rows = as_rows(x, self.d, self.device)
        n = rows.shape[0]
        first = self._next_id
        one = n == 1 and self.device.type == "cpu"  # the common case of a loop, made cheap
        self._append(
            rows, torch.tensor([first]) if one else torch.arange(first, first + n, device=self.device)
        )
        self._next_id += n

    def add_with_ids(self, x: Array, ids: Array) -> None:
        """Append rows (n, d) under ids (n,), int64, not negative. An id may be in the index already."""
        rows = as_rows(x, self.d, self.device)
        numbers = as_ids(ids, rows.shape[0], self.device)
        self._append(rows, numbers)
        if numbers.numel():
            self._next_id = max(self._next_id, int(numbers.max()) + 1)

    def _append(self, x: Tensor, ids: Tensor) -> None:
        if not self.is_trained:
            raise IndexNotTrained(f"this {type(self).__name__} is not trained; call train(x) before add.")
        if x.shape[0]:
            self._put(ids, *self._prepared(x))

    def _put(self, ids: Tensor, where: Tensor, rows: Tensor, norms: Tensor) -> None:
        self._dirty = True
        self._lists.append(where, rows, ids, norms)

    def _prepared(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows (n, d): their lists, the rows as they are stored, their norms."""
        if self.ntotal == 0 and self._offset is None and self._lists.nlist == 1 and not self._by_residual:
            self._learn_offset(x)
        raw, x = x, self._shift(x)
        if self._lists.nlist == 1 and self._offset is not None and bool((x * x).sum() > (raw * raw).sum()):
            self._drop_offset(self._offset)
            x = raw
        where = self._assign(x)
        base = self._centroids()
        codec = self._lists.codec
        if base is None and codec.exact:
            norms = (x * x).sum(1) if self.metric == "l2" else torch.zeros(x.shape[0], device=x.device)
            return where, x, norms
        codes: list[Tensor] = []
        all_norms: list[Tensor] = []
        for i in range(0, x.shape[0], 1 << 16):
            at = where[i : i + (1 << 16)]
            part = x[i : i + (1 << 16)]
            code = codec.encode(part if base is None else part - base[at])
            norms = self._norms(codec.decode(code), at)
            codes.append(code)
            all_norms.append(norms)
        return where, torch.cat(codes), torch.cat(all_norms)

    def _drop_offset(self, offset: Tensor) -> None:
        """Later rows lie elsewhere: shifted, they would lose digits."""
        for slab in self._lists.slabs:
            slab.rows = slab.rows + offset
            norms = (slab.rows * slab.rows).sum(1)
            slab.norms = torch.where(slab.ids >= 0, norms, float("inf"))
        self._lists._table = self._offset = None

    def _norms(self, rows: Tensor, where: Tensor) -> Tensor:
        """||x||^2 for whole rows; ||r||^2 + 2 c.r for residuals, so that a list's distances differ by a
        constant."""
        if self.metric == "ip":
            return torch.zeros(rows.shape[0], device=rows.device)
        norms = (rows * rows).sum(1)
        base = self._centroids()
        return norms if base is None else norms + 2.0 * (rows * base[where]).sum(1)

    def remove_ids(self, ids: Array) -> int:
        """Remove every row whose id is chosen (ids, boolean mask or IDSelector). Returns how many went."""
        selector = as_selector(ids)
        if selector is None or not self.ntotal:
            return 0
        self._dirty = True
        return self._lists.remove(selector.mask)

    def update_vectors(self, ids: Array, x: Array) -> None:
        """Give each id the row beside it. An unknown id raises KeyError and nothing changes; of an id named
        twice the last row counts."""
        rows = as_rows(x, self.d, self.device)
        numbers = as_ids(ids, rows.shape[0], self.device)
        known = self._known(numbers)
        if not bool(known.all()):
            raise KeyError(
                f"ids {numbers[~known][:5].tolist()} are not in the index; add them with add_with_ids."
            )
        latest = {int(i): at for at, i in enumerate(numbers.tolist())}
        pick = torch.tensor(list(latest.values()), dtype=torch.int64, device=self.device)
        if pick.numel():
            ready = self._prepared(rows[pick])  # refused before anything goes
            self._lists.remove(lambda held: is_in(held, numbers))
            self._put(numbers[pick], *ready)

    update = update_vectors

    def _known(self, ids: Tensor) -> Tensor:
        held = [ids[is_in(ids, s.ids)] for s in self._lists.slabs]
        return is_in(ids, torch.cat(held)) if held else torch.zeros_like(ids, dtype=torch.bool)

    def reset(self) -> None:
        """Drop all rows; what was trained stays."""
        self._lists = Lists(self._lists.nlist, self._lists.codec, self.device)
        self._next_id = 0
        self._dirty = True
        if self._lists.nlist == 1 and not self._by_residual:
            self._offset = None

    def merge_from(self, other: Index, add_id: int = 0) -> None:
        """Move all rows of `other` here, their ids raised by add_id; `other` is empty afterwards."""
        if other._lists is self._lists:
            raise ValueError("an index cannot be merged into itself.")
        if (other.d, other.metric) != (self.d, self.metric):
            raise ValueError(
                f"cannot merge {other.metric} vectors of {other.d} dimensions into {self.metric}/{self.d}."
            )
        if not self.is_trained:
            raise IndexNotTrained(f"this {type(self).__name__} is not trained; call train(x) first.")
        if other.ntotal:
            least, most = int(other.ids.min()) + add_id, int(other.ids.max()) + add_id
            if least < 0 or most > _LAST_ID:
                raise ValueError(
                    f"add_id={add_id} gives ids from {least} to {most}; expected 0 to {_LAST_ID}."
                )
        for rows, ids in other._blocks():
            self.add_with_ids(rows.to(self.device), ids.to(self.device) + add_id)
        other.reset()

    def compact(self) -> None:
        """Give back spare room and put every list into one piece (takes a second copy for a moment)."""
        self._lists.compact()

    # ---- reading back

    def _blocks(self, size: int = 1 << 16) -> Any:
        address = self._lists.all_addresses()
        for i in range(0, address.shape[0], size):
            part = address[i : i + size]
            yield self._rows_at(part), self._lists.take(part, "ids")

    def _rows_at(self, address: Tensor) -> Tensor:
        rows = rows_at(self._lists, address, self._centroids())
        return rows if self._offset is None else rows + self._offset

    def reconstruct(self, key: int) -> Tensor:
        """The stored row of one id, (d,) float32. Raises KeyError."""
        address, _ = self._lists.find(torch.tensor([key], device=self.device))
        if not address.numel():
            raise KeyError(f"id {key} is not in the index.")
        return self._rows_at(address[:1])[0]

    def reconstruct_batch(self, ids: Array) -> Any:
        """Stored rows (n, d) of ids (n,), in their order. Raises KeyError naming the unknown."""
        wanted = as_ids(ids, None, self.device)
        address, _ = self._lists.find(wanted)
        held = self._lists.take(address, "ids") if address.numel() else address
        if not held.numel():
            if wanted.numel():
                raise KeyError(f"ids {wanted[:5].tolist()} are not in the index.")
            return give_back(ids, torch.zeros(0, self.d, device=self.device))[0]
        order = torch.argsort(held, descending=True, stable=True).flip(0)  # last of equals: the first stored
        held, address = held[order], address[order]
        at = (search_sorted(held, wanted) - 1).clamp_(min=0)
        known = held[at] == wanted
        if not bool(known.all()):
            raise KeyError(f"ids {wanted[~known][:5].tolist()} are not in the index.")
        return give_back(ids, self._rows_at(address[at]))[0]

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> Tensor:
        """Rows of ids n0 .. n0 + ni - 1; ni -1 takes all from n0 to the highest id given out by `add`."""
        count = self._next_id - n0 if ni < 0 else ni
        result: Tensor = self.reconstruct_batch(torch.arange(n0, n0 + count, device=self.device))
        return result

    @property
    def ids(self) -> Tensor:
        """All ids, list by list, (ntotal,) int64."""
        address = self._lists.all_addresses()
        return self._lists.take(address, "ids") if address.numel() else address

    # ---- places

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> Self:
        """Move everything to a device, once; later inputs are moved there."""
        target = torch.device(device)
        if target != self.device:
            self.device = target
            self._offset = None if self._offset is None else self._offset.to(target)
            self._lists.codec.to(target)
            self._lists.drop_shadows()
            for slab in self._lists.slabs:
                slab.rows, slab.ids, slab.norms = (
                    slab.rows.to(target),
                    slab.ids.to(target),
                    slab.norms.to(target),
                )
                slab.writable = True
            self._lists.device = target
            self._lists._table = None
        return self

    def cpu(self) -> Self:
        return self.to("cpu")

    def cuda(self, device: int | None = None) -> Self:
        return self.to("cuda" if device is None else f"cuda:{device}")

    def clone(self) -> Self:
        return copy.deepcopy(self)

    # ---- files

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a plain header, see `qmd.ivf.persist`."""
        from qmd.ivf.persist import to_state

        return to_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; class, d and metric must agree."""
        from qmd.ivf.persist import another

        other = another(self, state)
        self.__dict__.update(other.__dict__)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        from qmd.ivf.persist import save

        save(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        mmap: bool = True,
        map_location: Any = None,
    ) -> Any:
        """Read an index; memory-mapped rows on the CPU unless mmap=False. map_location is another name of
        device."""
        from qmd.ivf.persist import load

        index = load(path, device=map_location or device, mmap=mmap)
        if not isinstance(index, cls):
            raise ValueError(f"{path} holds a {type(index).__name__}, not a {cls.__name__}.")
        return index

    # ---- search, for those that can

    def search(
        self, q: Array, k: int, params: SearchParams | None = None, *, filter: Any = None
    ) -> tuple[Any, Any]:
        """The k nearest rows of each query. q (n, d) -> distances (n, k) float32, ids (n, k) int64, nearest
        first.

        L2 distances are squared and rise; inner products fall. Places without a hit have id -1 and inf
        (-inf). filter: ids, boolean mask over ids, IDSelector or a function of an id tensor.
        """
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1.")
        if not self.is_trained:
            raise IndexNotTrained(f"this {type(self).__name__} is not trained; call train(x) before search.")
        qs = self._shift(as_rows(q, self.d, self.device, what="queries"))
        params = params or SearchParams()
        lists = self._ready(params)
        scores, address = self._search(lists, qs, int(k), params, selector_of(params, filter))
        missing = address < 0
        if not lists.slabs:
            ids = address
        elif self.device.type != "cpu" or bool(missing.any()):  # asking another device would wait for it
            ids = lists.take(address.clamp(min=0).reshape(-1), "ids").view(address.shape)
            ids.masked_fill_(missing, -1)
        else:
            ids = lists.take(address.reshape(-1), "ids").view(address.shape)
        distances = scores if self.metric == "l2" else -scores
        d, i = give_back(q, distances, ids)
        return d, i

    def _ready(self, params: SearchParams) -> Lists:
        """The lists that one search reads: another may put sorted ones in their place meanwhile."""
        return self._lists

    def _search(
        self, lists: Lists, q: Tensor, k: int, params: SearchParams, selector: Any
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def range_search(
        self, q: Array, radius: float, params: SearchParams | None = None, *, filter: Any = None
    ) -> Any:
        """All rows nearer than `radius` (L2: squared distance below; IP: product above), as Faiss returns
        them.

        -> lims (n + 1,), distances (m,), ids (m,): hits of query i are lims[i]:lims[i + 1], in no order.
        """
        if not self.is_trained:
            raise IndexNotTrained(f"this {type(self).__name__} is not trained; call train(x) before search.")
        qs = self._shift(as_rows(q, self.d, self.device, what="queries"))
        params = params or SearchParams()
        limit = radius if self.metric == "l2" else -radius
        lists = self._ready(params)
        lims, scores, address = self._range(lists, qs, limit, params, selector_of(params, filter))
        ids = lists.take(address, "ids") if address.numel() else address
        return give_back(q, lims, scores if self.metric == "l2" else -scores, ids)

    def _range(
        self, lists: Lists, q: Tensor, limit: float, params: SearchParams, selector: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError


def selector_of(params: SearchParams | None, filter: Any) -> IDSelector | None:
    """What both the parameters and the call's own filter allow."""
    one, two = params.selector if params is not None else None, as_selector(filter)
    return IDSelectorAnd(one, two) if one is not None and two is not None else two if one is None else one
