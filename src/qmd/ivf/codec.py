"""How a row is stored: float32, float16, bfloat16, or int8 with one affine range for each dimension.

Product codes are in `product`; a codec of any kind has the methods of `Codec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qmd.ivf import operators

QType = Literal["fp32", "fp16", "bf16", "int8", "pq"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
_FP16_MOST = 65504.0


@dataclass(slots=True)
class Codec:
    """Encodes and decodes rows. int8 is Faiss's QT_8bit: x_j = low_j + step_j * (code_j + 128.5).

    low, step: (d,) float32, set by `train` (int8 only). Values outside the trained range are clamped.
    """

    qtype: QType
    d: int
    low: Tensor | None = None
    step: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return _DTYPES[self.qtype]

    @property
    def kind(self) -> str:
        """What two codecs of the same width must share to read one another's rows."""
        return self.qtype

    @property
    def width(self) -> int:
        """Values of a stored row."""
        return self.d

    @property
    def exact(self) -> bool:
        return self.qtype == "fp32"

    @property
    def learns(self) -> bool:
        """Whether it must see rows (residuals, where those are stored) before it can encode."""
        return self.qtype == "int8"

    def train(self, x: Tensor, seed: int = 0) -> None:
        """Learn the range of every dimension from x (n, d)."""
        if self.qtype == "int8":
            self.low = x.amin(0)
            self.step = (x.amax(0) - self.low) / 255.0

    def learned(self) -> dict[str, Tensor]:
        """What `train` found, by name; `relearn` takes it."""
        return {} if self.low is None or self.step is None else {"low": self.low, "step": self.step}

    def relearn(self, learned: dict[str, Tensor], device: torch.device) -> None:
        if "low" in learned:
            self.low, self.step = learned["low"].to(device), learned["step"].to(device)

    def to(self, device: torch.device) -> None:
        self.relearn(self.learned(), device)

    def encode(self, x: Tensor) -> Tensor:
        """Rows (n, d) as they are stored. ValueError for what float16 cannot hold."""
        if self.qtype == "fp16" and x.numel() and float(x.abs().max()) > _FP16_MOST:
            raise ValueError(
                f"a value of {float(x.abs().max()):g} is beyond float16's {_FP16_MOST:g}; use bf16 or scale the rows."
            )
        if self.qtype != "int8":
            return x.to(self.dtype)
        assert self.low is not None
        assert self.step is not None
        unit = torch.where(self.step > 0, (x - self.low) / (self.step * 255.0), 0.0)
        return (unit.clamp_(0.0, 1.0) * 255.0).floor_().sub_(128.0).to(torch.int8)

    def decode(self, rows: Tensor) -> Tensor:
        """(..., d) stored rows -> float32; fp32 rows come back as they are, without a copy."""
        if self.qtype != "int8":
            return rows if rows.dtype == torch.float32 else rows.to(torch.float32)
        assert self.low is not None
        assert self.step is not None
        return torch.addcmul(self.low, rows.to(torch.float32).add_(128.5), self.step)

    def query(self, q: Tensor) -> Tensor:
        """Queries (n, d) for products with `factor(rows)`: q.x = q'.row + a constant of the query."""
        return q if self.qtype != "int8" or self.step is None else q * self.step

    def factor(self, rows: Tensor) -> Tensor:
        """Stored rows -> (n, d) float32, what queries are multiplied with."""
        return rows if rows.dtype == torch.float32 else rows.to(torch.float32)

    def products(self, rows: Tensor, q: Tensor) -> Tensor:
        """Of one query (d,), as `query` gave it, with stored rows: (n,)."""
        return operators.row_products(self.factor(rows), q)
