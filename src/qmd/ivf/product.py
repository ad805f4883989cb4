"""Product quantisation (Jegou et al. 2011): a row is cut into M parts, each named by its nearest of 2^nbits."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from qmd.ivf.codec import Codec, QType
from qmd.ivf.kmeans import kmeans

_ROWS = 4096  # encoded at a time
_ITERATIONS = 25  # of k-means, as Faiss


class ProductCodec:
    """A codec (see `Codec`) of M codes of 4 or 8 bits; two 4-bit codes share a byte, the first in its low half.

    book: (tables, 256, part) float32: what a byte of column j stands for, so 4-bit codes are looked up in pairs.
    """

    qtype: QType = "pq"
    dtype = torch.uint8
    exact, learns = False, True

    def __init__(self, d: int, m: int, nbits: int = 8) -> None:
        if m < 1 or d % m:
            raise ValueError(f"M is {m}; expected a divisor of d={d}.")
        if nbits not in (4, 8):
            raise ValueError(f"nbits is {nbits}; expected 4 or 8.")
        if nbits == 4 and m % 2:
            raise ValueError(f"M is {m}; codes of 4 bits come in pairs, so M must be even.")
        self.d, self.m, self.nbits = d, m, nbits
        self.width, self.kind = m * nbits // 8, f"pq of {nbits} bits"
        self.centroids: Tensor | None = None  # (M, 2^nbits, d / M)
        self._book = self._offset = torch.zeros(0)

    def train(self, x: Tensor, seed: int = 0) -> None:
        """Learn the centroids of every part from x (n, d), n at least 2^nbits."""
        parts = x.view(x.shape[0], self.m, -1)
        learned = [
            kmeans(parts[:, j].contiguous(), 1 << self.nbits, seed=seed + j, niter=_ITERATIONS)
            for j in range(self.m)
        ]
        self.relearn({"codebooks": torch.stack(learned)}, x.device)

    def learned(self) -> dict[str, Tensor]:
        return {} if self.centroids is None else {"codebooks": self.centroids}

    def relearn(self, learned: dict[str, Tensor], device: torch.device) -> None:
        if "codebooks" not in learned:
            return
        c = self.centroids = learned["codebooks"].to(device)
        if self.nbits == 4:  # byte b: code b % 16 of the first part, b // 16 of the second
            low, high = c[0::2, None].expand(-1, 16, -1, -1), c[1::2, :, None].expand(-1, -1, 16, -1)
            c = torch.cat([low, high], 3).reshape(self.width, 256, -1)
        self._book = c.reshape(self.width * 256, -1).contiguous()
        self._offset = torch.arange(0, self.width * 256, 256, dtype=torch.int32, device=device)

    def to(self, device: torch.device) -> None:
        self.relearn(self.learned(), device)

    def encode(self, x: Tensor) -> Tensor:
        assert self.centroids is not None
        c = self.centroids
        bias = c.square().sum(2)[:, None]  # (M, 1, K)
        out = torch.empty(x.shape[0], self.width, dtype=torch.uint8, device=x.device)
        for i in range(0, x.shape[0], _ROWS):
            parts = x[i : i + _ROWS].view(-1, self.m, c.shape[2]).transpose(0, 1)
            code = torch.baddbmm(bias, parts, c.transpose(1, 2), alpha=-2).argmin(2).T  # (rows, M)
            out[i : i + _ROWS] = code[:, 0::2] + 16 * code[:, 1::2] if self.nbits == 4 else code
        return out

    def decode(self, rows: Tensor) -> Tensor:
        """(..., width) -> (..., d) float32."""
        at = rows.to(torch.int32).add_(self._offset)
        return self._book.index_select(0, at.view(-1)).view(*rows.shape[:-1], self.d)

    factor = decode

    def query(self, q: Tensor) -> Tensor:
        return q

    def products(self, rows: Tensor, q: Tensor) -> Tensor:
        """By a table of the query's product with every entry of the book: one addition for each byte."""
        table = torch.bmm(self._book.view(self.width, 256, -1), q.view(self.width, -1, 1)).view(-1, 1)
        at = rows.to(torch.int32).add_(self._offset)
        return torch.nn.functional.embedding_bag(at, table, mode="sum")[:, 0]


AnyCodec: TypeAlias = Codec | ProductCodec
