"""Check an index, say what is wrong, repair what can be derived, shrink what is left."""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import dataclass

from qmd.errors import StoreDamaged, StoreError
from qmd.store.cjk import index_text
from qmd.store.connect import Connection
from qmd.store.documents import clean, stored_path, words_table
from qmd.store.pictures import bad_vectors as bad_pictures
from qmd.store.pictures import tidy as tidy_pictures
from qmd.store.schema import NEW_GENERATION, PICTURES, TEXTS
from qmd.store.vectors import Vectors, remove_matrix

BATCH = 500
_WRITTEN = """CAST(CASE typeof(d.path) WHEN 'text' THEN d.path ELSE '' END || char(10) || d.title || char(10) || d.docid
    || char(10) || d.type || char(10) || d.lang || char(10) || coalesce(d.date, '') || char(10) || d.day || char(10)
    || d.aliases || char(10) || d.fields || char(10) || coalesce(
        (SELECT group_concat(headings, char(10)) FROM chunks WHERE document_id = d.id), '') AS BLOB)"""
"""What of a document is kept as text, as bytes. A path that is no UTF-8 is kept as bytes."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the index. `repairable`: `cleanup` puts it right (some of it needs an update after)."""

    what: str
    remedy: str
    repairable: bool = True


@dataclass(frozen=True, slots=True)
class Counts:
    collections: int
    documents: int
    chunks: int
    vectors: int
    skipped: int
    text_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CleanupReport:
    """What was done. Sizes are of the database file with its log, in bytes."""

    size_before: int
    size_after: int
    orphan_vectors: int
    dropped_documents: int
    dropped_vectors: int
    keyword_rebuilt: bool
    notes: tuple[str, ...] = ()
    searches_forgotten: int = 0


def counts(db: Connection) -> Counts:
    with db.snapshot():
        numbers = [
            int(db.value(f"SELECT count(*) FROM {table}"))
            for table in ("collections", "documents", "chunks", "vectors", "skipped")
        ]
        text_bytes = int(db.value("SELECT coalesce(sum(length(text)), 0) FROM bodies"))
    return Counts(*numbers, text_bytes, _size(db))  # type: ignore[call-arg]  # mypy does not count starred slices


def _size(db: Connection) -> int:
    return sum(
        file.stat().st_size
        for end in ("", "-wal")
        if (file := db.path.with_name(db.path.name + end)).exists()
    )


def integrity(db: Connection, vectors: Vectors) -> list[Problem]:
    """Page structure, the keyword index, every text and vector against its checksum, references between tables."""
    problems: list[Problem] = []
    again = "Run `qmd cleanup`, then `qmd update`: what is missing is read again from your files."
    try:
        for (line,) in db.all("PRAGMA quick_check(10)"):
            if line != "ok":
                problems.append(Problem(f"database structure: {line}", again))
        problems += [Problem(what, "Run `qmd cleanup`.") for what in _keyword_problems(db)]
        bad = bad_documents(db)
        if bad:
            problems.append(Problem(f"{len(bad)} documents are damaged", again))
        bad_rows = len(bad_vectors(db)) + len(bad_pictures(db))
        if bad_rows:
            problems.append(
                Problem(
                    f"{bad_rows} vectors do not match their checksums",
                    "Run `qmd cleanup`, then `qmd embed`.",
                )
            )
        for what, sql in (
            (
                "chunks without a document",
                "SELECT count(*) FROM chunks WHERE document_id NOT IN (SELECT id FROM documents)",
            ),
            (
                "texts without a document",
                "SELECT count(*) FROM bodies WHERE id NOT IN (SELECT id FROM documents)",
            ),
        ):
            number = db.value(sql)
            if number:
                problems.append(Problem(f"{number} {what}", "Run `qmd cleanup`."))
    except StoreDamaged as error:
        problems.append(Problem(str(error), again))
    return problems


def _keyword_problems(db: Connection) -> list[str]:
    found = []
    for table in (TEXTS, PICTURES):
        try:
            db.raw.execute(f"INSERT INTO {table}({table}) VALUES ('integrity-check')")
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                return (
                    [] if "readonly" in str(error) or "locked" in str(error) else [f"keyword index: {error}"]
                )
            found.append(f"the keyword index is damaged ({error})")
    chunks = db.value("SELECT count(*) FROM chunks")
    indexed = sum(int(db.value(f"SELECT count(*) FROM {table}_docsize")) for table in (TEXTS, PICTURES))
    missing = db.value(
        "SELECT count(*) FROM chunks c JOIN documents d ON d.id = c.document_id WHERE CASE d.type WHEN 'image' "
        f"THEN c.id NOT IN (SELECT id FROM {PICTURES}_docsize) ELSE c.id NOT IN (SELECT id FROM {TEXTS}_docsize) END"
    )
    if chunks != indexed or missing:
        found.append(f"the keyword index holds {indexed} chunks, the index {chunks}")
    return found


def bad_documents(db: Connection) -> list[int]:
    """Ids of the documents whose text is gone or does not match its checksum, or whose row cannot be read."""
    bad: list[int] = []
    last = 0
    while True:
        rows = db.all(
            f"SELECT d.id, d.crc, b.text, {_WRITTEN} FROM documents d LEFT JOIN bodies b ON b.id = d.id "
            "WHERE d.id > ? ORDER BY d.id LIMIT ?",
            (last, BATCH),
        )
        if not rows:
            return bad
        bad += [
            i
            for i, crc, text, written in rows
            if not isinstance(text, bytes) or zlib.crc32(text) != crc or not _is_text(written)
        ]
        last = rows[-1][0]


def _is_text(data: bytes) -> bool:
    try:
        return bool(str(data, "utf-8"))
    except UnicodeDecodeError:
        return False


def bad_vectors(db: Connection) -> list[int]:
    """Ids of the vectors that do not match their checksums."""
    bad: list[int] = []
    last = 0
    while True:
        rows = db.all(
            "SELECT id, key, crc, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?", (last, BATCH)
        )
        if not rows:
            return bad
        bad += [i for i, key, crc, vector in rows if zlib.crc32(bytes(key) + bytes(vector)) != crc]
        last = rows[-1][0]


def cleanup(db: Connection, vectors: Vectors) -> CleanupReport:
    """Raises StoreDamaged when the pages themselves are beyond repair."""
    before = _size(db)
    notes: list[str] = []
    with db.transaction():
        broken = [line for (line,) in db.all("PRAGMA quick_check(10)") if line != "ok"]
        if broken:
            notes.append(f"database structure: {broken[0]}")
            db.run("REINDEX")
        damaged = bad_documents(db)
        rebuild = bool(damaged or broken or _keyword_problems(db))
        for table, column in (
            ("chunks", "document_id"),
            ("tags", "document_id"),
            ("links", "document_id"),
            ("bodies", "id"),
        ):
            if damaged:
                db.many(f"DELETE FROM {table} WHERE {column} = ?", [(i,) for i in damaged])
            dropped = db.run(f"DELETE FROM {table} WHERE {column} NOT IN (SELECT id FROM documents)")
            rebuild = rebuild or (table == "chunks" and dropped > 0)
        db.many("DELETE FROM documents WHERE id = ?", [(i,) for i in damaged])
        if damaged:
            notes.append(f"{len(damaged)} damaged documents were dropped; `qmd update` reads them again")
        bad = bad_vectors(db)
        db.many("DELETE FROM vectors WHERE id = ?", [(i,) for i in bad])
        dropped_pictures, orphan_pictures = tidy_pictures(db)
        dropped_vectors = len(bad) + dropped_pictures
        if dropped_vectors:
            notes.append(f"{dropped_vectors} damaged vectors were dropped; `qmd embed` makes them again")
        orphans = db.run("DELETE FROM vectors WHERE key NOT IN (SELECT key FROM chunks)") + orphan_pictures
        db.run("DELETE FROM models WHERE id NOT IN (SELECT model_id FROM vectors)")
        if rebuild:
            rebuild_keyword(db)
            notes.append("the keyword index was rebuilt from the stored texts")
        else:
            for table in (TEXTS, PICTURES):
                db.run(f"INSERT INTO {table}({table}) VALUES ('optimize')")
        db.run(NEW_GENERATION)
    db.run("VACUUM")
    db.one("PRAGMA wal_checkpoint(TRUNCATE)")
    _renew_matrices(db, vectors, notes)
    return CleanupReport(before, _size(db), orphans, len(damaged), dropped_vectors, rebuild, tuple(notes))


def _renew_matrices(db: Connection, vectors: Vectors, notes: list[str]) -> None:
    kept = set()
    for model in vectors.models():
        folder = vectors.folder(model.fingerprint)
        kept.add(folder)
        remove_matrix(folder)
        vectors.matrix(model.fingerprint)
    home = db.path.with_name(f"{db.path.name}.vectors")
    if home.is_dir():
        for folder in home.iterdir():
            if folder not in kept:
                remove_matrix(folder)
                notes.append(f"removed the vector matrix {folder.name}: its model has no vectors here")


def rebuild_keyword(db: Connection) -> None:
    """Write the keyword index anew from the stored texts. The caller holds the write transaction."""
    for table in (TEXTS, PICTURES):
        db.run(f"INSERT INTO {table}({table}) VALUES ('delete-all')")
    for (document_id,) in db.all("SELECT id FROM documents ORDER BY id"):
        row = db.one(
            "SELECT d.title, d.path, b.text, d.type FROM documents d JOIN bodies b ON b.id = d.id WHERE d.id = ?",
            (document_id,),
        )
        if row is None:
            raise StoreError(f"document {document_id} lost its text while the keyword index was rebuilt.")
        title, path, text = index_text(row[0]), index_text(clean(stored_path(row[1]))), str(row[2], "utf-8")
        db.many(
            f"INSERT INTO {words_table(row[3])}(rowid, title, headings, body, path) VALUES (?, ?, ?, ?, ?)",
            [
                (i, title, index_text(headings), index_text(text[start:end]), path)
                for i, headings, start, end in db.all(
                    "SELECT id, headings, start, end FROM chunks WHERE document_id = ?", (document_id,)
                )
            ],
        )
