"""Documents: one row for each file, its text once, its tags and links; the only writer of the keyword index."""

from __future__ import annotations

import builtins
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Any

from qmd.errors import StoreDamaged, UsageError
from qmd.store.cjk import index_text
from qmd.store.connect import Connection
from qmd.store.filters import path_condition, spellings
from qmd.store.schema import PICTURES, TEXTS
from qmd.types import Document, Link

DOCID_LENGTH = 6


@dataclass(frozen=True, slots=True)
class FileStamp:
    """How a stored file looked when it was read. `hash` is sha256 of its bytes."""

    document_id: int
    size: int
    mtime_ns: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as stored. `text` is read and checked against its checksum; None in listings."""

    id: int
    collection: str
    path: str
    docid: str
    title: str
    type: str
    lang: str
    date: str | None
    size: int
    mtime_ns: int
    hash: bytes
    aliases: tuple[str, ...]
    fields: Mapping[str, object]
    text: str | None = None


def stored_path(value: str | bytes) -> str:
    """A path as it came: names that are no UTF-8 are kept as bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def path_value(path: str) -> str | bytes:
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return path.encode("utf-8", "surrogateescape")


def clean(text: str) -> str:
    """Text that SQLite and UTF-8 can hold: lone surrogates become the replacement character."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


def body_of(db: Connection, document_id: int) -> str:
    """The text of a document. Raises StoreDamaged when it does not match its checksum."""
    row = db.one(
        "SELECT b.text, d.crc FROM documents d LEFT JOIN bodies b ON b.id = d.id WHERE d.id = ?",
        (document_id,),
    )
    if row is None:
        return ""
    if row[0] is None or zlib.crc32(row[0]) != row[1]:
        raise StoreDamaged(
            f"the stored text of document {document_id} in {db.path} does not match its checksum. "
            "Run `qmd cleanup`, then `qmd update`: the file is read again."
        )
    return str(row[0], "utf-8")


_COLUMNS = """d.id, n.name, d.path, d.docid, d.title, d.type, d.lang, d.date, d.size, d.mtime_ns, d.hash,
    d.aliases, d.fields FROM documents d JOIN collections n ON n.id = d.collection_id"""


class Documents:
    """Reads documents."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def known_files(self, collection: str) -> dict[str, FileStamp]:
        """path -> how the file looked when it was read, for every document of the collection."""
        rows = self._db.all(
            "SELECT d.path, d.id, d.size, d.mtime_ns, d.hash FROM documents d "
            "WHERE d.collection_id = (SELECT id FROM collections WHERE name = ?)",
            (collection,),
        )
        return {stored_path(row[0]): FileStamp(*row[1:]) for row in rows}

    def known_skips(self, collection: str) -> dict[str, tuple[int, int, str]]:
        """path -> (size, mtime_ns, reason) of the files that were read and skipped."""
        rows = self._db.all(
            "SELECT path, size, mtime_ns, reason FROM skipped "
            "WHERE collection_id = (SELECT id FROM collections WHERE name = ?)",
            (collection,),
        )
        return {stored_path(row[0]): (row[1], row[2], row[3]) for row in rows}

    def get(self, document_id: int) -> StoredDocument | None:
        with self._db.snapshot():
            row = self._db.one(f"SELECT {_COLUMNS} WHERE d.id = ?", (document_id,))
            return None if row is None else _document(row, body_of(self._db, document_id))

    def find(self, collection: str, path: str) -> StoredDocument | None:
        """The one of this name, else the one whose name is composed of other characters (NFC, NFD)."""
        names = [path_value(name) for name in spellings(path)]
        row = self._db.one(
            "SELECT d.id FROM documents d JOIN collections n ON n.id = d.collection_id "
            f"WHERE n.name = ? AND d.path IN ({', '.join('?' * len(names))}) ORDER BY d.path = ? DESC",
            (collection, *names, names[0]),
        )
        return None if row is None else self.get(row[0])

    def find_docid(self, docid: str) -> StoredDocument | None:
        """By docid or an unambiguous beginning of one, with or without '#'. Raises UsageError if ambiguous."""
        name = docid.lstrip("#").lower()
        if not name or any(c not in "0123456789abcdef" for c in name):
            return None
        exact = self._db.one("SELECT id FROM documents WHERE docid = ?", (name,))
        if exact is not None:
            return self.get(exact[0])
        if len(name) < 4:
            return None
        rows = self._db.all(
            "SELECT id, docid, path FROM documents WHERE docid >= ? AND docid < ? LIMIT 5", (name, name + "g")
        )
        if len(rows) > 1:
            raise UsageError(
                f"#{name} could be "
                + ", ".join(f"#{r[1]} ({stored_path(r[2])})" for r in rows)
                + ". Give one more character."
            )
        return self.get(rows[0][0]) if rows else None

    def languages(self) -> dict[str, int]:
        """Language -> number of documents, most frequent first."""
        rows = self._db.all("SELECT lang, count(*) FROM documents GROUP BY lang ORDER BY 2 DESC, 1")
        return {row[0]: int(row[1]) for row in rows}

    def languages_by_collection(self) -> dict[str, dict[str, int]]:
        """collection -> (language -> number of documents, most frequent first)."""
        rows = self._db.all(
            "SELECT n.name, d.lang, count(*) FROM documents d JOIN collections n ON n.id = d.collection_id "
            "GROUP BY n.name, d.lang ORDER BY 1, 3 DESC, 2"
        )
        found: dict[str, dict[str, int]] = {}
        for name, lang, count in rows:
            found.setdefault(name, {})[lang] = int(count)
        return found

    def days(self, ids: Iterable[int]) -> dict[int, tuple[str, date | None]]:
        """document id -> (collection, its date; None where it is no date)."""
        rows = self._db.all(
            "SELECT d.id, n.name, d.day FROM json_each(?) w CROSS JOIN documents d ON d.id = w.value "
            "JOIN collections n ON n.id = d.collection_id",
            (json.dumps(sorted(ids)),),
        )
        return {row[0]: (row[1], _read_day(row[2])) for row in rows}

    def fields(self, document_id: int) -> Mapping[str, object]:
        """What the document's own header says: of a picture its format and size."""
        found = self._db.value("SELECT fields FROM documents WHERE id = ?", (document_id,))
        fields: dict[str, object] = json.loads(found) if found else {}
        return fields

    def tags(self, document_id: int) -> tuple[str, ...]:
        return tuple(t for (t,) in self._db.all("SELECT tag FROM tags WHERE document_id = ?", (document_id,)))

    def links(self, document_id: int) -> tuple[Link, ...]:
        """Links out of a document, in reading order."""
        rows = self._db.all(
            "SELECT target, kind, line, anchor FROM links WHERE document_id = ? ORDER BY rowid",
            (document_id,),
        )
        return tuple(Link(*row) for row in rows)

    def links_naming(self, names: Iterable[str]) -> builtins.list[tuple[int, Link]]:
        """(document id, link) of every link whose target, without case, holds one of the names."""
        rows = self._db.all(
            "SELECT DISTINCT l.rowid, l.document_id, l.target, l.kind, l.line, l.anchor FROM links l "
            "JOIN json_each(?) w ON instr(qmd_fold(l.target), w.value) ORDER BY l.document_id, l.line",
            (json.dumps([name.casefold() for name in names]),),
        )
        return [(row[1], Link(*row[2:])) for row in rows]

    def list(self, collection: str | None = None, glob: str | None = None) -> list[StoredDocument]:
        """Without their texts, by collection and path."""
        parts, values = ["1"], list[object]()
        if collection is not None:
            parts.append("n.name = ?")
            values.append(collection)
        if glob:
            sql, globs = path_condition(glob)
            parts.append(sql)
            values.extend(globs)
        rows = self._db.all(f"SELECT {_COLUMNS} WHERE {' AND '.join(parts)} ORDER BY n.name, d.path", values)
        return [_document(row) for row in rows]

    def recent(self, limit: int) -> builtins.list[StoredDocument]:
        """The documents whose files changed last, newest first, without their texts."""
        rows = self._db.all(f"SELECT {_COLUMNS} ORDER BY d.mtime_ns DESC, d.id LIMIT ?", (limit,))
        return [_document(row) for row in rows]

    def newest(self) -> dict[str, int]:
        """collection -> the latest modification time of its files, in nanoseconds."""
        rows = self._db.all(
            "SELECT n.name, max(d.mtime_ns) FROM documents d JOIN collections n ON n.id = d.collection_id GROUP BY 1"
        )
        return {row[0]: row[1] for row in rows}

    def common_tags(self, limit: int) -> builtins.list[tuple[str, int]]:
        """(tag, documents that have it), the most used first."""
        rows = self._db.all(
            "SELECT tag, count(*) FROM tags GROUP BY tag ORDER BY count(*) DESC, tag LIMIT ?", (limit,)
        )
        return [(tag, count) for tag, count in rows]

    def names(self) -> builtins.list[tuple[str, str]]:
        """(collection, path) of every document, without anything else of it."""
        rows = self._db.all(
            "SELECT n.name, d.path FROM documents d JOIN collections n ON n.id = d.collection_id "
            "ORDER BY n.name, d.path"
        )
        return [(name, stored_path(path)) for name, path in rows]

    def named_from(self, start: str, limit: int) -> builtins.list[str]:
        """Names (`collection/path`) that begin with `start`, in order."""
        rows = self._db.all(
            "SELECT n.name || '/' || d.path AS name FROM documents d JOIN collections n ON n.id = d.collection_id "
            "WHERE typeof(d.path) = 'text' AND substr(n.name || '/' || d.path, 1, ?) = ? ORDER BY name LIMIT ?",
            (len(start), start, limit),
        )
        return [row[0] for row in rows]


def _document(row: tuple[Any, ...], text: str | None = None) -> StoredDocument:
    return StoredDocument(  # type: ignore[call-arg]  # mypy does not count starred slices
        row[0], row[1], stored_path(row[2]), *row[3:11], tuple(json.loads(row[11])), json.loads(row[12]), text
    )


def words_table(type: str) -> str:
    """Where the words of a document of this type are looked up."""
    return PICTURES if type == "image" else TEXTS


class DocumentWriter:
    """Writes documents, inside one write transaction of the store."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._collections: dict[str, int] = {}
        self._next_chunk = 0
        self.changed = False

    def put_document(
        self, collection: str, path: str, *, size: int, mtime_ns: int, hash: bytes, document: Document
    ) -> int:
        """Store a parsed file, in place of what stood at its path. Gives the document id.

        hash: sha256 of the file's bytes. Raises UsageError for an unknown collection.
        """
        self.changed = True
        collection_id = self._collection(collection)
        where = path_value(path)
        old = self._db.one(
            "SELECT id FROM documents WHERE collection_id = ? AND path = ?", (collection_id, where)
        )
        if old is not None:
            self.delete_documents([old[0]])
        self._db.run("DELETE FROM skipped WHERE collection_id = ? AND path = ?", (collection_id, where))
        text, title = clean(document.text), clean(document.title)
        body = text.encode()
        day = document.date or _day(mtime_ns)
        with_id = (None if old is None else old[0],)
        self._db.run(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *with_id,
                collection_id,
                where,
                size,
                mtime_ns,
                hash,
                self._free_docid(hash, collection, path),
                title,
                document.type,
                document.lang,
                document.date,
                day,
                _json(document.aliases),
                _json(document.fields),
                zlib.crc32(body),
            ),
        )
        document_id: int = with_id[0] or self._db.value("SELECT last_insert_rowid()")
        self._db.run("INSERT INTO bodies VALUES (?, ?)", (document_id, body))
        if document.tags:
            self._db.many(
                "INSERT OR IGNORE INTO tags VALUES (?, ?)",
                [(clean(tag).lstrip("#").casefold(), document_id) for tag in document.tags],
            )
        if document.links:
            self._db.many(
                "INSERT INTO links VALUES (?, ?, ?, ?, ?)",
                [
                    (document_id, clean(k.target), k.kind, k.line, k.anchor and clean(k.anchor))
                    for k in document.links
                ],
            )
        self._put_chunks(document_id, path, title, text, document)
        return document_id

    def _put_chunks(self, document_id: int, path: str, title: str, text: str, document: Document) -> None:
        from qmd.store.chunks import SEPARATOR, embedding_key, embedding_text

        first = self._next_chunk or 1 + int(
            self._db.value("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'chunks'), 0)")
        )
        self._next_chunk = first + len(document.chunks)
        rows: list[tuple[object, ...]] = []
        words: list[tuple[object, ...]] = []
        title_words, path_words = index_text(title), index_text(clean(path))
        for number, chunk in enumerate(document.chunks, start=first):
            piece = text[chunk.start : chunk.end]
            headings = clean(SEPARATOR.join(chunk.heading_path))
            key = embedding_key(embedding_text(title, chunk.heading_path, piece))
            rows.append(
                (
                    number,
                    document_id,
                    chunk.start,
                    chunk.end,
                    chunk.line,
                    chunk.end_line,
                    chunk.tokens,
                    headings,
                    key,
                )
            )
            words.append((number, title_words, index_text(headings), index_text(piece), path_words))
        self._db.many("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self._index(words_table(document.type), words)

    def touch(self, document_id: int, size: int, mtime_ns: int) -> None:
        """The file was written but its bytes are the same: remember its new stamp."""
        day = self._db.value("SELECT date FROM documents WHERE id = ?", (document_id,)) or _day(mtime_ns)
        self._db.run(
            "UPDATE documents SET size = ?, mtime_ns = ?, day = ? WHERE id = ?",
            (size, mtime_ns, day, document_id),
        )

    def move_document(
        self, document_id: int, new_path: str, *, size: int, mtime_ns: int, title: str | None = None
    ) -> None:
        """The file has another name: the keyword index follows, the text, docid and vectors stay.

        title: the new title, if it came from the file's name.
        """
        self.changed = True
        table, words = self._words(document_id)
        self._unindex(table, words)
        if title is not None and clean(title) == self._db.value(
            "SELECT title FROM documents WHERE id = ?", (document_id,)
        ):
            title = None
        sets = "path = ?" if title is None else "path = ?, title = ?"
        values = (path_value(new_path),) if title is None else (path_value(new_path), clean(title))
        self._db.run(f"UPDATE documents SET {sets} WHERE id = ?", (*values, document_id))
        self.touch(document_id, size, mtime_ns)
        new_path_words = index_text(clean(new_path))
        new_title = None if title is None else index_text(clean(title))
        self._index(
            table, [(w[0], w[1] if new_title is None else new_title, *w[2:4], new_path_words) for w in words]
        )
        if title is not None:
            self._renew_keys(document_id, clean(title))

    def _renew_keys(self, document_id: int, title: str) -> None:
        """After a new title: chunks with a vector keep it, the others will be embedded under the new title."""
        from qmd.store.chunks import SEPARATOR, embedding_key, embedding_text

        text = body_of(self._db, document_id)
        rows = self._db.all(
            "SELECT id, headings, start, end FROM chunks c WHERE document_id = ? "
            "AND NOT EXISTS (SELECT 1 FROM vectors v WHERE v.key = c.key)",
            (document_id,),
        )
        keys = []
        for number, headings, start, end in rows:
            path = tuple(headings.split(SEPARATOR)) if headings else ()
            keys.append((embedding_key(embedding_text(title, path, text[start:end])), number))
        self._db.many("UPDATE chunks SET key = ? WHERE id = ?", keys)

    def delete_documents(self, document_ids: Iterable[int]) -> None:
        """Take documents out of every table and the keyword index. Their vectors stay until `cleanup`."""
        for document_id in document_ids:
            self.changed = True
            self._unindex(*self._words(document_id))
            for table, column in (
                ("chunks", "document_id"),
                ("tags", "document_id"),
                ("links", "document_id"),
                ("bodies", "id"),
                ("documents", "id"),
            ):
                self._db.run(f"DELETE FROM {table} WHERE {column} = ?", (document_id,))

    def note_skipped(self, collection: str, path: str, *, size: int, mtime_ns: int, reason: str) -> None:
        """Remember that a file was read and left out; what stood at its path goes."""
        collection_id = self._collection(collection)
        where = path_value(path)
        old = self._db.one(
            "SELECT id FROM documents WHERE collection_id = ? AND path = ?", (collection_id, where)
        )
        if old is not None:
            self.delete_documents([old[0]])
        self._db.run(
            "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?, ?)",
            (collection_id, where, size, mtime_ns, clean(reason)),
        )

    def forget_skipped(self, collection: str, paths: Iterable[str]) -> None:
        collection_id = self._collection(collection)
        self._db.many(
            "DELETE FROM skipped WHERE collection_id = ? AND path = ?",
            [(collection_id, path_value(p)) for p in paths],
        )

    def _words(self, document_id: int) -> tuple[str, list[tuple[object, ...]]]:
        """The table of its words and its rows there, made again from the stored text exactly as they were written."""
        row = self._db.one("SELECT title, path, type FROM documents WHERE id = ?", (document_id,))
        if row is None:
            return TEXTS, []
        chunks = self._db.all(
            "SELECT id, headings, start, end FROM chunks WHERE document_id = ?", (document_id,)
        )
        text = body_of(self._db, document_id)
        title, path = index_text(row[0]), index_text(clean(stored_path(row[1])))
        words: list[tuple[object, ...]] = [
            (i, title, index_text(h), index_text(text[start:end]), path) for i, h, start, end in chunks
        ]
        return words_table(row[2]), words

    def _index(self, table: str, words: Sequence[tuple[object, ...]]) -> None:
        self._db.many(
            f"INSERT INTO {table}(rowid, title, headings, body, path) VALUES (?, ?, ?, ?, ?)", words
        )

    def _unindex(self, table: str, words: Sequence[tuple[object, ...]]) -> None:
        self._db.many(
            f"INSERT INTO {table}({table}, rowid, title, headings, body, path) VALUES ('delete', ?, ?, ?, ?, ?)",
            words,
        )

    def _collection(self, name: str) -> int:
        if name not in self._collections:
            row = self._db.one("SELECT id FROM collections WHERE name = ?", (name,))
            if row is None:
                raise UsageError(f"there is no collection {name!r}. Run `qmd collection list`.")
            self._collections[name] = row[0]
        return self._collections[name]

    def _free_docid(self, digest: bytes, collection: str, path: str) -> str:
        """The shortest beginning of the content hash, six digits or more, that no other document has."""
        digits = digest.hex()
        for length in range(DOCID_LENGTH, 13):
            if self._db.one("SELECT 1 FROM documents WHERE docid = ?", (digits[:length],)) is None:
                return digits[:length]
            if length == DOCID_LENGTH and self._db.one(
                "SELECT 1 FROM documents WHERE docid = ? AND hash = ?", (digits[:length], digest)
            ):
                break  # the same bytes twice: tell them apart by where they are
        place = sha256(digest + f"{collection}\0{path}".encode("utf-8", "surrogateescape"))
        # A copy that was here and has moved on keeps the docid that it got here.
        while self._db.one("SELECT 1 FROM documents WHERE docid = ?", (place.hexdigest()[:16],)) is not None:
            place.update(b"\0")
        return place.hexdigest()[:16]


def _read_day(day: str) -> date | None:
    try:
        return date.fromisoformat(day[:10])
    except ValueError:
        return None


def _json(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
    return clean(json.dumps(plain, ensure_ascii=True, default=str))


def _day(mtime_ns: int) -> str:
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return "1970-01-01T00:00:00+00:00"
