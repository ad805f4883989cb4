"""Pictures as pixels, opened the same way everywhere: bounded, upright, transparency on white, RGB. Knows no model.

Pillow is an extra (`images`): keyword and vector search of texts do without it.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmd.errors import BadPicture, MissingExtra

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF")
"""What is opened at all; every other decoder stays shut, whatever a file is called."""
MOST_PIXELS = 64_000_000
"""Larger pictures are refused before a pixel is decoded: 192 MB of RGB."""
_SMALLER = 512
"""JPEG decodes at a half, a quarter or an eighth of its size where that still covers this many pixels a side."""
_DESCRIPTION, _TAKEN, _EXIF = 0x010E, 0x9003, 0x8769
_CAMERA_NOISE = frozenset({"olympus digital camera", "sony dsc", "digital camera", "samsung", "dcim"})


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What a picture's header says. `width` x `height` in pixels, as it is to be seen; `taken` is an ISO date."""

    format: str
    width: int
    height: int
    description: str = ""
    taken: str | None = None


def has_pillow() -> bool:
    """Whether pictures can be opened here; imports nothing."""
    return find_spec("PIL") is not None


def read_facts(data: bytes) -> PictureFacts:
    """The header of a picture; no pixel is decoded. Raises BadPicture, MissingExtra without Pillow."""
    with _refusing():
        from PIL import Image

        opened = _open(data)
        if opened.format == "PNG":
            _open(data).verify()  # checksums of every part: a cut file shows
        # The base class reads EXIF from the header alone; that of PNG would decode the picture first.
        exif: Any = Image.Image.getexif(opened)
        turned = exif.get(0x0112) in (5, 6, 7, 8)
        width, height = opened.size[::-1] if turned else opened.size
        words = _words(exif.get(_DESCRIPTION)) or _words(opened.info.get("Description"))
        taken = _date(exif.get_ifd(_EXIF).get(_TAKEN))
        return PictureFacts(str(opened.format), width, height, words, taken)
    raise AssertionError


def open_image(image: Any) -> Any:
    """An RGB PIL image from a path, bytes or a PIL image; of several frames the first.

    Raises BadPicture for what is damaged, cut short, of another format, or larger than `MOST_PIXELS`.
    """
    from PIL import Image, ImageOps

    with _refusing():
        if isinstance(image, str | Path | bytes):
            opened = _open(image)
            if opened.format == "JPEG":
                opened.draft("RGB", (_SMALLER, _SMALLER))
            opened.load()
            image = opened
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits a pixel
            image = Image.fromarray(
                (np.asarray(image, dtype=np.float32) / 257.0).clip(0, 255).astype(np.uint8)
            )
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")


def square_pixels(image: Any, size: int, mean: float, std: float) -> NDArray[np.float32]:
    """(3, size, size) normalised; the shorter side is padded with white, so nothing is cropped away."""
    from PIL import Image

    longest = max(image.size)
    scale = size / longest
    inner = tuple(max(1, round(side * scale)) for side in image.size)
    scaled = image.resize(inner, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), "white")
    square.paste(scaled, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    values = (np.asarray(square, dtype=np.float32) / 255.0 - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def _open(source: str | Path | bytes) -> Any:
    from PIL import Image

    opened = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    width, height = opened.size
    if width * height > MOST_PIXELS:
        raise BadPicture(
            f"too many pixels: {width:,} x {height:,}, the limit is {MOST_PIXELS // 10**6} million"
        )
    return opened


class _refusing:
    """Whatever a decoder says of a bad file becomes BadPicture; without Pillow, MissingExtra names the extra."""

    def __enter__(self) -> None:
        if not has_pillow():
            raise MissingExtra("opening pictures", "images")
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.simplefilter("ignore")  # of odd tags, and of many pixels: our own bound is the lower one

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._quiet.__exit__(None, None, None)
        if error is None or isinstance(error, BadPicture | FileNotFoundError | PermissionError):
            return
        from PIL import Image, UnidentifiedImageError

        if isinstance(error, UnidentifiedImageError):
            raise BadPicture("no picture that can be opened") from error
        if isinstance(error, Image.DecompressionBombError):
            raise BadPicture("too many pixels") from error
        damaged = (
            OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
            struct.error, zlib.error, OverflowError, MemoryError, NotImplementedError, RuntimeError,
        )  # fmt: skip
        if isinstance(error, damaged):
            raise BadPicture(f"damaged picture: {str(error)[:120] or type(error).__name__}") from error


def _words(value: object) -> str:
    """A description of EXIF, in one line; what cameras write there by themselves is none."""
    text = (
        value.decode("utf-8", "replace")
        if isinstance(value, bytes)
        else value
        if isinstance(value, str)
        else ""
    )
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:500]
    return "" if text.casefold() in _CAMERA_NOISE else text


def _date(value: object) -> str | None:
    """`2024:05:31 10:20:30` as EXIF writes it -> `2024-05-31`."""
    text = str(value)[:10].replace(":", "-")
    parts = text.split("-")
    right = len(parts) == 3 and all(p.isdigit() for p in parts) and len(parts[0]) == 4
    return text if right and 1 <= int(parts[1]) <= 12 and 1 <= int(parts[2]) <= 31 else None
