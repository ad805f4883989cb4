"""To Faiss and back: Flat, IVFFlat and IVF scalar quantisers (8 bit, fp16, bf16), row for row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qmd.errors import IndexNotTrained, MissingExtra
from qmd.ivf.base import Index
from qmd.ivf.codec import QType
from qmd.ivf.flat import IndexFlat, IndexFlatIP, IndexFlatL2
from qmd.ivf.inverted import IndexIVF, IndexIVFFlat
from qmd.ivf.quantised import IndexIVFScalarQuantizer


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("converting to or from Faiss (the package faiss-cpu)", "torch") from error
    return faiss


def from_faiss(given: Any) -> Index:
    """A Faiss IndexFlat, IndexIVFFlat or IndexIVFScalarQuantizer, or an IndexIDMap over a flat one,
    copied."""
    faiss = _faiss()
    index = faiss.downcast_index(given)  # owns nothing: what was given has to stay
    metric = {faiss.METRIC_L2: "l2", faiss.METRIC_INNER_PRODUCT: "ip"}.get(index.metric_type)
    if metric is None:
        raise ValueError(f"Faiss metric {index.metric_type} is not known here; expected L2 or inner product.")
    if type(index) in (faiss.IndexIDMap, faiss.IndexIDMap2):
        flat = from_faiss(index.index)
        ids = faiss.vector_to_array(index.id_map)
        moved = IndexFlat(flat.d, metric)
        if ids.size and ids.min() < 0:
            raise ValueError("the Faiss index has negative ids, which mark places without a hit here.")
        if flat.ntotal:
            moved.add_with_ids(flat.reconstruct_n(), torch.from_numpy(ids.copy()))
        return moved
    if type(index) in (faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP):
        flat = (IndexFlatL2 if metric == "l2" else IndexFlatIP)(index.d)
        if index.ntotal:
            flat.add(index.reconstruct_n(0, index.ntotal))
        return flat
    if not index.is_trained:
        raise IndexNotTrained("the Faiss index is not trained; train it first.")
    if type(index) is faiss.IndexIVFFlat:
        ours: IndexIVF = IndexIVFFlat(d=index.d, nlist=index.nlist, nprobe=index.nprobe, metric=metric)
    elif type(index) is faiss.IndexIVFScalarQuantizer:
        kinds: dict[int, QType] = {
            faiss.ScalarQuantizer.QT_8bit: "int8",
            faiss.ScalarQuantizer.QT_fp16: "fp16",
            faiss.ScalarQuantizer.QT_bf16: "bf16",
        }
        if index.sq.qtype not in kinds:
            raise ValueError(
                f"Faiss scalar quantiser {index.sq.qtype} is not known here; expected 8bit, fp16 or bf16."
            )
        ours = IndexIVFScalarQuantizer(
            d=index.d, nlist=index.nlist, nprobe=index.nprobe, metric=metric,
            qtype=kinds[index.sq.qtype], by_residual=bool(index.by_residual),
        )  # fmt: skip
        if ours._lists.codec.qtype == "int8":
            trained = torch.from_numpy(faiss.vector_to_array(index.sq.trained).copy())
            learned = {"low": trained[: index.d].clone(), "step": trained[index.d :] / 255.0}
            ours._lists.codec.relearn(learned, ours.device)
    else:
        raise ValueError(
            f"a Faiss {type(index).__name__} cannot be taken over; expected Flat, IVFFlat or IVF SQ."
        )
    ours.centroids = torch.from_numpy(index.quantizer.reconstruct_n(0, index.nlist))
    ours.is_trained = True
    ours.max_codes = int(index.max_codes)
    codec = ours._lists.codec
    all_rows, all_ids, where = [], [], []
    for list_no in range(index.nlist):
        n = index.invlists.list_size(list_no)
        if not n:
            continue
        raw = faiss.rev_swig_ptr(index.invlists.get_codes(list_no), n * index.code_size).reshape(
            n, index.code_size
        )
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(list_no), n)
        if codec.qtype == "int8":
            rows = torch.from_numpy((raw.astype(np.int16) - 128).astype(np.int8))
        else:
            rows = torch.from_numpy(raw.copy()).view(codec.dtype)
        all_rows.append(rows)
        all_ids.append(torch.from_numpy(ids.copy()))
        where.append(torch.full((n,), list_no))
    if all_rows:
        rows, ids_t, at = torch.cat(all_rows), torch.cat(all_ids), torch.cat(where)
        if int(ids_t.min()) < 0:
            raise ValueError("the Faiss index has negative ids, which mark places without a hit here.")
        ours._lists.append(at, rows, ids_t, ours._norms(codec.decode(rows), at))
        ours._next_id = int(ids_t.max()) + 1
    return ours


def to_faiss(index: Any) -> Any:
    """A Faiss index with the same rows, ids and lists. Flat indexes whose ids are not 0..n-1 become an
    IndexIDMap."""
    faiss = _faiss()
    kind = faiss.METRIC_L2 if index.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if isinstance(index, IndexFlat):
        flat = faiss.IndexFlat(index.d, kind)
        rows = [(x.cpu().numpy(), i.cpu().numpy()) for x, i in index._blocks()]
        ids = np.concatenate([i for _, i in rows]) if rows else np.zeros(0, np.int64)
        order = np.argsort(ids, kind="stable")
        x = np.concatenate([r for r, _ in rows])[order] if rows else np.zeros((0, index.d), np.float32)
        if (ids[order] == np.arange(ids.size)).all():
            flat.add(x)
            return flat
        mapped = faiss.IndexIDMap(flat)
        mapped.add_with_ids(x, ids[order])
        flat.this.disown()
        mapped.own_fields = True
        return mapped
    if not isinstance(index, (IndexIVFFlat, IndexIVFScalarQuantizer)):
        raise ValueError(
            f"a {type(index).__name__} cannot be written for Faiss; expected Flat, IVFFlat or IVF SQ."
        )
    if not index.is_trained:
        raise IndexNotTrained(f"this {type(index).__name__} is not trained; call train(x) first.")
    if index._offset is not None:
        raise ValueError("the index stores its rows shifted (data far off centre); Faiss has no such index.")
    quantizer = faiss.IndexFlat(index.d, kind)
    quantizer.add(index.centroids.cpu().numpy())
    if isinstance(index, IndexIVFFlat):
        theirs = faiss.IndexIVFFlat(quantizer, index.d, index.nlist, kind)
    else:
        qt = {
            "int8": faiss.ScalarQuantizer.QT_8bit,
            "fp16": faiss.ScalarQuantizer.QT_fp16,
            "bf16": faiss.ScalarQuantizer.QT_bf16,
        }
        theirs = faiss.IndexIVFScalarQuantizer(
            quantizer, index.d, index.nlist, qt[index.qtype], kind, index.by_residual
        )
        learned = index._lists.codec.learned()
        if learned:
            trained = torch.cat([learned["low"], learned["step"] * 255.0]).cpu().numpy()
            faiss.copy_array_to_vector(trained, theirs.sq.trained)
    quantizer.this.disown()
    theirs.own_fields = True
    theirs.is_trained, theirs.nprobe, theirs.max_codes = True, index.nprobe, index.max_codes
    for list_no, runs in enumerate(index._lists.lists):
        for r in runs:
            span = slice(r.start, r.start + r.size)
            rows_t = r.slab.rows[span].cpu()
            if rows_t.dtype == torch.int8:
                codes = (rows_t.numpy().astype(np.int16) + 128).astype(np.uint8)
            else:
                codes = np.ascontiguousarray(rows_t.contiguous().view(torch.uint8).numpy())
            ids_np = np.ascontiguousarray(r.slab.ids[span].cpu().numpy())
            theirs.invlists.add_entries(list_no, r.size, faiss.swig_ptr(ids_np), faiss.swig_ptr(codes))
    theirs.ntotal = index.ntotal
    return theirs
