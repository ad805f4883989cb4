"""Matrix products for few rows, prepared once per weight. Knows nothing of models.

Verification multiplies 1 to 17 rows by every weight. The usual product (`F.linear`) picks another algorithm for one
row than for two, costs 1.6 times as much for two rows, and rounds differently. The kernels here read the weights once
for up to 16 rows, and give each row the same bits whatever rows stand beside it: that makes greedy speculation
identical to plain decoding, not only close to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Precision = Literal["float32", "int8", "native"]
Linear = Callable[[Tensor], Tensor]
"""(M, in) -> (M, out)"""

_ROWS_HINT = 8  # the packed layout is chosen for this many rows; 4 to 16 behave alike, 1 does not


def prepare(weight: Tensor, bias: Tensor | None, precision: Precision) -> Linear:
    """Pack one weight (out, in). `native` leaves it as it is, in its own type and on its own device."""
    if precision == "int8":
        return _int8(weight, bias)
    if precision == "float32" and weight.device.type == "cpu" and packs_float32():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.float().contiguous(), _ROWS_HINT)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return lambda x: F.linear(x, weight, bias)


def packs_float32() -> bool:
    """Whether this torch has oneDNN's packed product."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def packs_int8() -> bool:
    """Whether this torch has FBGEMM's int8 product."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
        torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32"
    )


def _int8(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights int8 per output channel, activations per row: y = s_x s_w (x_q . w_q), sums exact in int32.

    Without VNNI the processor adds two products in 16 bits: activations then take 7 bits, so that nothing saturates
    (2 * 127 * 127 < 2^15).
    """
    with torch.no_grad():
        weight = weight.float()
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        zero = torch.zeros(weight.shape[0], dtype=torch.long)
        with _quiet():
            q = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        packed = torch.ops.quantized.linear_prepack(q, None)
        torch.backends.quantized.engine = engine
    levels = 127 if torch.cpu._is_vnni_supported() else 63
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def apply(x: Tensor) -> Tensor:
        row = x.abs().amax(-1, keepdim=True).clamp_min(1e-12)
        y: Tensor = product(x / row, 1 / levels, levels + 1, packed).mul_(row)
        return y if bias is None else y.add_(bias)

    return apply


class _quiet:
    """`quantize_per_channel` warns of its move to another package; the operator itself stays."""

    def __enter__(self) -> None:
        import warnings

        self._catch = warnings.catch_warnings()
        self._catch.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *args: object) -> None:
        self._catch.__exit__(None, None, None)
