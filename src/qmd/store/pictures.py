"""Vectors of pictures, keyed by (sha256 of the file's bytes, model fingerprint): a space of their own.

Knows documents of type "image", and no text. The database is the truth; the matrix of a model is read from it once a
process and kept while the index does not change.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmd.errors import ModelMismatch
from qmd.store.connect import Connection
from qmd.store.documents import stored_path
from qmd.store.schema import NEW_GENERATION

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KIND = "image"
"""`Document.type` of pictures."""


@dataclass(frozen=True, slots=True)
class PictureCounts:
    """Documents: pictures in all, those with a vector of the model, those it could not look at."""

    total: int
    done: int
    refused: int


@dataclass(frozen=True, slots=True)
class PictureMatrix:
    """rows: (n, d) float32, unit; chunk_ids: (n,) int64, the one chunk of each picture, rising."""

    rows: NDArray[np.float32]
    chunk_ids: NDArray[np.int64]


class Pictures:
    """Reads pictures' vectors, and writes them a batch at a time, each batch its own transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._kept: tuple[int, str, PictureMatrix] | None = None
        self._chunks: tuple[int, NDArray[np.int64]] | None = None

    def any(self) -> bool:
        """Whether the index holds a picture: one look into an index that has nothing else in it."""
        return bool(self._db.value("SELECT EXISTS (SELECT 1 FROM documents INDEXED BY pictures_by_hash "
                                   "WHERE type = 'image')"))  # fmt: skip

    def chunk_ids(self) -> NDArray[np.int64]:
        """(n,) rising: the chunks with the words of pictures. Remembered until the index changes."""
        import numpy as np

        generation, known = (
            int(self._db.value("SELECT value FROM meta WHERE key = 'generation'")),
            self._chunks,
        )
        if known is None or known[0] != generation:
            rows = self._db.all(
                "SELECT c.id FROM documents d INDEXED BY pictures_by_hash JOIN chunks c ON c.document_id = d.id "
                "WHERE d.type = 'image'"
            )
            ids = np.sort(np.fromiter((row[0] for row in rows), np.int64, len(rows)))
            self._chunks = known = (generation, ids)
        return known[1]

    def models(self) -> dict[str, int]:
        """fingerprint -> number of its vectors."""
        rows = self._db.all(
            "SELECT fingerprint, count(*) FROM picture_vectors WHERE vector IS NOT NULL GROUP BY 1 ORDER BY 1"
        )
        return {name: int(count) for name, count in rows}

    def has(self, fingerprint: str) -> bool:
        """Whether the model has a vector here."""
        return bool(
            self._db.value(
                "SELECT EXISTS (SELECT 1 FROM picture_vectors WHERE fingerprint = ? AND vector IS NOT NULL)",
                (fingerprint,),
            )
        )

    def count(self, fingerprint: str) -> PictureCounts:
        rows = self._db.one(
            "SELECT count(*), count(p.vector), count(p.refused) FROM documents d LEFT JOIN picture_vectors p "
            "ON p.fingerprint = ? AND p.hash = d.hash WHERE d.type = 'image'",
            (fingerprint,),
        )
        return PictureCounts(*map(int, rows or (0, 0, 0)))

    def refused(self, fingerprint: str) -> list[tuple[str, str, str]]:
        """(collection, path, why) of the pictures that could not be looked at."""
        rows = self._db.all(
            "SELECT n.name, d.path, p.refused FROM picture_vectors p JOIN documents d ON d.hash = p.hash "
            "AND d.type = 'image' JOIN collections n ON n.id = d.collection_id "
            "WHERE p.fingerprint = ? AND p.refused IS NOT NULL ORDER BY 1, 2",
            (fingerprint,),
        )
        return [(name, stored_path(path), why) for name, path, why in rows]

    def pending(self, fingerprint: str, limit: int) -> list[bytes]:
        """The contents (sha256 of their bytes) that the model has not looked at, newest first."""
        rows = self._db.all(
            "SELECT d.hash, max(d.mtime_ns) FROM documents d WHERE d.type = 'image' AND NOT EXISTS "
            "(SELECT 1 FROM picture_vectors p WHERE p.fingerprint = ? AND p.hash = d.hash) "
            "GROUP BY d.hash ORDER BY 2 DESC, d.id LIMIT ?",
            (fingerprint, limit),
        )
        return [row[0] for row in rows]

    def places(self, hash: bytes) -> list[tuple[str, str]]:
        """(collection, path) of every picture with this content."""
        rows = self._db.all(
            "SELECT n.name, d.path FROM documents d JOIN collections n ON n.id = d.collection_id "
            "WHERE d.hash = ? AND d.type = 'image' ORDER BY d.id",
            (hash,),
        )
        return [(name, stored_path(path)) for name, path in rows]

    def put(
        self,
        fingerprint: str,
        dim: int,
        vectors: Iterable[tuple[bytes, NDArray[np.float32]]],
        refused: Iterable[tuple[bytes, str]] = (),
    ) -> None:
        """Store one batch in one transaction: (hash, vector), and (hash, why) of those that cannot be looked at.

        Raises ModelMismatch for vectors of another length.
        """
        import numpy as np

        rows: list[tuple[object, ...]] = [(fingerprint, key, 0, None, why) for key, why in refused]
        for key, vector in vectors:
            data = np.ascontiguousarray(vector, np.float32)
            if data.shape != (dim,):
                raise ModelMismatch(f"a picture's vector has shape {data.shape}, ({dim},) was expected.")
            blob = data.tobytes()
            rows.append((fingerprint, key, zlib.crc32(key + blob), blob, None))
        with self._db.transaction():
            self._db.many("INSERT OR REPLACE INTO picture_vectors VALUES (?, ?, ?, ?, ?)", rows)
            self._db.run(NEW_GENERATION)

    def forget_others(self, fingerprint: str) -> int:
        """Drop what other models made. Gives the number of rows."""
        with self._db.transaction():
            dropped = self._db.run("DELETE FROM picture_vectors WHERE fingerprint != ?", (fingerprint,))
            self._db.run(NEW_GENERATION)
        return dropped

    def vector(self, fingerprint: str, document_id: int) -> NDArray[np.float32] | None:
        """(d,) of one document; None where it has none, or a damaged one."""
        import numpy as np

        row = self._db.one(
            "SELECT p.hash, p.crc, p.vector FROM documents d JOIN picture_vectors p ON p.fingerprint = ? "
            "AND p.hash = d.hash WHERE d.id = ? AND d.type = 'image' AND p.vector IS NOT NULL",
            (fingerprint, document_id),
        )
        if row is None or zlib.crc32(row[0] + row[2]) != row[1]:
            return None
        return np.frombuffer(row[2], np.float32)

    def matrix(self, fingerprint: str) -> PictureMatrix:
        """All vectors of a model; damaged ones are left out (`integrity` names them)."""
        import numpy as np

        with self._db.snapshot():
            generation = int(self._db.value("SELECT value FROM meta WHERE key = 'generation'"))
            known = self._kept  # another thread may begin another meanwhile
            if known is not None and known[:2] == (generation, fingerprint):
                return known[2]
            rows = self._db.all(
                "SELECT c.id, p.hash, p.crc, p.vector FROM picture_vectors p CROSS JOIN documents d "
                "ON d.hash = p.hash AND d.type = 'image' JOIN chunks c ON c.document_id = d.id "
                "WHERE p.fingerprint = ? AND p.vector IS NOT NULL",
                (fingerprint,),
            )
        whole = sorted((row for row in rows if zlib.crc32(row[1] + row[3]) == row[2]), key=lambda row: row[0])
        data = np.frombuffer(b"".join(row[3] for row in whole), np.float32)
        matrix = PictureMatrix(
            data.reshape(len(whole), -1) if whole else np.empty((0, 0), np.float32),
            np.fromiter((row[0] for row in whole), np.int64, len(whole)),
        )
        self._kept = (generation, fingerprint, matrix)
        return matrix


def bad_vectors(db: Connection) -> list[tuple[str, bytes]]:
    """(fingerprint, hash) of the vectors that do not match their checksums."""
    rows = db.all("SELECT fingerprint, hash, crc, vector FROM picture_vectors WHERE vector IS NOT NULL")
    return [(name, key) for name, key, crc, vector in rows if zlib.crc32(bytes(key) + bytes(vector)) != crc]


def tidy(db: Connection) -> tuple[int, int]:
    """Drop damaged vectors and those without a picture: (damaged, orphans). The caller holds the transaction."""
    bad = bad_vectors(db)
    db.many("DELETE FROM picture_vectors WHERE fingerprint = ? AND hash = ?", bad)
    gone = db.run(
        "DELETE FROM picture_vectors WHERE hash NOT IN (SELECT hash FROM documents WHERE type = 'image')"
    )
    return len(bad), gone
