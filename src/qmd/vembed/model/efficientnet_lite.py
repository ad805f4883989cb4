"""EfficientNet-Lite0 features (Tan and Le 2019; the Lite form has no squeeze-and-excite and uses ReLU6).

Parameter names are those of the published checkpoint, so that `load_state_dict` is strict.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 1280
IMAGE_SIZE = 224
MEAN, STD = 127 / 255, 128 / 255

# repeats, kernel, stride, expansion, channels in, channels out
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: the odd pixel goes right and below."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, c, h, w)
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = x.shape[-2:]
        pad_h = max((math.ceil(height / stride) - 1) * stride + kernel - height, 0)
        pad_w = max((math.ceil(width / stride) - 1) * stride + kernel - width, 0)
        if pad_h or pad_w:
            x = F.pad(x, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
        y: Tensor = self._conv_forward(x, self.weight, None)
        return y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    """Inverted residual: expand, depthwise, project; added to the input where shapes allow."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        middle = channels_in * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv(channels_in, middle, 1)
            self._bn0 = _norm(middle)
        self._depthwise_conv = SameConv(middle, middle, kernel, stride, groups=middle)
        self._bn1 = _norm(middle)
        self._project_conv = SameConv(middle, channels_out, 1)
        self._bn2 = _norm(channels_out)
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        z: Tensor = x + y if self.adds else y
        return z


class EfficientNetLite0(nn.Module):
    """(B, 3, 224, 224) normalised pixels -> (B, 1280) pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        for repeats, kernel, stride, expansion, channels_in, channels_out in _STAGES:
            for turn in range(repeats):
                first = turn == 0
                blocks.append(
                    _Block(
                        kernel,
                        stride if first else 1,
                        expansion,
                        channels_in if first else channels_out,
                        channels_out,
                    )
                )
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(320, FEATURES, 1)
        self._bn1 = _norm(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


def load_efficientnet_lite0(path: str | Path) -> EfficientNetLite0:
    """Read the published checkpoint (tensors only, nothing is unpickled); its classifier is left out."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("_fc.")})
    return model.eval()
