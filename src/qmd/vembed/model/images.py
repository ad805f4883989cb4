"""Opening images the same way everywhere: orientation applied, transparency on white, RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
