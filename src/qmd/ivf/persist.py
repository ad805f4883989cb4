"""One safetensors file for each index: tensors, and a versioned JSON header. Rows are mapped, not read."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmd.errors import MissingExtra, StoreDamaged, StoreTooNew
from qmd.ivf.base import Index
from qmd.ivf.flat import IndexFlat, IndexFlatIP, IndexFlatL2
from qmd.ivf.inverted import IndexIVF, IndexIVFFlat
from qmd.ivf.quantised import IndexIVFPQ, IndexIVFScalarQuantizer
from qmd.ivf.slabs import Run, Slab
from qmd.ivf.wrap import IndexIDMap, IndexRefineFlat, IndexShards

FORMAT_VERSION = 1


def to_state(index: Any) -> dict[str, Any]:
    """{"header": plain values, tensor name: tensor}. Rows lie list by list without gaps."""
    if isinstance(index, IndexRefineFlat):
        inner, flat = to_state(index.index), to_state(index.refine_index)
        header = {
            "class": "IndexRefineFlat",
            "k_factor": index.k_factor,
            "parts": [inner.pop("header"), flat.pop("header")],
        }
        return {"header": header, **_prefix("0.", inner), **_prefix("1.", flat)}
    if isinstance(index, (IndexIDMap, IndexShards)):
        children = index.shards if isinstance(index, IndexShards) else [index.index]
        states = [to_state(c) for c in children]
        header = {"class": type(index).__name__, "parts": [s.pop("header") for s in states]}
        merged: dict[str, Any] = {"header": header}
        for i, s in enumerate(states):
            merged.update(_prefix(f"{i}.", s))
        return merged
    lists = index._lists
    address = lists.all_addresses()
    sizes = torch.from_numpy(lists.table().sizes.copy())
    header = {
        "class": type(index).__name__,
        "d": index.d,
        "metric": index.metric,
        "ntotal": index.ntotal,
        "next_id": index._next_id,
        "qtype": lists.codec.qtype,
        "is_trained": index.is_trained,
        "reach": lists.reach,
    }
    state: dict[str, Any] = {"header": header, "list_sizes": sizes}
    if index.ntotal:
        state["packed_embeddings"] = _packed(lists, "rows", address)
        state["list_ids"] = _packed(lists, "ids", address)
        state["norms"] = _packed(lists, "norms", address)
    else:
        state["packed_embeddings"] = torch.zeros(0, lists.codec.width, dtype=lists.codec.dtype)
        state["list_ids"], state["norms"] = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    if index._offset is not None:
        state["offset"] = index._offset
    if isinstance(index, IndexIVF):
        header.update(
            nlist=index.nlist, nprobe=index.nprobe, max_codes=index.max_codes, search_mode=index.search_mode,
            by_residual=index._by_residual, seed=index.seed, balance=index.balance, niter=index.niter,
            threshold=index._threshold, ordered=index._ordered, dirty=index._dirty,
        )  # fmt: skip
        state["centroids"] = index.centroids
        state.update(lists.codec.learned())
        if isinstance(index, IndexIVFPQ):
            header.update(M=index.M, nbits=index.nbits)
    return state


def _packed(lists: Any, what: str, address: Tensor) -> Tensor:
    """All rows (ids, norms), list by list; the slab itself when it has no gaps."""
    if len(lists.slabs) == 1:
        whole: Tensor = getattr(lists.slabs[0], what)
        table = lists.table()
        if whole.shape[0] == lists.ntotal and bool((table.start[1:] > table.start[:-1]).all()):
            return whole
    taken: Tensor = lists.take(address, what)
    return taken


def _prefix(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: t for name, t in state.items()}


@torch.inference_mode(False)
def from_state(state: dict[str, Any], device: torch.device | str = "cpu", *, writable: bool = True) -> Any:
    """The index of a state. Tensors are used as they are where they already lie on the device."""
    header = state["header"]
    kind = header["class"]
    if "parts" in header:
        parts = []
        for i, sub in enumerate(header["parts"]):
            own = {name.split(".", 1)[1]: t for name, t in state.items() if name.startswith(f"{i}.")}
            parts.append(from_state({"header": sub, **own}, device, writable=writable))
        if kind == "IndexShards":
            return IndexShards(parts)
        wrapper: Any = (IndexRefineFlat if kind == "IndexRefineFlat" else IndexIDMap).__new__(
            IndexRefineFlat if kind == "IndexRefineFlat" else IndexIDMap
        )
        wrapper.index = parts[0]
        if kind == "IndexRefineFlat":
            wrapper.refine_index, wrapper.k_factor = parts[1], float(header["k_factor"])
        return wrapper
    _check(header, state)
    target = torch.device(device)
    index: Index
    if kind in ("IndexFlatL2", "IndexFlatIP"):
        index = (IndexFlatL2 if kind == "IndexFlatL2" else IndexFlatIP)(header["d"], device=target)
    elif kind == "IndexFlat":
        index = IndexFlat(header["d"], header["metric"], device=target)
    elif kind in ("IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ"):
        shared = {
            "d": header["d"], "nlist": header["nlist"], "nprobe": header["nprobe"], "metric": header["metric"],
            "device": target, "seed": header["seed"], "balance": header["balance"], "niter": header["niter"],
        }  # fmt: skip
        ivf: IndexIVF
        if kind == "IndexIVFFlat":
            ivf = IndexIVFFlat(**shared)
        elif kind == "IndexIVFPQ":
            ivf = IndexIVFPQ(
                **shared, M=header["M"], nbits=header["nbits"], by_residual=header["by_residual"]
            )
        else:
            ivf = IndexIVFScalarQuantizer(**shared, qtype=header["qtype"], by_residual=header["by_residual"])
        ivf.max_codes, ivf.search_mode = header["max_codes"], header["search_mode"]
        ivf._threshold, ivf._ordered, ivf._dirty = header["threshold"], header["ordered"], header["dirty"]
        ivf.centroids = state["centroids"].to(target)
        ivf._lists.codec.relearn(state, target)
        ivf.is_trained = header["is_trained"]
        index = ivf
    else:
        raise ValueError(f"the file holds a {kind!r}, which this version does not know.")
    index._next_id = header["next_id"]
    if "offset" in state:
        index._offset = state["offset"].to(target)
    lists = index._lists
    lists.ntotal = header["ntotal"]
    lists.reach = float(header.get("reach", 128.0 * index.d**0.5))
    if lists.ntotal:
        rows, ids, norms = (state[n].to(target) for n in ("packed_embeddings", "list_ids", "norms"))
        if rows.shape[1] != lists.codec.width or not _fits(lists.codec.learned(), header):
            raise StoreDamaged(
                "rows or codes are not of the width that the header says; make the index again."
            )
        if rows.dtype != lists.codec.dtype:
            rows = rows.to(lists.codec.dtype)
        if not writable:
            ids = ids.clone()  # small, and marked when a row moves out of the map
        slab = Slab(rows, ids, norms, 0, writable=writable or target.type != "cpu")
        lists.slabs = [slab]
        done = 0
        for list_no, size in enumerate(state["list_sizes"].tolist()):
            if size:
                lists.lists[list_no] = [Run(slab, done, size, size)]
                done += size
    return index


def another(index: Any, state: dict[str, Any]) -> Any:
    """An index of a state's own copy. Raises ValueError unless class, d and metric are those of `index`."""
    other = from_state({n: t.clone() if isinstance(t, Tensor) else t for n, t in state.items()}, index.device)
    if (type(other), other.d, other.metric) != (type(index), index.d, index.metric):
        raise ValueError(
            f"state is of {type(other).__name__} {other.metric}/{other.d}; this is another index."
        )
    return other


def _check(header: dict[str, Any], state: dict[str, Any]) -> None:
    """Raises StoreDamaged where the tensors are not what the header says; reads all of them but the rows."""
    d, n, nlist = header["d"], header["ntotal"], header.get("nlist", 1)
    sizes, ids, norms = state["list_sizes"], state["list_ids"], state["norms"]
    learnt = state.get("centroids", torch.zeros(nlist, d) if nlist == 1 else None)
    offset = state.get("offset", torch.zeros(0))
    good = {
        "list sizes": sizes.dtype == torch.int64
        and sizes.shape == (nlist,)
        and int(sizes.min()) >= 0
        and int(sizes.sum()) == n,
        "number of rows": state["packed_embeddings"].shape[0] == n,
        "ids": ids.dtype == torch.int64 and ids.shape == (n,) and bool((ids >= 0).all()),
        "next id": int(header["next_id"]) >= 0 and (not n or int(ids.max()) < int(header["next_id"])),
        "norms": norms.dtype == torch.float32 and norms.shape == (n,) and bool(norms.isfinite().all()),
        "centroids": learnt is not None
        and learnt.shape in ((0, d), (nlist, d))
        and (learnt.shape[0] == nlist or not header["is_trained"])
        and bool(learnt.isfinite().all()),
        "offset": offset.shape in ((0,), (d,)) and bool(offset.isfinite().all()),
    }
    wrong = [name for name, right in good.items() if not right]
    if wrong:
        raise StoreDamaged(f"{', '.join(wrong)} are not as the header says; make the index again.")


def _fits(learned: dict[str, Tensor], header: dict[str, Any]) -> bool:
    d = header["d"]
    shapes = {"low": (d,), "step": (d,)}
    if "codebooks" in learned:
        return learned["codebooks"].shape == (header["M"], 1 << header["nbits"], d // header["M"])
    return all(t.shape == shapes[name] for name, t in learned.items())


def save(index: Any, path: str | Path) -> None:
    """Write the index: to a temporary file beside it, flushed, then renamed."""
    save_file = _safetensors().save_file
    if not hasattr(
        index, "search"
    ):  # Faiss's order: write_index(index, path); also accepted the other way round
        index, path = path, index
    state = to_state(index)
    header = state.pop("header")
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    os.close(handle)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
    try:
        save_file(
            tensors,
            name,
            metadata={
                "format": "qmd.ivf",
                "format_version": str(FORMAT_VERSION),
                "header": json.dumps(header),
            },
        )
        with open(name, "rb") as f:
            os.fsync(f.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    held = os.umask(0o077)
    os.umask(held)
    return held


def load(path: str | Path, *, device: torch.device | str = "cpu", mmap: bool = True) -> Any:
    """Read an index. On the CPU with mmap=True rows stay on disk until they are looked at, and are copied
    when they are changed. Raises StoreTooNew for a later format, StoreDamaged for a file that is none."""
    safe_open = _safetensors().safe_open
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no index at {path}.")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as f:
            metadata = f.metadata() or {}
            if metadata.get("format") != "qmd.ivf":
                raise StoreDamaged(f"{path} is no qmd.ivf index; save one with index.save(path).")
            if int(metadata["format_version"]) > FORMAT_VERSION:
                raise StoreTooNew(
                    f"{path} has format {metadata['format_version']}; this version reads up to {FORMAT_VERSION}. Update qmd."  # noqa: E501
                )
            state: dict[str, Any] = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        state["header"] = json.loads(metadata["header"])
        if not mmap:
            state = {n: t.clone() if isinstance(t, Tensor) else t for n, t in state.items()}
        return from_state(state, device, writable=not mmap)
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError,
        _safetensors().SafetensorError,
    ) as error:  # fmt: skip
        if isinstance(error, (StoreDamaged, StoreTooNew)):
            raise
        raise StoreDamaged(f"{path} cannot be read ({error}); make the index again.") from error


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise MissingExtra("saving and loading an index", "torch") from error

    class Names:
        save_file = staticmethod(safetensors.torch.save_file)
        safe_open = staticmethod(safetensors.safe_open)
        SafetensorError = safetensors.SafetensorError

    return Names
