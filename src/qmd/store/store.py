"""The door to an index: one `Store` for each database file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qmd.errors import StoreError
from qmd.store.chunks import ChunkRow, Chunks
from qmd.store.collections import Collections
from qmd.store.connect import BUSY_TIMEOUT_S, Connection, open_database
from qmd.store.documents import Documents, DocumentWriter, FileStamp, StoredDocument
from qmd.store.keyword import Keyword
from qmd.store.pictures import Pictures
from qmd.store.schema import NEW_GENERATION, PICTURES
from qmd.store.wholes import Wholes
from qmd.types import Collection, Filter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qmd.store.repair import CleanupReport, Counts, Problem
    from qmd.store.vectors import Vectors


class Store:
    """An open index. Usable from several threads; each has its own connection.

    Reading never waits for a writer and sees whole transactions only. `warn` is told what was repaired on
    the way.
    """

    def __init__(self, db: Connection, *, warn: Callable[[str], None] | None = None) -> None:
        self.path = db.path
        self.db = db
        self.documents = Documents(db)
        self.chunk_rows = Chunks(db)
        self.keyword = Keyword(db)
        self.pictures = Pictures(db)
        self.wholes = Wholes(db, self.keyword)
        self.picture_words = Keyword(db, PICTURES)
        self._warn = warn
        self._collections = Collections(db)

    @cached_property
    def vectors(self) -> Vectors:
        """Loaded when first asked for: keyword search alone needs no numpy."""
        from qmd.store.vectors import Vectors

        return Vectors(self.db, self._warn)

    @classmethod
    def open(cls, path: Path, *, create: bool = True, warn: Callable[[str], None] | None = None) -> Self:
        """Open the index at `path`, made if missing and `create` is set. A healthy file is not changed by opening.

        Raises StoreError (missing, not an index), StoreTooNew, StoreDamaged, StoreFull.
        """
        return cls(open_database(Path(path), create=create), warn=warn)

    def close(self) -> None:
        with suppress(StoreError):
            self.keyword.save_common()
        self.db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # collections and contexts

    def collections(self) -> list[Collection]:
        return self._collections.list()

    def collection(self, name: str) -> Collection:
        """Raises NotFound, with the known names."""
        return self._collections.get(name)

    def add_collection(self, collection: Collection) -> None:
        self._collections.add(collection)

    def remove_collection(self, name: str) -> None:
        self._collections.remove(name)

    def rename_collection(self, old: str, new: str) -> None:
        self._collections.rename(old, new)

    def set_include(self, name: str, include: bool) -> None:
        self._collections.set_include(name, include)

    def set_patterns(self, name: str, patterns: Sequence[str], ignore: Sequence[str]) -> None:
        """The globs that `update` goes by from now on."""
        self._collections.set_patterns(name, patterns, ignore)

    def contexts(self) -> list[tuple[str, str, str]]:
        """(collection, or "/" for all; path prefix; text)."""
        return self._collections.contexts()

    def set_context(self, collection: str, path: str, text: str) -> None:
        self._collections.set_context(collection, path, text)

    def remove_context(self, collection: str, path: str) -> None:
        self._collections.remove_context(collection, path)

    def included(self) -> dict[str, bool]:
        """name -> whether searches that name no collection look into it; cheaper than `collections`."""
        return self._collections.included()

    def roots(self) -> dict[str, str]:
        """name -> folder of each collection; cheaper than `collections`."""
        return self._collections.roots()

    def context_for(self, collection: str, path: str) -> str | None:
        """All contexts that hold for a path, outermost first, joined by blank lines."""
        return self._collections.context_for(collection, path)

    # documents

    @contextmanager
    def writing(self, *, wait_s: float = BUSY_TIMEOUT_S) -> Iterator[DocumentWriter]:
        """One write transaction: kept as a whole when the block ends, dropped as a whole when it raises.

        Waits for another writer up to `wait_s`, then raises StoreBusy.
        """
        with self.db.transaction(wait_s=wait_s):
            writer = DocumentWriter(self.db)
            yield writer
            if writer.changed:
                self.db.run(NEW_GENERATION)

    @property
    def generation(self) -> int:
        """Rises with every change of documents or vectors."""
        return int(self.db.value("SELECT value FROM meta WHERE key = 'generation'"))

    def setting(self, name: str) -> str | None:
        """A note of how the index was made, kept in it."""
        value = self.db.value("SELECT value FROM meta WHERE key = ?", (name,))
        return None if value is None else str(value)

    def set_setting(self, name: str, value: str) -> None:
        with self.db.transaction():
            self.db.run("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (name, value))

    def known_files(self, collection: str) -> dict[str, FileStamp]:
        return self.documents.known_files(collection)

    def document(self, document_id: int) -> StoredDocument | None:
        return self.documents.get(document_id)

    def find_document(self, collection: str, path: str) -> StoredDocument | None:
        return self.documents.find(collection, path)

    def find_docid(self, docid: str) -> StoredDocument | None:
        return self.documents.find_docid(docid)

    def list_documents(self, collection: str | None = None, glob: str | None = None) -> list[StoredDocument]:
        """Without their texts, by collection and path."""
        return self.documents.list(collection, glob)

    @property
    def has_vectors(self) -> bool:
        """Whether there is any; without loading what vectors need."""
        return bool(self.db.value("SELECT EXISTS (SELECT 1 FROM vectors)"))

    # chunks

    def chunks(self, ids: Iterable[int]) -> dict[int, ChunkRow]:
        """id -> row with its text, in the order asked; ids that are gone are left out."""
        return self.chunk_rows.get(ids)

    def chunk_ids(self, filter: Filter) -> NDArray[np.int64] | None:
        """Sorted ids of the chunks that pass; None when the filter has no condition."""
        return self.chunk_rows.ids(filter)

    # health

    def counts(self) -> Counts:
        from qmd.store.repair import counts

        return counts(self.db)

    def integrity(self) -> list[Problem]:
        """Everything that is wrong, each with its remedy; empty when healthy. Reads the whole index."""
        from qmd.store.repair import integrity

        return integrity(self.db, self.vectors)

    def cleanup(self) -> CleanupReport:
        """Repair what can be derived, drop what nothing uses, shrink the file."""
        from qmd.store.repair import cleanup

        return cleanup(self.db, self.vectors)
