"""The memory-mapped copy of a model's vectors, derived from the database and checked every time it is opened.

A folder beside the database holds `rows-TOKEN.f32` (n x d float32), `rows-TOKEN.i8` (n x d int8) and `map.npz`, which
says which chunk each row is of, up to which generation of the database, and the checksum of every block of the two
others. `map.npz` is written last, under another name, then renamed: it alone decides what is valid. Rows are only ever
appended; a row whose chunk is gone keeps its place with chunk id -1 until a quarter are gone, then all is written anew.
"""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zlib import error as zlib_error

import numpy as np
from numpy.typing import NDArray

MAP_VERSION = 2
BLOCK_BYTES = 1 << 20
DEAD_SHARE = 0.25


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class VectorMatrix:
    """Vectors of one model, ready to scan. Read-only.

    rows: (n, d) float32; chunk_ids: (n,) int64, -1 where the chunk is gone (skip those; `live` is None if there are
    none); codes: (n, d) int8 with rows ~ codes * scales[:, None]; scales: (n,) float32. `notes` says what was repaired.
    stem: path of the files without ending, None when the matrix is in memory alone; what lies there under other
    endings is derived from it and goes when it is written anew.
    """

    rows: NDArray[np.float32]
    chunk_ids: NDArray[np.int64]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    fingerprint: str
    generation: int
    notes: tuple[str, ...] = ()
    stem: Path | None = None

    @property
    def live(self) -> NDArray[np.bool_] | None:
        gone = self.chunk_ids < 0
        return ~gone if gone.any() else None

    def __len__(self) -> int:
        return len(self.chunk_ids)


@dataclass(frozen=True, slots=True)
class Map:
    """What `map.npz` says."""

    token: str
    generation: int
    dim: int
    chunk_ids: NDArray[np.int64]
    vector_ids: NDArray[np.int64]
    scales: NDArray[np.float32]
    row_sums: NDArray[np.uint64]
    code_sums: NDArray[np.uint64]


class Damaged(Exception):
    """A derived file cannot be trusted; the message says why. Never leaves the store: the file is rebuilt."""


def quantise(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(n, d) float32 -> symmetric int8 codes and one scale for each row."""
    if not len(rows):
        return np.zeros(rows.shape, np.int8), np.zeros(0, np.float32)
    scales = (np.abs(rows).max(axis=1) / 127).astype(np.float32)
    safe = np.where(scales == 0, 1, scales)
    return np.rint(rows / safe[:, None]).astype(np.int8), scales


def checksums(data: NDArray[Any]) -> NDArray[np.uint64]:
    """One sum of 64-bit words for each block of 1 MiB: memory speed, and any flipped bit changes it."""
    raw = data.reshape(-1).view(np.uint8)
    whole = len(raw) // BLOCK_BYTES * BLOCK_BYTES
    sums = raw[:whole].view(np.uint64).reshape(-1, BLOCK_BYTES // 8).sum(axis=1, dtype=np.uint64)
    if whole == len(raw):
        return np.asarray(sums, np.uint64)
    rest = np.zeros((len(raw) - whole + 7) // 8 * 8, np.uint8)
    rest[: len(raw) - whole] = raw[whole:]
    together: NDArray[np.uint64] = np.append(sums, rest.view(np.uint64).sum(dtype=np.uint64))
    return together


class MatrixFiles:
    """Reads and writes the derived files of one model."""

    def __init__(self, folder: Path, database: str, fingerprint: str) -> None:
        self.folder, self.database, self.fingerprint = folder, database, fingerprint

    def read_map(self) -> Map | None:
        """None when there is none yet. Raises Damaged."""
        try:
            with np.load(self.folder / "map.npz", allow_pickle=False) as saved:
                arrays = {name: saved[name] for name in saved.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib_error) as error:
            raise Damaged(f"map.npz cannot be read ({error})") from error
        try:
            version, database, fingerprint, token = (str(v) for v in arrays["identity"])
            generation, dim = (int(v) for v in arrays["numbers"])
            found = Map(
                token,
                generation,
                dim,
                *(arrays[k] for k in ("chunk_ids", "vector_ids", "scales", "row_sums", "code_sums")),
            )
        except (KeyError, ValueError) as error:
            raise Damaged(f"map.npz lacks a part ({error})") from error
        if (version, database, fingerprint) != (str(MAP_VERSION), self.database, self.fingerprint):
            raise Damaged("map.npz is of another index, model or version")
        return found

    def load(self, saved: Map) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Map the two files and compare every block with its checksum. Raises Damaged."""
        n, d = len(saved.chunk_ids), saved.dim
        rows: NDArray[np.float32] = self._open(saved, "f32", np.float32, n, d)
        codes: NDArray[np.int8] = self._open(saved, "i8", np.int8, n, d)
        for name, data, sums in (("f32", rows, saved.row_sums), ("i8", codes, saved.code_sums)):
            if not np.array_equal(checksums(data), sums):
                raise Damaged(f"rows-{saved.token}.{name} does not match its checksums")
        return rows, codes

    def _open(self, saved: Map, end: str, kind: type, n: int, d: int) -> NDArray[Any]:
        if n == 0:
            return np.zeros((0, d), kind)
        path = self._rows(saved.token, end)
        try:
            if path.stat().st_size < n * d * np.dtype(kind).itemsize:
                raise Damaged(f"{path.name} is cut short")
            return np.memmap(path, kind, "r", shape=(n, d))
        except OSError as error:
            raise Damaged(f"{path.name} cannot be read ({error})") from error

    def append(self, saved: Map, rows: NDArray[np.float32], codes: NDArray[np.int8]) -> None:
        """Write rows after the `len(saved.chunk_ids)` that count. What readers have mapped is not touched."""
        n = len(saved.chunk_ids)
        for end, data in (("f32", rows), ("i8", codes)):
            with open(self._rows(saved.token, end), "r+b") as file:
                file.seek(n * saved.dim * data.itemsize)
                file.write(np.ascontiguousarray(data).tobytes())
                file.truncate()
                _sync(file)

    @contextmanager
    def rewrite(self) -> Iterator[tuple[str, IO[bytes], IO[bytes]]]:
        """New files under a new token; the old ones stay valid until the map names the new ones."""
        token = secrets.token_hex(6)
        rows, codes = self._create(token, "f32"), self._create(token, "i8")
        try:
            yield token, rows, codes
            _sync(rows)
            _sync(codes)
        except BaseException:
            for end in ("f32", "i8"):
                with suppress(OSError):
                    self._rows(token, end).unlink()
            raise
        finally:
            rows.close()
            codes.close()

    def write_map(self, new: Map) -> None:
        draft = self.folder / f".map-{secrets.token_hex(4)}.new"
        try:
            with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                np.savez(
                    file,
                    identity=np.array([str(MAP_VERSION), self.database, self.fingerprint, new.token]),
                    numbers=np.array([new.generation, new.dim], np.int64),
                    chunk_ids=new.chunk_ids,
                    vector_ids=new.vector_ids,
                    scales=new.scales,
                    row_sums=new.row_sums,
                    code_sums=new.code_sums,
                )
                _sync(file)
            os.replace(draft, self.folder / "map.npz")
        finally:
            with suppress(OSError):
                draft.unlink()
        for path in self.folder.glob("rows-*"):
            if not path.name.startswith(f"rows-{new.token}."):
                with suppress(OSError):
                    path.unlink()

    def stem(self, token: str) -> Path:
        return self.folder / f"rows-{token}"

    def _rows(self, token: str, end: str) -> Path:
        return self.folder / f"rows-{token}.{end}"

    def _create(self, token: str, end: str) -> IO[bytes]:
        return open(os.open(self._rows(token, end), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "w+b")

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """One process at a time writes the files. Gives False, at once, when another is at it."""
        self.folder.parent.mkdir(mode=0o700, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with open(os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600), "r+b") as file:
            if not _lock(file):
                yield False
                return
            yield True  # closing the file gives the lock back


def _lock(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:
        return True  # no advisory locks on this platform: the rename of map.npz still decides
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
