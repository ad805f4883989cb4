"""Opening images the same way everywhere: orientation applied, transparency on white, RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def open_image(image: Any) -> Any:
    """An RGB PIL image from a path or a PIL image."""
    from PIL import Image, ImageOps

    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            opened.load()
            image = opened
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def square_pixels(image: Any, size: int, mean: float, std: float) -> NDArray[np.float32]:
    """(3, size, size) normalised; the shorter side is padded with white, so nothing is cropped away."""
    from PIL import Image

    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    scaled = square.resize((size, size), Image.Resampling.BICUBIC)
    values = (np.asarray(scaled, dtype=np.float32) / 255.0 - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)
