"""Pixels as CLIP and SigLIP want them: scaled and cut to their size, each channel normalised. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Fit = Literal["pad", "crop", "stretch"]
"""How a picture becomes square: white beside it (our composed models), its middle (CLIP), or pulled (SigLIP)."""
_LONGEST = 64
"""A picture may be so many times as long as it is wide before its ends are left out."""


def fitted_pixels(
    image: Any, fit: Fit, size: int, mean: Sequence[float], std: Sequence[float], *, resample: int = 3
) -> NDArray[np.float32]:
    """(3, size, size) of an RGB PIL image, `crop` or `stretch`. resample: Pillow's number, 3 is bicubic.

    The same as the processors of transformers (Pillow backend) to the last bit of the scaled picture.
    """
    from PIL import Image

    if fit == "crop":
        shorter = min(image.size)
        if (
            max(image.size) > _LONGEST * shorter
        ):  # a strip: what is cut away would be most of it, scaled to gigabytes
            width, height = (min(side, _LONGEST * shorter) for side in image.size)
            left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
        sides = tuple(size if side == shorter else int(size * side / shorter) for side in image.size)
        left, top = (sides[0] - size) // 2, (sides[1] - size) // 2
        image = image.resize(sides, Image.Resampling(resample)).crop((left, top, left + size, top + size))
    elif fit == "stretch":
        image = image.resize((size, size), Image.Resampling(resample))
    else:
        raise ValueError(f"fit {fit!r} is not made here")
    scaled: NDArray[np.float32] = np.asarray(image, dtype=np.float32) / np.float32(255)
    channels = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(channels.transpose(2, 0, 1), dtype=np.float32)
