"""Faiss's factory strings."""

from __future__ import annotations

import re
from typing import Any

import torch

from qmd.ivf.codec import QType
from qmd.ivf.flat import IndexFlat
from qmd.ivf.inverted import IndexIVFFlat
from qmd.ivf.quantised import IndexIVFPQ, IndexIVFScalarQuantizer
from qmd.ivf.wrap import IndexIDMap, IndexRefineFlat

_CODES: dict[str, QType] = {"SQ8": "int8", "SQfp16": "fp16", "SQbf16": "bf16"}


def index_factory(
    d: int | str, description: str | int, metric: object = "l2", *, device: torch.device | str | None = None
) -> Any:
    """Build an index: "Flat", "IVF512,Flat", "IVF512,SQ8", "SQfp16", "SQbf16", "PQ64", "PQ64x4" ("fs"
    behind it changes nothing), ",RFlat" behind, "IDMap,"
    before.

    Raises ValueError naming the part that is not known.
    """
    if isinstance(d, str):  # index_factory("IVF512,SQ8,RFlat", 128)
        d, description = description, d
    d, description = int(d), str(description)
    parts = [p.strip() for p in description.split(",")]
    mapped = parts[0] in ("IDMap", "IDMap2")
    if mapped:
        parts = parts[1:]
    refine = len(parts) > 1 and parts[-1] in ("RFlat", "Refine(Flat)")
    if refine:
        parts = parts[:-1]
    index: Any
    if parts == ["Flat"]:
        index = IndexFlat(d, metric, device=device)
    elif len(parts) == 2 and (lists := re.fullmatch(r"IVF(\d+)", parts[0])):
        nlist = int(lists[1])
        if parts[1] == "Flat":
            index = IndexIVFFlat(d=d, nlist=nlist, metric=metric, device=device)
        elif parts[1] in _CODES:
            index = IndexIVFScalarQuantizer(
                d=d, nlist=nlist, metric=metric, qtype=_CODES[parts[1]], device=device, by_residual=not refine
            )
        elif pq := re.fullmatch(r"PQ(\d+)(?:x(4|8)(?:fs)?)?", parts[1]):
            index = IndexIVFPQ(
                d=d, nlist=nlist, M=int(pq[1]), nbits=int(pq[2] or 8), metric=metric, device=device
            )
        else:
            raise ValueError(
                f"{parts[1]!r} in {description!r} is not known; expected Flat, {', '.join(_CODES)}, PQm or PQmx4."
            )
    else:
        raise ValueError(
            f"{description!r} is not known; expected Flat or IVFn,Flat|{'|'.join(_CODES)}|PQmx4[,RFlat]."
        )
    if refine:
        index = IndexRefineFlat(index)
    return IndexIDMap(index) if mapped else index
