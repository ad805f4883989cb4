"""Rows kept by list, contiguous where they can be, growing without ever being repacked as a whole.

Memory is taken in slabs. A list is a few runs of rows inside slabs (one run after a bulk add); a run has
room to
grow, a list with too many runs is moved into one. A row's address is its place in all slabs laid end to end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qmd.ivf.operators import is_in, search_sorted, stable_order, take_rows
from qmd.ivf.product import AnyCodec
from qmd.ivf.slabs import Codes, Run, Slab, Table, copy_rows, longest, padded_to_groups

_PAGE = 16  # capacities are multiples of this many rows
_MAX_RUNS = 32  # a list in more pieces is moved into one
_guard = threading.Lock()


class Lists:
    """`nlist` growing lists of rows. Ids may repeat; the order inside a list is free."""

    def __init__(self, nlist: int, codec: AnyCodec, device: torch.device) -> None:
        self.nlist, self.codec, self.device = nlist, codec, device
        self.ntotal = 0
        self.slabs: list[Slab] = []
        self.lists: list[list[Run]] = [[] for _ in range(nlist)]
        self._table: Table | None = None
        self._codes: Codes | None = None
        self._codes_table: Table | None = None
        self._own: tuple[Table, Codes] | None = None
        self.reach = 0.0  # no int8 row is longer

    # ---- memory

    @torch.inference_mode(False)  # rows stay when the caller's ends
    def _new_slab(self, need: int, *, exact: bool = False) -> Slab:
        held = sum(s.rows.shape[0] for s in self.slabs)
        count = need if exact else max(need, 4 * _PAGE, held // 16)
        count = -(-count // _PAGE) * _PAGE
        width = self.codec.width
        slab = Slab(
            torch.zeros(count, width, dtype=self.codec.dtype, device=self.device),
            torch.full((count,), -1, dtype=torch.int64, device=self.device),
            torch.full((count,), float("inf"), device=self.device),
            base=held,
            free=[(0, count)],
        )
        if self._codes is not None:
            self._codes.make(slab)
        self.slabs.append(slab)
        return slab

    def _take(self, need: int, least: int) -> tuple[Slab, int, int]:
        """Room for `need` rows: slab, start, rows. Before memory grows, a free piece of at least a quarter will do."""
        for slab in reversed(self.slabs):
            if slab.writable and (start := slab.take(need)) >= 0:
                return slab, start, need
        least = max(least, need // 4)
        pieces = [
            (room, i) for i, s in enumerate(self.slabs) if s.writable for _, room in s.free if room >= least
        ]
        if pieces and least < need:
            room, i = max(pieces)
            return self.slabs[i], self.slabs[i].take(room), room
        slab = self._new_slab(need)
        return slab, slab.take(need), need

    def _run(self, need: int, least: int | None = None) -> Run:
        """A run of `need` rows, or, where only smaller pieces are free, of `least` or more."""
        capacity = -(-need // _PAGE) * _PAGE
        slab, start, capacity = self._take(
            capacity, capacity if least is None else -(-least // _PAGE) * _PAGE
        )
        return Run(slab, start, 0, capacity)

    def _release(self, run: Run) -> None:
        span = slice(run.start, run.start + run.size)
        run.slab.ids[span] = -1  # ids are looked through by slab: none may go stale
        if run.slab.writable:
            run.slab.norms[span] = float("inf")
        if run.slab.writable:
            run.slab.give(run.start, run.capacity)

    def _grow_in_place(self, run: Run) -> bool:
        """Take the page right behind the run when it is free, or what there is of it: in a file lists lie close."""
        slab, end = run.slab, run.start + run.capacity
        for i, (start, room) in enumerate(slab.free):
            if start == end:
                more = min(_PAGE, room)
                slab.free[i : i + 1] = [(start + more, room - more)] if room > more else []
                run.capacity += more
                return True
            if start > end:
                break
        return False

    def _room(self, list_no: int, need: int) -> Run:
        """A run of the list with room for at least one more row, at best for `need`."""
        runs = self.lists[list_no]
        if runs:
            last = runs[-1]
            if last.slab.writable and (
                last.size < last.capacity or (need == 1 and self._grow_in_place(last))
            ):
                return last
        held = sum(r.size for r in runs)
        if len(runs) >= _MAX_RUNS:  # the smaller half: little is moved, and little lies idle afterwards
            by_size = sorted(runs, key=lambda r: r.size)
            small = by_size[: _MAX_RUNS // 2]
            merged = self._join(small, sum(r.size for r in small))
            runs = self.lists[list_no] = [merged, *(r for r in runs if all(r is not s for s in small))]
        run = self._run(max(need, held // 8), least=need)
        runs.append(run)
        return run

    def _join(self, old: list[Run], capacity: int) -> Run:
        """One run with the rows of several and room for `capacity`; those are given back."""
        run = self._run(capacity)
        for r in old:
            span, to = (
                slice(r.start, r.start + r.size),
                slice(run.start + run.size, run.start + run.size + r.size),
            )
            copy_rows(r.slab, span, run.slab, to)
            run.size += r.size
            self._release(r)
        return run

    def nbytes(self) -> int:
        """Bytes held by rows, ids and norms, spare room included."""
        return sum(t.numel() * t.element_size() for s in self.slabs for t in s.columns())

    # ---- change

    def append(self, assigned: Tensor, rows: Tensor, ids: Tensor, norms: Tensor) -> None:
        """Put encoded rows (n, d) with ids and norms (n,) into the lists `assigned` (n,). O(n) amortised."""
        n = rows.shape[0]
        if n == 0:
            return
        self._table = None
        if self.codec.qtype == "int8":
            self.reach = max(self.reach, longest(rows))
        if n == 1:
            self._append_span(int(assigned), rows, ids, norms)
        else:
            counts_t = torch.bincount(assigned.cpu(), minlength=self.nlist)
            counts = counts_t.tolist()
            order = stable_order(assigned)
            if self.ntotal == 0 and not self.slabs:
                self._new_slab(sum(-(-c // _PAGE) * _PAGE for c in counts if c), exact=True)
            done = 0
            for list_no, c in enumerate(counts):
                if c:
                    pick = order[done : done + c]
                    done += c
                    self._append_span(list_no, rows, ids, norms, pick)
        self.ntotal += n

    def _append_span(
        self, list_no: int, rows: Tensor, ids: Tensor, norms: Tensor, pick: Tensor | None = None
    ) -> None:
        n = rows.shape[0] if pick is None else pick.shape[0]
        done = 0
        while done < n:
            run = self._room(list_no, n - done)
            count = min(n - done, run.capacity - run.size)
            to = slice(run.start + run.size, run.start + run.size + count)
            slab = run.slab
            if pick is None:
                slab.rows[to] = rows[done : done + count]
                slab.ids[to] = ids[done : done + count]
                slab.norms[to] = norms[done : done + count]
            else:
                part = pick[done : done + count]
                slab.rows[to] = rows.index_select(0, part)
                slab.ids[to] = ids.index_select(0, part)
                slab.norms[to] = norms.index_select(0, part)
            if slab.shadow is not None:
                assert self._codes is not None
                self._codes.encode(slab, to.start, to.stop)
            run.size += count
            done += count

    def remove(self, gone: Callable[[Tensor], Tensor]) -> int:
        """Remove every row whose id `gone` marks: gone(ids (n,)) -> bool (n,). Returns how many went.

        The holes are filled with the list's last rows: O(removed) moves after one pass over the ids.
        """
        removed = 0
        for slab in list(self.slabs):
            mask = gone(slab.ids) & (slab.ids >= 0)
            hits = mask.nonzero().reshape(-1).cpu().numpy()
            if not hits.size:
                continue
            runs = sorted(
                ((r.start, i, r) for i, rs in enumerate(self.lists) for r in rs if r.slab is slab and r.size),
                key=lambda item: item[0],
            )
            at = np.searchsorted(np.asarray([start for start, _, _ in runs]), hits, side="right") - 1
            for j, count in zip(*np.unique(at, return_counts=True), strict=True):
                start, list_no, run = runs[j]
                span = mask[start : start + run.size]
                if not slab.writable:
                    run = self._thaw(list_no, run)
                self._drop(run, span, int(count))
                removed += int(count)
        if removed:
            self._table = None
            self.ntotal -= removed
            for list_no, rs in enumerate(self.lists):
                if any(r.size == 0 for r in rs):
                    for r in rs:
                        if r.size == 0:
                            self._release(r)
                    self.lists[list_no] = [r for r in rs if r.size]
            held = sum(s.rows.shape[0] for s in self.slabs)
            if held - self.ntotal > 0.3 * held + 64 * _PAGE + self.nlist * _PAGE:
                self.compact()
        return removed

    def _thaw(self, list_no: int, run: Run) -> Run:
        """Copy a run out of read-only memory."""
        new = self._run(run.size)
        span, to = slice(run.start, run.start + run.size), slice(new.start, new.start + run.size)
        copy_rows(run.slab, span, new.slab, to)
        new.size = run.size
        self._release(run)
        self.lists[list_no] = [new if r is run else r for r in self.lists[list_no]]
        return new

    def _drop(self, run: Run, gone: Tensor, count: int) -> None:
        left = run.size - count
        holes = gone[:left].nonzero().reshape(-1) + run.start
        tail = (~gone[left:]).nonzero().reshape(-1) + (run.start + left)
        for t in run.slab.columns():
            t[holes] = t[tail]
        run.slab.ids[run.start + left : run.start + run.size] = -1
        run.slab.norms[run.start + left : run.start + run.size] = float("inf")
        run.size = left

    def compact(self) -> None:
        """Repack everything: one run a list, one slab, no spare room."""
        new = self._repacked()
        self.slabs, self.lists, self._table = new.slabs, new.lists, None

    def _repacked(self) -> Lists:
        old = self.lists
        new = Lists(self.nlist, self.codec, self.device)
        new.ntotal, new.reach = self.ntotal, self.reach
        new._codes = None if self._codes is None else replace(self._codes, views=[])
        total = sum(-(-sum(r.size for r in rs) // _PAGE) * _PAGE for rs in old)
        if total:
            new._new_slab(total, exact=True)
        for list_no, rs in enumerate(old):
            size = sum(r.size for r in rs)
            if not size:
                continue
            run = new._run(size)
            for r in rs:
                span = slice(r.start, r.start + r.size)
                to = slice(run.start + run.size, run.start + run.size + r.size)
                copy_rows(r.slab, span, run.slab, to)
                run.size += r.size
            new.lists[list_no] = [run]
        return new

    def sorted(self, key: Callable[[int, Tensor], Tensor]) -> Lists:
        """A copy whose lists are sorted by key(list_no, decoded rows (n, d)) -> (n,), rising."""
        new = self._repacked()
        for list_no, rs in enumerate(new.lists):
            for run in rs:
                span = slice(run.start, run.start + run.size)
                order = torch.argsort(key(list_no, self.codec.decode(run.slab.rows[span])))
                for t in run.slab.columns():
                    t[span] = t[span][order]
        return new

    # ---- reading

    def shadows(self) -> Codes | None:
        """int8 shadows of all rows, made now if they are not there; None for rows that are mapped from a file or
        are no float32."""
        if not self.codec.exact or not all(s.writable for s in self.slabs):
            return None
        if self._codes is None:
            with _guard:
                if self._codes is None:
                    self._codes = self._encoded()
        table = self.table()
        if len(self._codes.views) != len(table.views) or self._codes_table is not table:
            self._codes.views = [
                (r.slab.shadow[0][r.start : r.start + r.size], r.slab.shadow[1][r.start : r.start + r.size])
                for rs in self.lists
                for r in rs
                if r.slab.shadow is not None
            ]
            self._codes_table = table
        return self._codes

    def _encoded(self) -> Codes:
        codes = Codes()
        for slab in self.slabs:
            codes.make(slab)
        for rs in self.lists:
            for r in rs:
                codes.encode(r.slab, r.start, r.start + r.size)
        return codes

    def own_codes(self) -> Codes:
        """Rows that are stored as int8, as they are multiplied."""
        table = self.table()
        if self._own is None or self._own[0] is not table:
            ones = torch.ones(int(table.size.max(initial=0)), dtype=torch.bfloat16, device=self.device)
            views = [(v[0], ones[: v[0].shape[0]]) for v in table.views]
            self._own = table, Codes(views, reach=self.reach)
        return self._own[1]

    def drop_shadows(self) -> None:
        """Give the shadows' memory back."""
        self._codes = None
        for slab in self.slabs:
            slab.shadow = None

    def table(self) -> Table:
        if self._table is None:
            base = 0
            for slab in self.slabs:
                slab.base = base
                base += slab.rows.shape[0]
            number = {id(s): i for i, s in enumerate(self.slabs)}
            flat = [r for rs in self.lists for r in rs]
            views = [
                (
                    r.slab.rows[r.start : r.start + r.size],
                    r.slab.norms[r.start : r.start + r.size],
                    number[id(r.slab)],
                )
                for r in flat
            ]
            runs = np.asarray([len(rs) for rs in self.lists], dtype=np.int64)
            size = np.asarray([r.size for r in flat], dtype=np.int64)
            start = np.asarray([r.slab.base + r.start for r in flat], dtype=np.int64)
            first = np.concatenate([[0], np.cumsum(runs)[:-1]]).astype(np.int64)
            sizes = np.asarray([sum(r.size for r in rs) for rs in self.lists], dtype=np.int64)
            before = np.cumsum(size) - size
            offset = (
                before - np.repeat(before[np.minimum(first, max(len(flat) - 1, 0))], runs) if flat else before
            )
            # the run of a list that is in one piece; -1 behind, for list number -1
            run_of = np.append(np.where(runs > 0, first, -1), -1)
            on_device = {
                name: torch.from_numpy(a).to(self.device)
                for name, a in {
                    "run": run_of, "first": first, "runs": runs, "sizes": sizes, "start": start, "size": size,
                    "offset": offset,
                }.items()
            }  # fmt: skip
            most = int(runs.max()) if len(runs) else 0
            padded = [padded_to_groups(r) for r in flat]
            self._table = Table(first, runs, sizes, start, size, offset, views, padded, most, on_device)
        return self._table

    def take(self, address: Tensor, what: str, out: Tensor | None = None) -> Tensor:
        """`what` ("rows", "ids" or "norms") at addresses (c,), whichever slabs they lie in."""
        if len(self.slabs) == 1:
            return take_rows(getattr(self.slabs[0], what), address, out)
        sample: Tensor = getattr(self.slabs[0], what)
        if out is None:
            out = torch.empty((address.shape[0], *sample.shape[1:]), dtype=sample.dtype, device=sample.device)
        for slab in self.slabs:
            inside = (
                ((address >= slab.base) & (address < slab.base + slab.rows.shape[0])).nonzero().reshape(-1)
            )
            if inside.numel():
                source: Tensor = getattr(slab, what)
                out.index_copy_(0, inside, source.index_select(0, address[inside] - slab.base))
        return out

    def find(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Addresses and list numbers of every row whose id is in `wanted`, in address order."""
        table = self.table()
        found = [(is_in(s.ids, wanted) & (s.ids >= 0)).nonzero().reshape(-1) + s.base for s in self.slabs]
        address = torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=self.device)
        return address, self.list_of(address, table)

    def list_of(self, address: Tensor, table: Table | None = None) -> Tensor:
        """Which list each address belongs to."""
        table = table or self.table()
        cached = table.on_device.get("sorted_start")
        if cached is None:
            order = np.argsort(table.start, kind="stable")
            owner = np.repeat(np.arange(self.nlist), table.runs)[order]
            table.on_device["owner"] = torch.from_numpy(owner).to(self.device)
            cached = table.on_device["sorted_start"] = torch.from_numpy(table.start[order]).to(self.device)
        at = search_sorted(cached, address) - 1
        return table.on_device["owner"][at.clamp_(min=0)]

    def all_addresses(self) -> Tensor:
        """Addresses of all rows, list by list."""
        table = self.table()
        if not table.views:
            return torch.zeros(0, dtype=torch.int64, device=self.device)
        parts = [
            torch.arange(a, a + n, device=self.device)
            for a, n in zip(table.start.tolist(), table.size.tolist(), strict=True)
        ]
        return torch.cat(parts)
