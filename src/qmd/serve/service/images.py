"""The bytes of an indexed image: a regular file inside its collection, reached without following a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from qmd.errors import NotFound, UsageError
from qmd.index import Index

MOST_BYTES = 64 << 20
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)


def read_image(index: Index, docid: str) -> tuple[bytes, str]:
    """(bytes, media type by content). Raises NotFound for anything but an indexed image that is still there."""
    gone = NotFound(f"no image has the id {docid!r}.")
    wanted = docid.removeprefix("#")
    if not (wanted.isascii() and wanted.isalnum() and len(wanted) <= 64):
        raise gone
    document = index.store.find_docid(wanted)
    if document is None or not document.type.startswith("image"):
        raise gone
    root = next((c.root for c in index.store.collections() if c.name == document.collection), None)
    if root is None:
        raise gone
    try:
        index.stay_inside(Path(root))
        data = read_inside(root, document.path)
    except (OSError, UsageError):
        raise gone from None
    kind = image_type(data)
    if kind is None:
        raise gone
    return data, kind


def read_inside(root: str, path: str) -> bytes:
    """A regular file below `root`. Where the system can, each step is opened without following links, so that nothing
    can be swapped on the way.

    Raises OSError.
    """
    parts = PurePosixPath(path).parts
    if not parts or any(part in ("..", "/", "") for part in parts) or "\0" in path:
        raise FileNotFoundError(path)
    with _open_by_steps(root, parts) if hasattr(os, "O_NOFOLLOW") else _open_resolved(root, parts) as opened:
        found = os.fstat(opened.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            raise FileNotFoundError(path)
        return opened.read(MOST_BYTES)


def _open_by_steps(root: str, parts: Sequence[str]) -> BinaryIO:
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = inner
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)
    return open(file, "rb")


def _open_resolved(root: str, parts: Sequence[str]) -> BinaryIO:
    """Windows cannot open step by step: what a link leads to is looked at before."""
    file = Path(root, *parts).resolve(strict=True)
    if not file.is_relative_to(Path(root).resolve()) or not file.is_file():
        raise FileNotFoundError(file)
    return file.open("rb")


def image_type(data: bytes) -> str | None:
    """By the first bytes. SVG is a document that can run scripts: it is none of these."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return None
