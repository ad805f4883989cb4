"""The Python door: `qmd.open(path)` gives an Index; everything the command line can do, it asks here.

Argument names are the command line's flag names. Opening reads no model: the embedder is opened when the first
vector is needed, so keyword search imports neither numpy nor a runtime.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qmd.config import Config, Places, find_places
from qmd.errors import NotFound, QmdError, UsageError, hide_password
from qmd.reports import (
    AddReport,
    CheckResult,
    CollectionStatus,
    Context,
    DocumentText,
    EmbedReport,
    Entry,
    ModelVectors,
    NotShown,
    PictureReport,
    PictureStatus,
    Status,
)
from qmd.search import reference
from qmd.searches import Searches
from qmd.store.documents import clean
from qmd.store.store import Store
from qmd.trust import load_config_of
from qmd.types import Collection, Progress

if TYPE_CHECKING:
    from qmd.ingest.run import UpdateReport
    from qmd.llm.protocols import Embedder, Reranker
    from qmd.search.answer import Answer, Writer
    from qmd.store import CleanupReport, StoredDocument
    from qmd.vembed.from_index import PairKind


def open(
    path: str | Path | None = None,
    *,
    index: str = "index",
    config: Config | None = None,
    places: Places | None = None,
    embedder: Embedder | None = None,
    reranker: Reranker | None = None,
    create: bool = True,
) -> Index:
    """Open an index, making it where there is none (`create=False`: NotFound instead).

    path: the database file, or a folder to hold `index.sqlite`; without it the data folder in force, where `index`
    names one of several. `embedder` and `reranker` replace the configured models.
    """
    places = places or find_places()
    if config is None:
        config = load_config_of(places)
    database = places.database(index) if path is None else Path(os.path.expanduser(path))
    if database.is_dir() or (path is not None and not database.suffix and not database.exists()):
        database = database / f"{index}.sqlite"
    if not database.exists():
        if not create:
            raise NotFound(f"there is no index at {database}. Run `qmd add PATH` to make one.")
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Index(Store.open(database, create=create), config, places, embedder, reranker)


MOST_HELPED = 10
"""Names of a list that are not there and are told what is near; looking for that takes 40 ms at 20,000 documents."""


class Index(Searches):
    """One index: collections, their documents, and the searches over them. Also a context manager."""

    def __init__(
        self,
        store: Store,
        config: Config,
        places: Places,
        embedder: Embedder | None = None,
        reranker: Reranker | None = None,
    ) -> None:
        super().__init__(store, config, places, embedder, reranker)
        self._writer: tuple[str | None, Writer] | None = None

    def let_go(self) -> None:
        super().let_go()
        self._writer = None

    def close(self) -> None:
        self.forget_models()
        self.store.close()

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
        """Make `folder` a collection (named after it), index it, and embed it. Adding it again updates it; patterns
        or ignore then replace those it had.

        Raises UsageError where the name is taken by another folder, NotFound where the folder does not exist.
        """
        collection = self._same_collection(folder, name)
        if collection is None:
            collection = self.add_collection(folder, name=name, patterns=patterns, ignore=ignore)
        elif patterns or ignore:
            self.store.set_patterns(
                collection.name, patterns or collection.patterns, ignore or collection.ignore
            )
        report = self.update([collection.name], progress=progress)[collection.name]
        if not embed:
            return AddReport(collection.name, collection.root, report)
        try:
            embedded = self.embed(progress=progress)
        except QmdError as error:
            return AddReport(collection.name, collection.root, report, degraded=(f"embed: {error}",))
        return AddReport(collection.name, collection.root, report, embedded)

    def update(
        self, collections: Sequence[str] = (), *, force: bool = False, progress: Progress | None = None
    ) -> dict[str, UpdateReport]:
        """Bring collections (default: all) up to date with their folders. Returns collection name -> report.

        A folder that lost every file is left as it is unless `force`.
        """
        from qmd.ingest.run import update

        names = list(collections) or [collection.name for collection in self.store.collections()]
        for name in names:
            self.stay_inside(Path(self.store.collection(name).root))
        return {name: update(self.store, name, self.config, progress, force) for name in names}

    def embed(self, *, model_changed: bool = False, progress: Progress | None = None) -> EmbedReport:
        """Make the vectors that are missing, newest document first, committed batch by batch.

        KeyboardInterrupt ends the run with `interrupted` set; what is done is kept. `model_changed` agrees to vectors
        of another model than the index has (they replace the old ones); without it, ModelMismatch.
        """
        from qmd.ingest.embed import embed

        report = embed(self.store, self.embedder, progress, model_changed=model_changed)
        pictures: PictureReport | None = None
        interrupted, degraded = report.interrupted, tuple[str, ...]()
        if not interrupted:
            pictures, interrupted, degraded = self._look_at_pictures(progress)
        return EmbedReport(
            model=self.embedder.card.name,
            embedded=report.embedded,
            remaining=report.total - report.done,
            seconds=report.seconds,
            interrupted=interrupted,
            pictures=pictures,
            degraded=degraded,
        )

    def _look_at_pictures(
        self, progress: Progress | None
    ) -> tuple[PictureReport | None, bool, tuple[str, ...]]:
        """(what was done, whether it was interrupted, why it was not). Texts have their vectors by now."""
        if self.config.models.image is None or not self.store.pictures.any():
            return None, False, ()
        from qmd.ingest.look import look_at_pictures

        try:
            model = self.image_text
            report = look_at_pictures(self.store, model, self.config.ingest.max_file_bytes, progress)
        except QmdError as error:
            return None, False, (f"pictures: {error}",)
        done = PictureReport(
            model.card.name, report.embedded, report.refused, report.remaining, report.seconds
        )
        return done, report.interrupted, ()

    # ---- teaching
    def training_pairs(
        self,
        *,
        kinds: Sequence[PairKind] = ("title", "heading", "sentence", "link", "search"),
        collections: Sequence[str] = (),
        negatives: int = 0,
        keep: Callable[[StoredDocument], bool] | None = None,
    ) -> Iterator[dict[str, object]]:
        """Lines of training data that the documents themselves give, for `qmd train`; see `qmd.vembed.from_index`.

        negatives: how many a text pair gets, found by this index in other documents. keep: which documents may be used.
        """
        from qmd.vembed.from_index import pairs_of_index

        for name in collections:
            self.store.collection(name)  # raises with the known names

        def find(query: str, limit: int) -> list[str]:
            words = re.sub(r"[^\w\s]|_", " ", query)  # a sentence is no query language
            found = self._found("hybrid", words, {"limit": limit, "collections": collections})
            return [hit.docid for hit in found]

        return pairs_of_index(
            self.store,
            kinds=kinds,
            collections=collections,
            keep=keep,
            find=find if negatives else None,
            negatives=negatives,
            searches=self._opened.pairs() if self.config.memory.searches else (),
        )

    # ---- reading
    def ask(
        self,
        question: str,
        *,
        model: str | None = None,
        writer: Writer | None = None,
        limit: int = 3,
        max_new_tokens: int = 120,
        history: Sequence[tuple[str, str]] = (),
        stream: Callable[[str], None] | None = None,
        collections: Sequence[str] = (),
        path: str | None = None,
        tags: Sequence[str] = (),
        title: str | None = None,
        type: str | None = None,
        lang: str | None = None,
        after: str | None = None,
        before: str | None = None,
    ) -> Answer:
        """Answer from the documents, with checked citations; see `qmd.search.answer.ask`.

        model: as `--model`, else the configured generation model, else SmolLM2; it stays loaded for the next question.
        writer: an opened one, in its place. Raises MissingExtra, ModelError.
        """
        from qmd.search.answer import ask, open_writer

        name = model or self.config.models.generation
        if writer is None:
            if self._writer is None or self._writer[0] != name:
                self._writer = (name, open_writer(name, data_dir=self.places.data_dir))
            writer = self._writer[1]
        return ask(
            self, question, writer=writer, limit=limit, max_new_tokens=max_new_tokens, history=history, stream=stream,
            collections=collections, path=path, tags=tags, title=title, type=type, lang=lang, after=after,
            before=before,
        )  # fmt: skip

    def get(self, ref: str, *, from_line: int | None = None, max_lines: int | None = None) -> DocumentText:
        """The text of one document, by path, `qmd://collection/path`, `#docid` or docid; a suffix `:from` or
        `:from:count` picks lines. Raises NotFound, naming the nearest documents.
        """
        text = self.read(ref, from_line=from_line, max_lines=max_lines)
        if self.config.memory.searches:
            self._opened.opened(text.docid)
        return text

    def read(self, ref: str, *, from_line: int | None = None, max_lines: int | None = None) -> DocumentText:
        """As `get`, where nobody opened the document: `memory.searches` does not count it."""
        document, first, count = reference.resolve(self.store, ref)
        return self._lines(document, from_line or first or 1, max_lines if max_lines is not None else count)

    def multi_get(
        self, pattern: str, *, max_lines: int | None = None, max_bytes: int | None = 10_240
    ) -> list[DocumentText | NotShown]:
        """Several documents: a glob over `collection/path`, or a comma-separated list of references."""
        return list(self.each(pattern, max_lines=max_lines, max_bytes=max_bytes))

    def each(
        self, pattern: str, *, max_lines: int | None = None, max_bytes: int | None = 10_240
    ) -> Iterator[DocumentText | NotShown]:
        """What `multi_get` gives, one at a time: what is not taken is not read."""
        for document in self._named(pattern):
            if isinstance(document, NotShown):
                yield document
                continue
            size = len((document.text or "").encode())
            if max_bytes is not None and size > max_bytes and max_lines is None:
                reason = f"{size} bytes, more than {max_bytes}; read it with `qmd get` or raise max_bytes"
                yield NotShown(reference.uri(document), reason)
            else:
                yield self._lines(document, 1, max_lines)

    def ls(self, path: str | None = None) -> list[Entry]:
        """Documents below `collection`, `collection/folder` or a glob; all of them without a path."""
        documents = self.store.list_documents() if path is None else reference.match(self.store, path)
        return [
            Entry(
                docid=document.docid,
                file=reference.uri(document),
                collection=document.collection,
                path=document.path,
                title=document.title,
                size_bytes=document.size,
                modified=document.mtime_ns / 1e9,
            )
            for document in documents
        ]

    def list_tags(self, *, limit: int = 100) -> list[tuple[str, int]]:
        """(tag, number of documents that have it), the most used first."""
        return self.store.documents.common_tags(limit)

    # ---- state
    def status(self) -> Status:
        """What the index holds, where it lies and what is still to do. Opens no model."""
        from qmd.llm.cut import is_cut
        from qmd.llm.open import name_of
        from qmd.search.inverted import inverted_file

        counts = self.store.counts()
        models = self.config.models
        embedding = name_of(models.embedding)
        vectors = []
        for model in self.store.vectors.models():
            done, total = self.store.vectors.count(model.fingerprint)
            vectors.append(
                ModelVectors(
                    model.name,
                    model.fingerprint,
                    model.dim,
                    done,
                    total,
                    model.name == embedding
                    and (model.dim == models.dim if models.dim else not is_cut(model.fingerprint)),
                    inverted_file(self.store.vectors.stem(model.fingerprint)),
                )
            )
        return Status(
            database=str(self.store.path),
            size_bytes=counts.size_bytes,
            config_dir=str(self.places.config_dir),
            data_dir=str(self.places.data_dir),
            collections=tuple(self.list_collections()),
            documents=counts.documents,
            chunks=counts.chunks,
            model=hide_password(models.embedding),
            dim=models.dim,
            pending=min((v.total - v.done for v in vectors if v.configured), default=counts.chunks),
            vectors=tuple(vectors),
            contexts=tuple(self.list_contexts()),
            languages=self.store.documents.languages(),
            pictures=self._picture_status(),
        )

    def _picture_status(self) -> PictureStatus | None:
        """None where the index has no picture."""
        if not self.store.pictures.any():
            return None
        name = self.config.models.image
        fingerprint = ""
        if name is not None:
            with suppress(QmdError):
                fingerprint = self.image_text.fingerprint
        counts = self.store.pictures.count(fingerprint)
        return PictureStatus(name, counts.total, counts.done, counts.refused)

    def check(self, *, models: bool = False) -> list[CheckResult]:
        """Look at the machine, the configuration, the models, the database and the folders; repair nothing.

        `models`: also load every configured model and let it work, with where it runs and how fast.
        """
        from qmd.checks import run_checks

        return run_checks(self.store, self.config, self.places, lambda: self.embedder, models=models)

    def cleanup(self, *, forget_searches: bool = False) -> CleanupReport:
        """Repair and shrink: drop what nothing refers to, rebuild derived files, give space back.

        forget_searches: also delete what `memory.searches` kept.
        """
        forgotten = self._opened.forget() if forget_searches else 0
        return replace(self.store.cleanup(), searches_forgotten=forgotten)

    # ---- collections and contexts
    def list_collections(self) -> list[CollectionStatus]:
        """Every collection, with whether its folder is there."""
        return [
            CollectionStatus(
                name=row.name,
                root=row.root,
                documents=row.documents,
                include=row.include,
                missing=not Path(row.root).is_dir(),
                patterns=row.patterns,
                ignore=row.ignore,
            )
            for row in self.store.collections()
        ]

    def add_collection(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        patterns: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> Collection:
        """Register a folder without reading it; `update` does."""
        root = reference.on_disk(folder)
        if not root.is_dir():
            raise NotFound(f"there is no folder {root}.")
        self.stay_inside(root)
        name = name or re.sub(r"[^\w.-]+", "-", reference.compose(root.name)).strip("-.") or "root"
        for taken in self.store.collections():
            if taken.name == name:
                raise UsageError(f"collection {name!r} is {taken.root}. Choose another name with `--name`.")
        collection = Collection(name, str(root), tuple(patterns), tuple(ignore))
        self.store.add_collection(collection)
        return self.store.collection(name)

    def remove_collection(self, name: str) -> None:
        self.store.remove_collection(name)

    def rename_collection(self, old: str, new: str) -> None:
        self.store.rename_collection(old, new)

    def include_collection(self, name: str) -> None:
        """Let searches that name no collection look into this one (the default)."""
        self.store.set_include(name, True)

    def exclude_collection(self, name: str) -> None:
        """Leave this collection out of searches that name none."""
        self.store.set_include(name, False)

    def add_context(self, path: str, text: str) -> Context:
        """Attach `text` to `/` (everything), `collection`, `qmd://collection/folder` or `collection/folder`."""
        collection, prefix = self._place(path)
        if not text.strip():
            raise UsageError("the context is empty.")
        text = clean(text)
        self.store.set_context(collection, prefix, text)
        return Context(collection, prefix, text)

    def list_contexts(self) -> list[Context]:
        return [Context(*row) for row in self.store.contexts()]

    def remove_context(self, path: str) -> None:
        self.store.remove_context(*self._place(path))

    def import_original(self, index_yml: str | Path | None = None) -> list[str]:
        """Take over collections and contexts of the TypeScript original (`~/.config/qmd/index.yml`).

        Returns the names of the collections added; `update` then reads them. Existing names are left alone.
        """
        from qmd.original import read_original

        original = read_original(Path(index_yml or "~/.config/qmd/index.yml").expanduser())
        taken = {collection.name for collection in self.store.collections()}
        added = [collection for collection in original.collections if collection.name not in taken]
        for collection in added:
            self.store.add_collection(collection)
        names = [collection.name for collection in added]
        held = {(collection, path) for collection, path, _ in self.store.contexts()}
        for context in original.contexts:
            if context.collection in names or (context.collection == "/" and ("/", "") not in held):
                self.store.set_context(context.collection, context.path, context.text)
        return names

    # ---- shared by the above
    def _same_collection(self, folder: str | Path, name: str | None) -> Collection | None:
        """The collection that `folder` is already, if it is one (and is not asked to have another name)."""
        root = reference.on_disk(folder)
        same = (row for row in self.store.collections() if reference.on_disk(row.root) == root)
        return next((row for row in same if name in (None, row.name)), None)

    def _place(self, path: str) -> tuple[str, str]:
        """(collection, or "/" for all; path prefix) that a context is attached to."""
        written = path.removeprefix(reference.SCHEME).strip("/")
        if not written:
            return "/", ""
        head, _, tail = written.partition("/")
        if any(collection.name == head for collection in self.store.collections()):
            return head, tail
        place = reference.on_disk(path)
        for collection in self.store.collections():
            if place.is_relative_to(root := reference.on_disk(collection.root)):
                inside = place.relative_to(root).as_posix()
                return collection.name, "" if inside == "." else inside
        self.store.collection(head)  # raises with the known names
        raise NotFound(f"{path!r} lies in no collection.")

    def _named(self, pattern: str) -> Iterator[StoredDocument | NotShown]:
        """Documents with their texts: of a list of references, or of a glob. Each once."""
        parts = [part.strip() for part in pattern.split(",") if part.strip()]
        seen: set[object] = set()
        helped = 0
        for part in parts if len(parts) > 1 and reference.find(self.store, pattern) is None else [pattern]:
            if not any(mark in part for mark in "*?[") or reference.find(self.store, part) is not None:
                try:
                    document = reference.resolve(self.store, part, near=helped < MOST_HELPED)[0]
                    if document.id not in seen:
                        seen.add(document.id)
                        yield document
                    continue
                except NotFound as error:
                    helped += 1
                    reason = str(error)
            else:
                reason = "no document matches"
            found = reference.match(self.store, part)
            if not found and part not in seen:
                seen.add(part)
                yield NotShown(part, reason)
            for listed in found:
                full = self.store.document(listed.id) if listed.id not in seen else None
                if full is not None:
                    seen.add(full.id)
                    yield full

    def _lines(self, document: StoredDocument, first: int, count: int | None) -> DocumentText:
        if first < 1 or (count is not None and count < 1):
            raise UsageError("lines count from 1, and at least one line must be asked for.")
        lines = (document.text or "").split("\n")
        if document.type == "image":
            lines = [*_facts(document), *lines]
        if len(lines) > 1 and not lines[-1]:
            lines.pop()
        if first > len(lines):
            raise NotFound(f"{reference.uri(document)} has {len(lines)} lines; there is no line {first}.")
        shown = lines[first - 1 :] if count is None else lines[first - 1 : first - 1 + count]
        return DocumentText(
            docid=document.docid,
            file=reference.uri(document),
            collection=document.collection,
            path=document.path,
            title=document.title,
            text="\n".join(shown),
            line=first,
            end_line=first + len(shown) - 1,
            lines=len(lines),
            context=self.store.context_for(document.collection, document.path),
        )


def _facts(document: StoredDocument) -> list[str]:
    """What a picture is, for those who read; its bytes are had by `GET /raw/DOCID`."""
    known = document.fields
    size = f", {known['width']} x {known['height']} pixels" if "width" in known else ""
    return [f"{known.get('format', 'image')} picture{size}, {document.size:,} bytes", ""]
