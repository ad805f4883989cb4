"""Large buffers that one thread uses again and again: fresh memory costs more than filling it. Knows no index."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_MOST_BYTES = 80 << 20  # a larger buffer is not kept
_held = threading.local()


def take(name: str, count: int, device: torch.device) -> Tensor:
    """`count` float32 values, contents undefined, valid until this thread takes the same name again."""
    if device.type != "cpu":
        return torch.empty(count, device=device)
    buffers: dict[str, Tensor] = _held.__dict__.setdefault("buffers", {})
    buffer = buffers.get(name)
    if buffer is None or buffer.numel() < count:
        with torch.inference_mode(False):  # it may be used again outside of the caller's
            buffer = torch.empty(count)
        if count * 4 <= _MOST_BYTES:
            buffers[name] = buffer
    return buffer[:count]
