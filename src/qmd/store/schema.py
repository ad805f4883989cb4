"""The database's layout, as numbered migrations. A new database runs them all, an older one the rest."""

from __future__ import annotations

import re
import sqlite3
import unicodedata
import uuid
import zlib
from collections.abc import Callable

APPLICATION_ID = 0x514D4431  # "QMD1"
PAGE_SIZE = 4096
TOKENIZER = "porter unicode61 remove_diacritics 2"
COLUMNS = ("title", "headings", "body", "path")
WEIGHTS = (4.0, 2.0, 1.0, 1.5)
"""BM25 weights of COLUMNS: a word of the title counts four times a word of the body."""

TEXTS, PICTURES = "keyword", "picture_words"
"""Tables of words: of texts, and of pictures, whose names and captions would otherwise count as texts of a few words
and change how rare every word is and how long every text."""

NEW_GENERATION = "UPDATE meta SET value = value + 1 + abs(random() % 1099511627776) WHERE key = 'generation'"
"""The generation rises by a random step: after a backup is restored, it never again equals one seen before."""


def _first(db: sqlite3.Connection) -> None:
    for statement in (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
        """CREATE TABLE collections (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, root TEXT NOT NULL,
            patterns TEXT NOT NULL, ignore TEXT NOT NULL, include INTEGER NOT NULL)""",
        """CREATE TABLE contexts (
            collection TEXT NOT NULL, path TEXT NOT NULL, text TEXT NOT NULL,
            PRIMARY KEY (collection, path)) WITHOUT ROWID""",
        # `day` is the date that after/before compare: the document's own, else that of its modification.
        """CREATE TABLE documents (
            id INTEGER PRIMARY KEY AUTOINCREMENT, collection_id INTEGER NOT NULL REFERENCES collections(id),
            path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, hash BLOB NOT NULL,
            docid TEXT NOT NULL UNIQUE, title TEXT NOT NULL, type TEXT NOT NULL, lang TEXT NOT NULL,
            date TEXT, day TEXT NOT NULL, aliases TEXT NOT NULL, fields TEXT NOT NULL, crc INTEGER NOT NULL,
            UNIQUE (collection_id, path))""",
        "CREATE TABLE bodies (id INTEGER PRIMARY KEY REFERENCES documents(id), text BLOB NOT NULL)",
        # start/end are character offsets into the body; key is sha256 of the text that is embedded.
        """CREATE TABLE chunks (
            id INTEGER PRIMARY KEY AUTOINCREMENT, document_id INTEGER NOT NULL REFERENCES documents(id),
            start INTEGER NOT NULL, end INTEGER NOT NULL, line INTEGER NOT NULL, end_line INTEGER NOT NULL,
            tokens INTEGER NOT NULL, headings TEXT NOT NULL, key BLOB NOT NULL)""",
        "CREATE INDEX chunks_by_document ON chunks (document_id)",
        "CREATE TABLE tags (tag TEXT NOT NULL, document_id INTEGER NOT NULL, PRIMARY KEY (tag, document_id)) "
        "WITHOUT ROWID",
        "CREATE INDEX tags_by_document ON tags (document_id)",
        """CREATE TABLE links (
            document_id INTEGER NOT NULL, target TEXT NOT NULL, kind TEXT NOT NULL, line INTEGER NOT NULL,
            anchor TEXT)""",
        "CREATE INDEX links_by_document ON links (document_id)",
        "CREATE INDEX links_by_target ON links (target)",
        "CREATE TABLE models (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, name TEXT NOT NULL, "
        "dim INTEGER NOT NULL)",
        """CREATE TABLE vectors (
            id INTEGER PRIMARY KEY AUTOINCREMENT, model_id INTEGER NOT NULL REFERENCES models(id),
            key BLOB NOT NULL, crc INTEGER NOT NULL, vector BLOB NOT NULL, UNIQUE (model_id, key))""",
        # Contentless: the text is kept once, in `bodies`; rows leave the index through explicit 'delete' rows.
        f"CREATE VIRTUAL TABLE keyword USING fts5({', '.join(COLUMNS)}, content='', tokenize='{TOKENIZER}')",
        # Less merging while many rows come in: the hash of pending terms may grow to 8 MB before it is written.
        "INSERT INTO keyword(keyword, rank) VALUES ('hashsize', 8000000)",
        "CREATE VIRTUAL TABLE keyword_terms USING fts5vocab('keyword', 'row')",
        "CREATE VIRTUAL TABLE keyword_places USING fts5vocab('keyword', 'instance')",
    ):
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES ('database', ?), ('generation', 0)", (uuid.uuid4().hex,))


def _skipped_files(db: sqlite3.Connection) -> None:
    """Remember what was skipped and why: it is not read again while it does not change, and always reported."""
    db.execute(
        """CREATE TABLE skipped (
            collection_id INTEGER NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL,
            mtime_ns INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (collection_id, path)) WITHOUT ROWID"""
    )


def _picture_vectors(db: sqlite3.Connection) -> None:
    """Vectors of pictures, by the hash of their bytes: a space of their own beside that of the texts.

    A row without a vector says why the picture could not be looked at; it is not tried again.
    """
    db.execute(
        """CREATE TABLE picture_vectors (
            fingerprint TEXT NOT NULL, hash BLOB NOT NULL, crc INTEGER NOT NULL, vector BLOB, refused TEXT,
            PRIMARY KEY (fingerprint, hash)) WITHOUT ROWID"""
    )
    db.execute("CREATE INDEX pictures_by_hash ON documents (hash) WHERE type = 'image'")


def _picture_words(db: sqlite3.Connection) -> None:
    """Words of pictures leave the table of texts for one of their own."""
    from qmd.store.cjk import bigrams
    from qmd.store.documents import clean, stored_path

    columns = ", ".join(COLUMNS)
    db.execute(f"CREATE VIRTUAL TABLE {PICTURES} USING fts5({columns}, content='', tokenize='{TOKENIZER}')")
    db.execute(f"CREATE VIRTUAL TABLE {PICTURES}_terms USING fts5vocab('{PICTURES}', 'row')")
    db.execute(f"CREATE VIRTUAL TABLE {PICTURES}_places USING fts5vocab('{PICTURES}', 'instance')")
    pictures = db.execute(
        "SELECT c.id, d.title, c.headings, b.text, c.start, c.end, d.path FROM documents d "
        "JOIN bodies b ON b.id = d.id JOIN chunks c ON c.document_id = d.id WHERE d.type = 'image'"
    ).fetchall()
    if pictures:  # scores of common words are kept beside the index, by its generation
        db.execute(NEW_GENERATION)
    for chunk, title, headings, body, start, end, path in pictures:
        name = path if isinstance(path, str) else clean(stored_path(path))
        parts = (title, headings, str(body, "utf-8")[start:end], name)
        if any(clean(part) != part for part in parts):
            continue  # the row is damaged: `cleanup` drops it, and writes all words anew
        words = (chunk, *(bigrams(_former_form(part)) for part in parts))
        db.execute(_TAKE_OUT.format(TEXTS), words)
        db.execute(_PUT_IN.format(PICTURES), words)


_TAKE_OUT = f"INSERT INTO {{0}}({{0}}, rowid, {', '.join(COLUMNS)}) VALUES ('delete', ?, ?, ?, ?, ?)"
_PUT_IN = f"INSERT INTO {{0}}(rowid, {', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?)"
_HELD = re.compile("[\uff01-\uff9f\uf900-\ufaff\ufb00-\ufb06\u3131-\u318e\u1100-\u11ff]")


def _former_form(text: str) -> str:
    """Until version 4 a text was normalised as a whole, and only if it held one of these."""
    return unicodedata.normalize("NFKC", text) if not text.isascii() and _HELD.search(text) else text


def _one_form(db: sqlite3.Connection) -> None:
    """Words in one form, whatever stands beside them (`cjk.fold`). Only rows whose words change are written anew, some
    MB of text a second. Nobody looks for links by their target."""
    from qmd.store.cjk import bigrams, fold
    from qmd.store.documents import clean, stored_path, words_table

    db.execute("DROP INDEX IF EXISTS links_by_target")
    db.execute(NEW_GENERATION)  # scores of common words are kept beside the index, by its generation
    documents = db.execute(
        "SELECT d.id, d.title, d.path, d.type, d.crc, b.text FROM documents d JOIN bodies b ON b.id = d.id"
    )
    for document, title, path, type, crc, body in documents:
        if not isinstance(body, bytes) or zlib.crc32(body) != crc:
            continue  # `cleanup` drops it, and writes all words anew
        text, table = str(body, "utf-8"), words_table(type)
        for chunk, headings, start, end in db.execute(
            "SELECT id, headings, start, end FROM chunks WHERE document_id = ?", (document,)
        ):
            name = path if isinstance(path, str) else clean(stored_path(path))
            parts = (title, headings, text[start:end], name)
            if any(clean(part) != part for part in parts):
                continue  # damaged, too
            former, now = [_former_form(part) for part in parts], [fold(part) for part in parts]
            if [part.replace("…", "...").replace("\u00a0", " ") for part in former] != now:
                db.execute(_TAKE_OUT.format(table), (chunk, *map(bigrams, former)))
                db.execute(_PUT_IN.format(table), (chunk, *map(bigrams, now)))


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _first,
    _skipped_files,
    _picture_vectors,
    _picture_words,
    _one_form,
)
FORMAT_VERSION = len(MIGRATIONS)
"""Kept in the database header as `PRAGMA user_version`."""


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Run the migrations after `version`. The caller holds the write transaction."""
    former, db.text_factory = db.text_factory, _readable
    try:
        for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
            migration(db)
            db.execute(f"PRAGMA user_version = {number}")
    finally:
        db.text_factory = former


def _readable(text: bytes) -> str:
    """A damaged text must not keep an index from being opened, and repaired."""
    return text.decode("utf-8", "surrogateescape")
