"""The Python door: `qmd.open(path)` gives an Index; everything the command line can do, it asks here.

Argument names are the command line's flag names. Opening reads no model: the embedder is opened when the first
vector is needed, so keyword search imports neither numpy nor a runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qmd.config import Config, Places
from qmd.reports import (
    AddReport,
    CheckResult,
    CollectionStatus,
    Context,
    DocumentText,
    EmbedReport,
    Entry,
    NotShown,
    Status,
)
from qmd.types import Collection, Hits, Progress

if TYPE_CHECKING:
    from qmd.ingest.run import UpdateReport
    from qmd.llm.protocols import Embedder
    from qmd.store import CleanupReport, Store


def open(
    path: str | Path | None = None,
    *,
    index: str = "index",
    config: Config | None = None,
    places: Places | None = None,
    embedder: Embedder | None = None,
    create: bool = True,
) -> Index:
    """Open an index, making it where there is none (`create=False`: NotFound instead).

    path: the database file, or a folder to hold `index.sqlite`; without it the data folder in force, where `index`
    names one of several. `embedder` replaces the configured embedding model.
    """
    raise NotImplementedError


class Index:
    """One index: collections, their documents, and the searches over them. Also a context manager."""

    config: Config
    places: Places
    store: Store

    def __init__(
        self, store: Store, config: Config, places: Places, embedder: Embedder | None = None
    ) -> None: ...

    def close(self) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what is in it
    def add(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        patterns: Sequence[str] = (),
        ignore: Sequence[str] = (),
        embed: bool = True,
        progress: Progress | None = None,
    ) -> AddReport:
        """Make `folder` a collection (named after it), index it, and embed it. Adding it again updates it.

        Raises UsageError where the name is taken by another folder, NotFound where the folder does not exist.
        """
        raise NotImplementedError

    def update(
        self, collections: Sequence[str] = (), *, force: bool = False, progress: Progress | None = None
    ) -> dict[str, UpdateReport]:
        """Bring collections (default: all) up to date with their folders. Returns collection name -> report.

        A folder that lost every file is left as it is unless `force`.
        """
        raise NotImplementedError

    def embed(self, *, model_changed: bool = False, progress: Progress | None = None) -> EmbedReport:
        """Make the vectors that are missing, newest document first, committed batch by batch.

        KeyboardInterrupt ends the run with `interrupted` set; what is done is kept. `model_changed` agrees to vectors
        of another model than the index has (they replace the old ones); without it, ModelMismatch.
        """
        raise NotImplementedError

    # ---- searches
    def search(
        self,
        query: str,
        *,
        limit: int | None = None,
        collections: Sequence[str] = (),
        path: str | None = None,
        tags: Sequence[str] = (),
        after: str | None = None,
        before: str | None = None,
        min_score: float | None = None,
        all: bool = False,
        full: bool = False,
        explain: bool = False,
    ) -> Hits:
        """Find by keyword (BM25). `all` lifts the limit; `full` gives `body` in place of `snippet`."""
        raise NotImplementedError

    def vsearch(
        self,
        query: str,
        *,
        limit: int | None = None,
        collections: Sequence[str] = (),
        path: str | None = None,
        tags: Sequence[str] = (),
        after: str | None = None,
        before: str | None = None,
        min_score: float | None = None,
        all: bool = False,
        full: bool = False,
        explain: bool = False,
    ) -> Hits:
        """Find by meaning (cosine of the embedding model). Raises ModelMismatch, ModelError without a model."""
        raise NotImplementedError

    def query(
        self,
        query: str,
        *,
        limit: int | None = None,
        collections: Sequence[str] = (),
        path: str | None = None,
        tags: Sequence[str] = (),
        after: str | None = None,
        before: str | None = None,
        min_score: float | None = None,
        all: bool = False,
        full: bool = False,
        explain: bool = False,
    ) -> Hits:
        """Find by both, fused. Without a model or vectors it answers by keyword and says so in `degraded`."""
        raise NotImplementedError

    # ---- reading
    def get(self, ref: str, *, from_line: int | None = None, max_lines: int | None = None) -> DocumentText:
        """The text of one document, by path, `qmd://collection/path`, `#docid` or docid; a suffix `:from` or
        `:from:count` picks lines. Raises NotFound, naming the nearest documents.
        """
        raise NotImplementedError

    def multi_get(
        self, pattern: str, *, max_lines: int | None = None, max_bytes: int | None = 10_240
    ) -> list[DocumentText | NotShown]:
        """Several documents: a glob over `collection/path`, or a comma-separated list of references."""
        raise NotImplementedError

    def ls(self, path: str | None = None) -> list[Entry]:
        """Documents below `collection`, `collection/folder` or a glob; all of them without a path."""
        raise NotImplementedError

    # ---- state
    def status(self) -> Status:
        raise NotImplementedError

    def check(self) -> list[CheckResult]:
        """Look at the configuration, the models, the database and the folders; repair nothing."""
        raise NotImplementedError

    def cleanup(self) -> CleanupReport:
        """Repair and shrink: drop what nothing refers to, rebuild derived files, give space back."""
        raise NotImplementedError

    # ---- collections and contexts
    def list_collections(self) -> list[CollectionStatus]:
        raise NotImplementedError

    def add_collection(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        patterns: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> Collection:
        """Register a folder without reading it; `update` does."""
        raise NotImplementedError

    def remove_collection(self, name: str) -> None:
        raise NotImplementedError

    def rename_collection(self, old: str, new: str) -> None:
        raise NotImplementedError

    def include_collection(self, name: str) -> None:
        """Let searches that name no collection look into this one (the default)."""
        raise NotImplementedError

    def exclude_collection(self, name: str) -> None:
        """Leave this collection out of searches that name none."""
        raise NotImplementedError

    def add_context(self, path: str, text: str) -> Context:
        """Attach `text` to `/` (everything), `collection`, `qmd://collection/folder` or `collection/folder`."""
        raise NotImplementedError

    def list_contexts(self) -> list[Context]:
        raise NotImplementedError

    def remove_context(self, path: str) -> None:
        raise NotImplementedError

    def import_original(self, index_yml: str | Path | None = None) -> list[str]:
        """Take over collections and contexts of the TypeScript original (`~/.config/qmd/index.yml`).

        Returns the names of the collections added; `update` then reads them. Existing names are left alone.
        """
        raise NotImplementedError
