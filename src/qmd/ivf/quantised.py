"""Inverted files of short codes: one or two bytes a value, or product codes of a few bits a value."""

from __future__ import annotations

from typing import Any

import torch

from qmd.ivf.base import Index
from qmd.ivf.codec import Codec, QType
from qmd.ivf.inverted import IndexIVF, read_arguments, use_centroids_of
from qmd.ivf.product import ProductCodec


class IndexIVFScalarQuantizer(IndexIVF):
    """Rows of one byte (int8, a range for each dimension: Faiss's QT_8bit) or two (fp16, bf16) per value.

    Distances are those to the stored, rounded rows; wrap it in IndexRefineFlat for exact ones.
    by_residual: store the difference to the centroid (finer for clustered data, as Faiss does by default).
    """

    def __init__(
        self,
        quantizer: Any = None,
        *args: Any,
        d: int | None = None,
        nlist: int | None = None,
        nprobe: int = 1,
        metric: object = None,
        qtype: QType = "int8",
        by_residual: bool = False,
        device: torch.device | str | None = None,
        seed: int = 1234,
        balance: float = 0.0,
        niter: int = 10,
    ) -> None:
        if qtype not in ("int8", "fp16", "bf16"):
            raise ValueError(f"qtype is {qtype!r}; expected int8, fp16 or bf16.")
        flat, dims, lists, kind = read_arguments(quantizer, args, d, nlist, metric)
        super().__init__(Codec(qtype, dims), lists, nprobe, kind, device, by_residual, seed, balance, niter)
        use_centroids_of(self, flat)

    @property
    def qtype(self) -> QType:
        return self._lists.codec.qtype


class IndexIVFPQ(IndexIVF):
    """Product codes: M codes of nbits (4 or 8) for each row, so M * nbits / 8 bytes of rows.

    IndexIVFPQ(d=128, nlist=512, M=64, nbits=4) or, as in Faiss, (quantizer, d, nlist, M, nbits). It saves memory, not
    time: a list is decoded and then multiplied like any other. Distances are those to the decoded rows; wrap it in
    IndexRefineFlat for exact ones. by_residual: codes of the difference to the centroid.
    """

    def __init__(
        self,
        quantizer: Any = None,
        *args: Any,
        d: int | None = None,
        nlist: int | None = None,
        M: int | None = None,
        nbits: int = 8,
        nprobe: int = 1,
        metric: object = None,
        by_residual: bool = True,
        device: torch.device | str | None = None,
        seed: int = 1234,
        balance: float = 0.0,
        niter: int = 10,
    ) -> None:
        lead = 2 if quantizer is None or isinstance(quantizer, Index) else 1
        rest = list(args)
        tail, rest = rest[lead:], rest[:lead]
        if len(tail) > 2:
            raise TypeError("expected (quantizer, d, nlist, M, nbits); metric and the rest are keywords.")
        M, nbits = (tail[0] if tail else M), (tail[1] if len(tail) > 1 else nbits)
        flat, dims, lists, kind = read_arguments(quantizer, tuple(rest), d, nlist, metric)
        if M is None:
            raise TypeError("expected M, the number of codes of a row.")
        codec = ProductCodec(dims, int(M), int(nbits))
        super().__init__(codec, lists, nprobe, kind, device, by_residual, seed, balance, niter)
        use_centroids_of(self, flat)

    @property
    def M(self) -> int:
        return self.pq.m

    @property
    def nbits(self) -> int:
        return self.pq.nbits

    @property
    def pq(self) -> ProductCodec:
        codec = self._lists.codec
        assert isinstance(codec, ProductCodec)
        return codec
