"""Rows of chunks: what a search gives back, and the text that is embedded for them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from qmd.store.connect import Connection
from qmd.store.documents import body_of, stored_path
from qmd.store.filters import compile_filter
from qmd.types import Filter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEPARATOR = "\x1f"


def embedding_text(title: str, heading_path: Sequence[str], text: str) -> str:
    """What is embedded for a chunk: "title > heading > heading", a line break, the chunk's text."""
    headings = heading_path[1:] if heading_path and heading_path[0] == title else heading_path
    return " > ".join((title, *headings)) + "\n" + text


def embedding_key(text: str) -> bytes:
    """sha256 of the embedded text: equal text, equal vector, wherever it stands."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A chunk with what a hit shows of its document. `text` is read from the one stored copy; `dashed`: the document
    opens with `---`, as front matter does."""

    id: int
    document_id: int
    collection: str
    path: str
    docid: str
    title: str
    type: str
    lang: str
    date: str | None
    mtime_ns: int
    line: int
    end_line: int
    start: int
    end: int
    heading_path: tuple[str, ...]
    text: str
    tags: tuple[str, ...]
    key: bytes
    dashed: bool = False
    size: int = 0


def bodies_of(db: Connection, documents: str) -> dict[int, str]:
    """document id -> text, for a JSON list of ids. Raises StoreDamaged when one does not match its checksum."""
    rows = db.all(
        "SELECT d.id, b.text, d.crc FROM json_each(?) w CROSS JOIN documents d ON d.id = w.value "
        "LEFT JOIN bodies b ON b.id = d.id",
        (documents,),
    )
    # One that does not match is read again by the door that explains it.
    return {
        id: body_of(db, id) if text is None or zlib.crc32(text) != crc else str(text, "utf-8")
        for id, text, crc in rows
    }


class Chunks:
    """Reads chunks. Writing them is part of writing a document."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def get(self, ids: Iterable[int]) -> dict[int, ChunkRow]:
        """id -> row, in the order asked; ids that are gone are left out. Raises StoreDamaged on a bad text."""
        wanted = [int(i) for i in ids]
        found: dict[int, ChunkRow] = {}
        with self._db.snapshot():
            rows = self._db.all(
                """SELECT c.id, c.document_id, n.name, d.path, d.docid, d.title, d.type, d.lang, d.date,
                d.mtime_ns,
                          c.line, c.end_line, c.start, c.end, c.headings, c.key, d.size
                   FROM json_each(?) w CROSS JOIN chunks c ON c.id = w.value
                   JOIN documents d ON d.id = c.document_id JOIN collections n ON n.id = d.collection_id""",
                (json.dumps(wanted),),
            )
            documents = json.dumps(list({row[1] for row in rows}))
            texts = bodies_of(self._db, documents)
            tags: dict[int, list[str]] = {}
            for document, tag in self._db.all(
                "SELECT t.document_id, t.tag FROM json_each(?) w CROSS JOIN tags t ON t.document_id = w.value",
                (documents,),
            ):
                tags.setdefault(document, []).append(tag)
        for row in rows:
            start, end, headings, key, size = row[12:]
            found[row[0]] = ChunkRow(  # type: ignore[call-arg, misc]  # mypy does not count starred slices
                *row[:3],
                stored_path(row[3]),
                *row[4:14],
                tuple(headings.split(SEPARATOR)) if headings else (),
                texts[row[1]][start:end],
                tuple(tags.get(row[1], ())),
                key,
                size=size,
            )
            if texts[row[1]].startswith("---"):
                found[row[0]] = replace(found[row[0]], dashed=True)
        return {i: found[i] for i in wanted if i in found}

    def places(self, ids: Iterable[int]) -> dict[int, tuple[int, str, int]]:
        """id -> (document id, docid, line): what grouping needs, without reading any text."""
        rows = self._db.all(
            "SELECT c.id, c.document_id, d.docid, c.line FROM json_each(?) w CROSS JOIN chunks c ON c.id = w.value "
            "JOIN documents d ON d.id = c.document_id",
            (json.dumps([int(i) for i in ids]),),
        )
        return {row[0]: (row[1], row[2], row[3]) for row in rows}

    def ids(self, wanted: Filter) -> NDArray[np.int64] | None:
        """Sorted ids of the chunks that pass the filter; None when it has no condition."""
        condition = compile_filter(wanted)
        if condition is None:
            return None
        rows = self._db.all(
            f"SELECT id FROM chunks WHERE document_id IN ({condition.documents})", condition.parameters
        )
        import numpy as np

        return np.sort(np.fromiter((r[0] for r in rows), np.int64, len(rows)))

    def headings(self, document_id: int) -> list[tuple[int, int, tuple[str, ...]]]:
        """(first line, last line, heading path) of a document's chunks, in reading order."""
        rows = self._db.all(
            "SELECT line, end_line, headings FROM chunks WHERE document_id = ? ORDER BY start", (document_id,)
        )
        return [(row[0], row[1], tuple(row[2].split(SEPARATOR)) if row[2] else ()) for row in rows]

    def of_document(self, document_id: int) -> list[int]:
        """Ids of a document's chunks, in reading order."""
        return [
            r[0]
            for r in self._db.all(
                "SELECT id FROM chunks WHERE document_id = ? ORDER BY start", (document_id,)
            )
        ]
