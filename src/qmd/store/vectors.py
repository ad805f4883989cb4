"""Vectors, keyed by (sha256 of the embedded text, model fingerprint). The database is the truth, the matrix derived."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmd.errors import ModelMismatch, NotFound, StoreDamaged
from qmd.store.chunks import SEPARATOR, embedding_text
from qmd.store.connect import Connection
from qmd.store.documents import body_of
from qmd.store.matrix import DEAD_SHARE, Damaged, Map, MatrixFiles, VectorMatrix, checksums, quantise
from qmd.store.schema import NEW_GENERATION

READ_ROWS = 2048


@dataclass(frozen=True, slots=True)
class PendingText:
    """A text that has no vector yet. `key` is what its vector is stored under."""

    key: bytes
    text: str


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that made vectors in this index; `count` vectors of `dim` dimensions."""

    fingerprint: str
    name: str
    dim: int
    count: int


class Vectors:
    """Reads vectors, and writes them a batch at a time, each batch its own transaction."""

    def __init__(self, db: Connection, say: Callable[[str], None] | None = None) -> None:
        self._db = db
        self._say = say
        self._cached: dict[str, VectorMatrix] = {}
        self._loading = threading.Lock()

    def models(self) -> list[StoredModel]:
        return [
            StoredModel(*row)
            for row in self._db.all(
                "SELECT m.fingerprint, m.name, m.dim, (SELECT count(*) FROM vectors v WHERE v.model_id = m.id) "
                "FROM models m ORDER BY m.id"
            )
        ]

    def has(self, fingerprint: str) -> bool:
        """Whether the model has a vector here; counts none."""
        found = "SELECT EXISTS (SELECT 1 FROM vectors WHERE model_id = ?)"
        return bool(self._db.value(found, (self._model_id(fingerprint),)))

    def count(self, fingerprint: str) -> tuple[int, int]:
        """(chunks with a vector of this model, chunks)."""
        done = self._db.value(
            "SELECT count(*) FROM chunks c WHERE EXISTS "
            "(SELECT 1 FROM vectors v WHERE v.model_id = ? AND v.key = c.key)",
            (self._model_id(fingerprint),),
        )
        return int(done), int(self._db.value("SELECT count(*) FROM chunks"))

    def pending(self, fingerprint: str, limit: int) -> list[PendingText]:
        """Texts without a vector of this model, newest document first, each text once.

        A text whose stored document is damaged is left out; `integrity` names it.
        """
        found: dict[bytes, str] = {}
        passed = 0
        while not found:  # all that was read may belong to damaged documents
            rows = self._db.all(
                """SELECT c.key, c.document_id, d.title, c.headings, c.start, c.end
                   FROM documents d CROSS JOIN chunks c ON c.document_id = d.id
                   WHERE NOT EXISTS (SELECT 1 FROM vectors v WHERE v.model_id = ? AND v.key = c.key)
                   ORDER BY d.mtime_ns DESC, c.id LIMIT ? OFFSET ?""",
                (self._model_id(fingerprint), limit, passed),
            )
            if not rows:
                break
            passed += len(rows)
            found = self._texts(rows)
        return [PendingText(key, value) for key, value in found.items()]

    def _texts(self, rows: Iterable[tuple[Any, ...]]) -> dict[bytes, str]:
        """key -> what is embedded, of (key, document id, title, headings, start, end); without damaged documents."""
        found: dict[bytes, str] = {}
        document, text = -1, None
        for key, document_id, title, headings, start, end in rows:
            if key in found:
                continue
            if document_id != document:
                document, text = document_id, None
                with suppress(StoreDamaged):
                    text = body_of(self._db, document_id)
            if text is not None:
                path = tuple(headings.split(SEPARATOR)) if headings else ()
                found[key] = embedding_text(title, path, text[start:end])
        return found

    def pending_characters(self, fingerprint: str) -> int:
        """Length of all chunks without a vector of this model: what an estimate of time left rests on."""
        return int(
            self._db.value(
                "SELECT coalesce(sum(c.end - c.start), 0) FROM chunks c WHERE NOT EXISTS "
                "(SELECT 1 FROM vectors v WHERE v.model_id = ? AND v.key = c.key)",
                (self._model_id(fingerprint),),
            )
        )

    def put(
        self,
        fingerprint: str,
        model_name: str,
        dim: int,
        vectors: Iterable[tuple[bytes, NDArray[np.float32]]],
    ) -> None:
        """Store one batch in one transaction. Raises ModelMismatch for vectors of another length."""
        rows: list[tuple[bytes, int, bytes]] = []
        for key, vector in vectors:
            data = np.ascontiguousarray(vector, np.float32)
            if data.shape != (dim,):
                raise ModelMismatch(
                    f"{model_name} gave a vector of shape {data.shape}, ({dim},) was expected. "
                    "Run `qmd check`: the model's files may be damaged."
                )
            blob = data.tobytes()
            rows.append((key, zlib.crc32(key + blob), blob))
        with self._db.transaction():
            model = self._db.one("SELECT id, dim FROM models WHERE fingerprint = ?", (fingerprint,))
            if model is None:
                self._db.run(
                    "INSERT INTO models (fingerprint, name, dim) VALUES (?, ?, ?)",
                    (fingerprint, model_name, dim),
                )
                model = self._db.one("SELECT id, dim FROM models WHERE fingerprint = ?", (fingerprint,))
            assert model is not None
            if model[1] != dim:
                raise ModelMismatch(
                    f"the index holds {model[1]}d vectors of {model_name}, these have {dim}d. "
                    "Run `qmd embed --model-changed`."
                )
            self._db.many(
                "INSERT INTO vectors (model_id, key, crc, vector) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (model_id, key) DO NOTHING",
                ((model[0], *row) for row in rows),
            )
            self._db.run(NEW_GENERATION)

    def of_keys(self, fingerprint: str, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Stored vectors of a model by the key of their text; keys without one are left out, as are damaged ones."""
        model_id = self._model_id(fingerprint)
        found: dict[bytes, NDArray[np.float32]] = {}
        for key in keys:
            row = self._db.one(
                "SELECT crc, vector FROM vectors WHERE model_id = ? AND key = ?", (model_id, key)
            )
            if row is not None and zlib.crc32(key + row[1]) == row[0]:
                found[key] = np.frombuffer(row[1], dtype=np.float32)
        return found

    def forget(self, fingerprint: str) -> None:
        """Drop all vectors of a model, and its derived files."""
        with self._db.transaction():
            model_id = self._model_id(fingerprint)
            self._db.run("DELETE FROM vectors WHERE model_id = ?", (model_id,))
            self._db.run("DELETE FROM models WHERE id = ?", (model_id,))
            self._db.run(NEW_GENERATION)
        self._cached.pop(fingerprint, None)
        remove_matrix(self.folder(fingerprint))

    def folder(self, fingerprint: str) -> Path:
        safe = "".join(c if c.isalnum() else "-" for c in fingerprint)[:40]
        return (
            self._db.path.with_name(f"{self._db.path.name}.vectors")
            / f"{safe}-{zlib.crc32(fingerprint.encode()):08x}"
        )

    def stem(self, fingerprint: str) -> Path | None:
        """Where the matrix on disk lies (see `VectorMatrix.stem`), None when there is none or it is damaged."""
        database = self._db.value("SELECT value FROM meta WHERE key = 'database'")
        files = MatrixFiles(self.folder(fingerprint), database, fingerprint)
        try:
            saved = files.read_map()
        except Damaged:
            return None
        return None if saved is None else files.stem(saved.token)

    def matrix(self, fingerprint: str) -> VectorMatrix:
        """The model's vectors as of now, from the derived files, which are made, extended or rebuilt as needed.

        Kept in this process while the index does not change. Raises NotFound when the model has no vectors here,
        StoreDamaged when a vector in the database fails its checksum.
        """
        generation = int(self._db.value("SELECT value FROM meta WHERE key = 'generation'"))
        with self._loading:
            cached = self._cached.get(fingerprint)
            if cached is not None and cached.generation == generation:
                return cached
            with self._db.snapshot():
                fresh = self._fresh(fingerprint)
            if fresh.notes and self._say is not None:
                for note in fresh.notes:
                    self._say(note)
            self._cached[fingerprint] = replace(fresh, notes=())
            return fresh

    def let_go(self) -> None:
        """Forget the matrices that this process has in memory."""
        with self._loading:
            self._cached.clear()

    def _fresh(self, fingerprint: str) -> VectorMatrix:
        generation = int(self._db.value("SELECT value FROM meta WHERE key = 'generation'"))
        model = self._db.one("SELECT id, dim FROM models WHERE fingerprint = ?", (fingerprint,))
        if model is None:
            raise NotFound(f"no vectors of model {fingerprint} in {self._db.path}. Run `qmd embed`.")
        files = MatrixFiles(
            self.folder(fingerprint),
            self._db.value("SELECT value FROM meta WHERE key = 'database'"),
            fingerprint,
        )
        notes: tuple[str, ...] = ()
        try:
            saved = files.read_map()
            if saved is not None and saved.generation == generation and saved.dim == model[1]:
                rows, codes = files.load(saved)
                return _matrix(files, saved, rows, codes, ())
        except Damaged as damage:
            saved = None
            notes = (
                f"the vector matrix in {files.folder} was damaged: {damage}. It was rebuilt from the database.",
            )
        wanted = self._wanted(model[0])
        try:
            with files.locked() as mine:
                if mine:
                    return self._renew(files, saved, wanted, generation, model[1], fingerprint, notes)
        except OSError as error:
            notes += (f"the vector matrix could not be written ({error}); vectors are held in memory.",)
        return self._in_memory(wanted, model[1], fingerprint, generation, notes)

    def _wanted(self, model_id: int) -> NDArray[np.int64]:
        """(n, 2): chunk id and identity of its vector, by chunk id.

        The identity is the vector's row id and its CRC-32: ids alone mean something else in a restored backup.
        """
        rows = self._db.all(
            "SELECT c.id, v.id << 32 | v.crc FROM chunks c "
            "JOIN vectors v ON v.model_id = ? AND v.key = c.key ORDER BY c.id",
            (model_id,),
        )
        return np.array(rows, np.int64).reshape(-1, 2)

    def _renew(
        self,
        files: MatrixFiles,
        saved: Map | None,
        wanted: NDArray[np.int64],
        generation: int,
        dim: int,
        fingerprint: str,
        notes: tuple[str, ...],
    ) -> VectorMatrix:
        """Extend what is on disk when most of it still counts, else write it anew."""
        if saved is not None and saved.dim == dim:
            try:
                saved = files.read_map()  # another process may have been here before the lock was ours
                if saved is not None and saved.generation <= generation:
                    extended = self._extend(files, saved, wanted, generation)
                    if extended is not None:
                        rows, codes = files.load(extended)
                        return _matrix(files, extended, rows, codes, notes)
            except Damaged as damage:
                notes += (
                    f"the vector matrix in {files.folder} was damaged: {damage}. It was rebuilt from the database.",
                )
        scales = np.empty(len(wanted), np.float32)
        with files.rewrite() as (token, row_file, code_file):
            for start in range(0, len(wanted), READ_ROWS):
                block = self._read(wanted[start : start + READ_ROWS, 1], dim)
                codes, scales[start : start + len(block)] = quantise(block)
                row_file.write(block.tobytes())
                code_file.write(codes.tobytes())
        new = Map(
            token,
            generation,
            dim,
            wanted[:, 0].copy(),
            wanted[:, 1].copy(),
            scales,
            *(np.zeros(0, np.uint64),) * 2,
        )
        rows, codes = (
            files._open(new, "f32", np.float32, len(wanted), dim),
            files._open(new, "i8", np.int8, len(wanted), dim),
        )
        new = replace(new, row_sums=checksums(rows), code_sums=checksums(codes))
        files.write_map(new)
        return _matrix(files, new, rows, codes, notes)

    def _extend(
        self, files: MatrixFiles, saved: Map, wanted: NDArray[np.int64], generation: int
    ) -> Map | None:
        """The map with gone rows marked and new rows appended; None when too much of it is gone."""
        have = np.stack([saved.chunk_ids, saved.vector_ids], axis=1)
        kind = np.dtype([("c", np.int64), ("v", np.int64)])
        old, now = np.ascontiguousarray(have).view(kind)[:, 0], np.ascontiguousarray(wanted).view(kind)[:, 0]
        keep = np.isin(old, now)
        if len(old) and (~keep).sum() > DEAD_SHARE * len(old):
            return None
        rows, _ = files.load(saved)  # checked before it is built upon
        del rows
        added = wanted[~np.isin(now, old)]
        blocks = [self._read(added[i : i + READ_ROWS, 1], saved.dim) for i in range(0, len(added), READ_ROWS)]
        fresh = np.concatenate(blocks) if blocks else np.zeros((0, saved.dim), np.float32)
        codes, scales = quantise(fresh)
        if len(added):
            if not len(old):
                return None  # nothing on disk to append to
            files.append(saved, fresh, codes)
        new = replace(
            saved,
            generation=generation,
            chunk_ids=np.concatenate([np.where(keep, saved.chunk_ids, -1), added[:, 0]]),
            vector_ids=np.concatenate([saved.vector_ids, added[:, 1]]),
            scales=np.concatenate([saved.scales, scales]),
        )
        n = len(new.chunk_ids)
        new = replace(
            new,
            row_sums=checksums(files._open(new, "f32", np.float32, n, saved.dim)),
            code_sums=checksums(files._open(new, "i8", np.int8, n, saved.dim)),
        )
        files.write_map(new)
        return new

    def _in_memory(
        self, wanted: NDArray[np.int64], dim: int, fingerprint: str, generation: int, notes: tuple[str, ...]
    ) -> VectorMatrix:
        blocks = [self._read(wanted[i : i + READ_ROWS, 1], dim) for i in range(0, len(wanted), READ_ROWS)]
        rows = np.concatenate(blocks) if blocks else np.zeros((0, dim), np.float32)
        codes, scales = quantise(rows)
        return VectorMatrix(rows, wanted[:, 0].copy(), codes, scales, fingerprint, generation, notes)

    def _read(self, vector_ids: Sequence[int] | NDArray[np.int64], dim: int) -> NDArray[np.float32]:
        """(len(ids), d): vectors by identity, each compared with its checksum. Raises StoreDamaged."""
        unique, inverse = np.unique(np.asarray(vector_ids, np.int64) >> 32, return_inverse=True)
        rows = self._db.all(
            "SELECT v.key, v.crc, v.vector FROM json_each(?) w CROSS JOIN vectors v ON v.id = w.value ORDER BY v.id",
            (str(unique.tolist()),),
        )
        bad = sum(zlib.crc32(key + blob) != crc or len(blob) != 4 * dim for key, crc, blob in rows)
        if bad or len(rows) != len(unique):
            raise StoreDamaged(
                f"{max(bad, 1)} vectors in {self._db.path} do not match their checksums. "
                "Run `qmd cleanup`, then `qmd embed`: they are made again."
            )
        data = np.frombuffer(b"".join(row[2] for row in rows), np.float32).reshape(-1, dim)
        return np.ascontiguousarray(data[inverse])

    def _model_id(self, fingerprint: str) -> int:
        found = self._db.value("SELECT id FROM models WHERE fingerprint = ?", (fingerprint,))
        return -1 if found is None else int(found)


def _matrix(
    files: MatrixFiles, saved: Map, rows: NDArray[np.float32], codes: NDArray[np.int8], notes: tuple[str, ...]
) -> VectorMatrix:
    return VectorMatrix(
        rows,
        saved.chunk_ids,
        codes,
        saved.scales,
        files.fingerprint,
        saved.generation,
        notes,
        files.stem(saved.token),
    )


def remove_matrix(folder: Path) -> None:
    """Delete derived files; they are made again when needed."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()
