"""Look at the pictures that have no vector yet: newest first, each batch kept before the next begins."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from qmd.errors import BadPicture
from qmd.ingest.read import CannotRead, read_file
from qmd.ingest.walk import real_name
from qmd.store.store import Store
from qmd.types import Progress

if TYPE_CHECKING:
    from qmd.llm.image_text import ImageTextModel

BATCH = 32


@dataclass(frozen=True, slots=True)
class LookReport:
    """Pictures looked at by this run, those that cannot be, and those left (their files changed or are away)."""

    embedded: int
    refused: int
    remaining: int
    seconds: float
    interrupted: bool = False


def look_at_pictures(
    store: Store, model: ImageTextModel, max_file_bytes: int, progress: Progress | None = None
) -> LookReport:
    """Make the vectors of pictures that are missing. Ctrl-C ends it early and keeps what is done.

    A file that changed since it was indexed waits for the next update. What cannot be decoded is noted with the reason
    and not tried again. Vectors of another model are dropped once this one has looked at every picture.
    """
    from qmd.llm.pictures import open_image

    begin = time.monotonic()
    roots = store.roots()
    embedded = refused = 0
    passed: set[bytes] = set()
    total = store.pictures.count(model.fingerprint)
    interrupted = False
    try:
        while True:
            window = store.pictures.pending(model.fingerprint, BATCH + len(passed))
            batch = [p for p in window if p not in passed][:BATCH]
            if not batch:
                break
            pixels, keys = [], []
            bad: list[tuple[bytes, str]] = []
            for one in batch:
                data = _bytes(store, one, roots, max_file_bytes)
                if data is None:
                    passed.add(one)
                    continue
                try:
                    pixels.append(model.pixels(open_image(data)))
                    keys.append(one)
                except BadPicture as error:
                    bad.append((one, str(error)))
            vectors = model.embed_pixels(pixels)
            store.pictures.put(model.fingerprint, model.dim, zip(keys, vectors, strict=True), bad)
            embedded += len(keys)
            refused += len(bad)
            if progress is not None:
                progress(
                    "pictures", min(total.total, total.done + total.refused + embedded + refused), total.total
                )
    except KeyboardInterrupt:
        interrupted = True
    counts = store.pictures.count(model.fingerprint)
    left = counts.total - counts.done - counts.refused
    if not left and len(store.pictures.models()) > 1:
        store.pictures.forget_others(model.fingerprint)
    return LookReport(embedded, refused, left, time.monotonic() - begin, interrupted)


def _bytes(store: Store, picture: bytes, roots: dict[str, str], max_file_bytes: int) -> bytes | None:
    """The bytes that were indexed, wherever they still lie; None where every file is another by now."""
    for collection, path in store.pictures.places(picture):
        try:
            data = read_file(os.path.realpath(real_name(roots[collection], path)), max_file_bytes)
        except (CannotRead, KeyError):
            continue
        if sha256(data).digest() == picture:
            return data
    return None
