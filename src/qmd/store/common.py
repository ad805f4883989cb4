"""Common words beside the database: their postings and frequencies, so that the next process need not read them again.

The words of a question that stand in thousands of passages ("how", "file") cost more to read from the keyword index, 2
microseconds a posting, than all else of a search. A process that has read some writes them down when it closes the
index. Derived: of one state of one database (its identity and generation), each word with a checksum; whatever does not
fit is left aside. Only single words that are common are written, so the file says nothing of what was asked.

Layout: MAGIC, the length of the head (8 bytes, little end first), the head (JSON), then at multiples of 8, for each
word, its chunk ids (int64), BM25 (float64) and BM25 of the body alone (float32).
"""

from __future__ import annotations

import json
import mmap
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmd.store.postings import Kept

MAGIC = b"QMDWORD1"
LEAST_POSTINGS = 2_000
"""A word with fewer is read in some milliseconds, and may say what was asked."""
MOST_POSTINGS = 1_500_000
"""20 bytes each: 30 MB."""
_WORD = re.compile(r'"[^"\s]+"')


class CommonWords:
    """What the file at `path` says of the state `generation` of the database `identity`. Opening never raises: without
    a file, or with one of another state, there are no words."""

    def __init__(self, path: Path, identity: str, generation: int) -> None:
        self.path, self.identity, self.generation = path, identity, generation
        self.frequencies: dict[str, int] = {}
        self._places: dict[str, tuple[int, int, int]] = {}
        self._data = memoryview(b"")
        with suppress(OSError, ValueError, KeyError, TypeError):
            self._open()

    def _open(self) -> None:
        with self.path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if data[:8] != MAGIC:
            return
        length = int.from_bytes(data[8:16], "little")
        head = json.loads(bytes(data[16 : 16 + length]))
        if (head["database"], head["generation"]) != (self.identity, self.generation):
            return
        begin = _padded(16 + length)
        places = {}
        for word, count, checksum in head["words"]:
            places[str(word)] = (begin, int(count), int(checksum))
            begin += _size(int(count))
        if begin == len(data):
            self._data, self._places = data, places
            self.frequencies = {str(t): int(n) for t, n in head["frequencies"].items()}

    def __contains__(self, expression: str) -> bool:
        return expression in self._places

    def get(self, expression: str) -> Kept | None:
        """(chunk ids, BM25, BM25 of the body); None where the word is not here or its bytes are damaged."""
        if expression not in self._places:
            return None
        import numpy as np

        begin, count, checksum = self._places[expression]
        block = self._data[begin : begin + _size(count)]
        if zlib.crc32(block) != checksum:
            del self._places[expression]
            return None
        return (
            np.frombuffer(block[: 8 * count], np.int64),
            np.frombuffer(block[8 * count : 16 * count], np.float64),
            np.frombuffer(block[16 * count : 20 * count], np.float32),
        )

    def write(self, kept: Iterable[tuple[str, Kept]], frequencies: Mapping[str, int]) -> None:
        """Add the common ones of `kept` (what was asked for last first) and write all anew, if any is new. A disk that
        is full or cannot be written is done without."""
        wanted = {
            word: found
            for word, found in kept
            if found[0].shape[0] >= LEAST_POSTINGS and _WORD.fullmatch(word)
        }
        if not wanted.keys() - self._places.keys():
            return
        for word in list(self._places):
            found = self.get(word) if word not in wanted else None
            if found is not None:
                wanted[word] = found
        words, blocks, total = [], [], 0
        for word, (ids, scores, bodies) in wanted.items():
            total += ids.shape[0]
            if total > MOST_POSTINGS:
                break
            block = b"".join((ids.tobytes(), scores.tobytes(), bodies.tobytes()))
            block += bytes(_size(ids.shape[0]) - len(block))
            words.append((word, ids.shape[0], zlib.crc32(block)))
            blocks.append(block)
        common = {t: n for t, n in {**self.frequencies, **frequencies}.items() if n >= LEAST_POSTINGS}
        head = json.dumps(
            {
                "database": self.identity,
                "generation": self.generation,
                "words": words,
                "frequencies": common,
            }
        ).encode()
        start = MAGIC + len(head).to_bytes(8, "little") + head
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        with suppress(OSError):
            try:
                with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                    file.write(start + bytes(_padded(len(start)) - len(start)))
                    file.writelines(blocks)
                draft.replace(self.path)
            finally:
                draft.unlink(missing_ok=True)


def _padded(size: int) -> int:
    return (size + 7) // 8 * 8


def _size(count: int) -> int:
    return _padded(20 * count)
