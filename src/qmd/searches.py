"""The searches of an index: by keyword, by meaning, by both. What the Python door `qmd.index.Index` is built on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qmd.config import Config, Places
from qmd.errors import NotFound, QmdError, UsageError
from qmd.search.budget import Costs
from qmd.search.pipeline import Mode, Models, Request
from qmd.search.pipeline import search as run_search
from qmd.search.query import LONGEST_VALUE, parse_request, read_date
from qmd.search.request import Door
from qmd.search.show import show_passages
from qmd.store.cache import AnswerCache
from qmd.store.connect import beside
from qmd.store.opened import OpenedSearches
from qmd.store.store import Store
from qmd.types import Filter, Hits

if TYPE_CHECKING:
    from qmd.llm.image_text import ImageTextModel
    from qmd.llm.protocols import Embedder, Generator, Reranker
    from qmd.reports import Links
    from qmd.store import StoredDocument

NO_LIMIT = 100_000
"""What `all` means in hits: more than a person or a program reads."""

REFUSED_S = 300.0
"""A reranker or expansion model that could not be opened is not tried again for so long: hubs that cannot be reached
take half a minute to say so."""

every = all
M = TypeVar("M")


class Searches:
    """An open index as far as searching goes. Models are opened when first wanted and kept."""

    config: Config
    places: Places
    store: Store

    def __init__(
        self,
        store: Store,
        config: Config,
        places: Places,
        embedder: Embedder | None = None,
        reranker: Reranker | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self.places = places
        self._embedder = embedder
        self._reranker = reranker
        self._expander: Generator | None = None
        self._opening = threading.Lock()
        self._opening_more = threading.RLock()  # what opens an image-text model opens the embedder, too
        self._refused: dict[str, tuple[float, QmdError]] = {}
        self._image_text: ImageTextModel | None = None
        self._costs = Costs(beside(store.path, ".costs.json"))
        self._cache = AnswerCache(beside(store.path, ".answers"))
        self._opened = OpenedSearches(beside(store.path, ".searches"))

    @property
    def embedder(self) -> Embedder:
        """The embedding model, opened when first asked for. Raises ModelError, NotFound."""
        if self._embedder is None:
            with self._opening:
                if self._embedder is None:
                    from qmd.llm import open_embedder

                    self._embedder = open_embedder(self.config.models.embedding, dim=self.config.models.dim)
        return self._embedder

    def warm(self) -> None:
        """Open what a search by meaning needs, so that the first one does not wait: the model in this thread, the
        matrix of vectors in another. A search that begins meanwhile waits for what it needs only. Does nothing where
        there are no vectors. Raises ModelError, NotFound."""
        with self._opening:
            if self._embedder is not None or not self.store.has_vectors:
                return
            from qmd.llm import open_embedder

            embedder = open_embedder(self.config.models.embedding, dim=self.config.models.dim)
            if self.store.vectors.has(embedder.fingerprint):
                threading.Thread(target=self._warm_matrix, args=(embedder.fingerprint,), daemon=True).start()
            embedder.embed_query("warm")
            self._embedder = embedder

    def _warm_matrix(self, fingerprint: str) -> None:
        with suppress(QmdError):  # the first search tells it
            from qmd.search import dense, inverted  # noqa: F401  loaded here, and not while somebody waits

            self.store.vectors.matrix(fingerprint)

    def let_go(self) -> None:
        """Give the memory of models and vectors back; the next search opens them again."""
        with self._opening:
            self._embedder = self._reranker = self._expander = self._image_text = None
            self._refused = {}
            self.store.vectors.let_go()

    @property
    def image_text(self) -> ImageTextModel:
        """The model that looks at pictures, opened when first asked for. Raises ModelError, NotFound, UsageError where
        the configuration names none."""
        with self._opening_more:
            if self._image_text is None:
                from qmd.llm.image_text import open_image_text

                name = self.config.models.image
                if name is None:
                    raise UsageError(
                        "no model looks at pictures: `models.image` is null in the configuration."
                    )
                self._image_text = open_image_text(name, open_text=self._text_embedder)
            return self._image_text

    def _text_embedder(self, name: str) -> Embedder:
        """The configured embedder where it is that one, so that it is loaded once."""
        models = self.config.models
        if models.dim is None and name == models.embedding and self.embedder.card.name == name:
            return self.embedder
        from qmd.llm import open_embedder

        return open_embedder(name)

    @property
    def has_reranker(self) -> bool:
        return self._reranker is not None or self.config.models.reranker is not None

    def forget_models(self) -> None:
        """Write down what stages cost, and close what was opened beside the index."""
        self._costs.save()
        self._cache.close()

    # ---- searches
    def search(
        self,
        query: str,
        *,
        limit: int | None = None,
        collections: Sequence[str] = (),
        path: str | None = None,
        tags: Sequence[str] = (),
        title: str | None = None,
        type: str | None = None,
        lang: str | None = None,
        after: str | None = None,
        before: str | None = None,
        min_score: float | None = None,
        all: bool = False,
        full: bool = False,
        explain: bool = False,
        all_chunks: bool = False,
        reread: bool = False,
        recency: float | None = None,
        boosts: Mapping[str, float] | None = None,
    ) -> Hits:
        """Find by keyword (BM25). `all` lifts the limit; `full` gives `body` in place of `snippet`; `all_chunks` makes
        each passage a hit; `reread` first reads files again that have changed; the rest as for `query`.
        """
        return self._search("keyword", query, _given(locals()))

    def vsearch(
        self,
        query: str,
        *,
        limit: int | None = None,
        collections: Sequence[str] = (),
        path: str | None = None,
        tags: Sequence[str] = (),
        title: str | None = None,
        type: str | None = None,
        lang: str | None = None,
        after: str | None = None,
        before: str | None = None,
        min_score: float | None = None,
        all: bool = False,
        full: bool = False,
        explain: bool = False,
        intent: str | None = None,
        rerank: bool | None = None,
        candidate_limit: int | None = None,
        budget_ms: float | None = None,
        all_chunks: bool = False,
        reread: bool = False,
        recency: float | None = None,
        boosts: Mapping[str, float] | None = None,
    ) -> Hits:
        """Find by meaning (cosine of the embedding model). Raises ModelMismatch, ModelError without a model."""
        return self._search("vector", query, _given(locals()))

    def query(
        self,
        query: str,
        *,
        limit: int | None = None,
        collections: Sequence[str] = (),
        path: str | None = None,
        tags: Sequence[str] = (),
        title: str | None = None,
        type: str | None = None,
        lang: str | None = None,
        after: str | None = None,
        before: str | None = None,
        min_score: float | None = None,
        all: bool = False,
        full: bool = False,
        explain: bool = False,
        intent: str | None = None,
        expand: bool | None = None,
        rerank: bool | None = None,
        candidate_limit: int | None = None,
        budget_ms: float | None = None,
        all_chunks: bool = False,
        reread: bool = False,
        recency: float | None = None,
        boosts: Mapping[str, float] | None = None,
    ) -> Hits:
        """Find by both, fused; reranked where a reranker is configured. Without a model or vectors it answers by
        keyword and says so in `degraded`.

        query: words, or lines of `lex:`, `vec:`, `hyde:`, `intent:`, `expand:`. intent: what the question is about; it
        is not itself looked for. expand, rerank: False leaves the stage out, True runs it whatever it costs, None as
        configured. candidate_limit: how many the reranker may look at. budget_ms: time for all stages (0: no limit).
        recency, boosts: see `config.Search`.
        """
        return self._search("hybrid", query, _given(locals()))

    def similar(
        self,
        file: str | Path,
        *,
        limit: int | None = None,
        collections: Sequence[str] = (),
        path: str | None = None,
    ) -> Hits:
        """Documents like one: by the mean of its passages' vectors. Scores are cosines.

        file: a document of the index, as `get` names it, or a file on the disk that is in no index.
        Raises NotFound, ModelMismatch, and ModelError without a model.
        """
        from qmd.search import reference
        from qmd.search.similar import mean_of_document, mean_of_texts, nearest_documents

        request = self._request("vector", "", {"limit": limit, "collections": collections, "path": path})
        document = reference.find(self.store, str(file))
        if document.type == "image" if document is not None else _is_picture(file):
            return self._similar_pictures(reference.on_disk(file), document, request)
        if document is not None:
            vector = mean_of_document(self.store, self.embedder, document.id)
        else:
            vector = mean_of_texts(self.embedder, self._texts_of(str(file)))
        near = nearest_documents(
            self.store,
            self.embedder,
            vector,
            request.filter,
            request.limit,
            without=None if document is None else document.id,
            vectors=request.vectors,
        )
        scored = [(chunk, score) for _, chunk, score in near]
        return Hits(tuple(show_passages(self.store, scored, cite=request.cite).values()))

    def _similar_pictures(self, file: Path, document: StoredDocument | None, request: Request) -> Hits:
        """Pictures near a picture, by what they show; what notes say of them plays no part."""
        from qmd.search.pictures import hits_of, look

        model = self.image_text
        if document is not None:
            vector = self.store.pictures.vector(model.fingerprint, document.id)
            if vector is None:
                raise NotFound("the picture has no vector yet. Run `qmd embed`.")
        else:
            if not os.path.isfile(file):
                raise NotFound(f"there is no picture {file}.")
            vector = model.embed_images([file])[0]
        without = None if document is None else document.id
        seen = look(self.store, model, vector, request.filter, request.limit, without=without)
        found = hits_of(self.store, [(one.chunk, one.cosine) for one in seen[: request.limit]])
        return Hits(tuple(found.values()))

    def query_image(
        self,
        image: str | Path | bytes,
        text: str = "",
        *,
        limit: int | None = None,
        collections: Sequence[str] = (),
        path: str | None = None,
    ) -> Hits:
        """Pictures like one, changed as `text` says ("dark skin tone") where there is one. Scores are cosines.

        image: a file, or its bytes. Raises BadPicture, MissingExtra, and ModelError where the model takes no text with
        a picture.
        """
        from qmd.search import reference
        from qmd.search.pictures import hits_of, look

        request = self._request("vector", "", {"limit": limit, "collections": collections, "path": path})
        model = self.image_text
        given = image if isinstance(image, bytes) else reference.on_disk(image)
        if isinstance(given, Path) and not os.path.isfile(given):
            raise NotFound(f"there is no picture {given}.")
        vector = model.embed_both(text, given) if text.strip() else model.embed_images([given])[0]
        if not self.store.pictures.has(model.fingerprint):
            raise NotFound(
                "the index has no pictures that were looked at. Run `qmd add` with pictures, and `qmd embed`."
            )
        seen = look(self.store, model, vector, request.filter, request.limit)
        found = hits_of(self.store, [(one.chunk, one.cosine) for one in seen[: request.limit]])
        return Hits(tuple(found.values()))

    def links(self, note: str, *, limit: int = 5) -> Links:
        """Links out of and into a note, those that lead nowhere, and up to `limit` notes near in meaning that no link
        joins to it. Raises NotFound.
        """
        from qmd.search import reference
        from qmd.search.links import read_links

        document, _, _ = reference.resolve(self.store, note)
        links = read_links(self.store, document)
        if limit < 1:
            return links
        joined = {place.file for place in (*links.out, *links.into)}
        try:
            near = self.similar(links.file, limit=limit + len(joined), collections=[document.collection])
        except QmdError as error:
            return replace(links, degraded=(f"similar: {error}",))
        return replace(links, similar=tuple(hit for hit in near if hit.file not in joined)[:limit])

    def _texts_of(self, file: str) -> list[str]:
        """What would be embedded for a file on the disk. Raises NotFound, UsageError."""
        from qmd.search import reference

        path = reference.on_disk(file)
        if not os.path.isfile(path):
            reference.resolve(self.store, file)  # raises with the nearest names
        from qmd.ingest.parse import parse
        from qmd.ingest.read import CannotRead, read_file
        from qmd.store.chunks import embedding_text
        from qmd.types import Document

        try:
            data = read_file(path, self.config.ingest.max_file_bytes)
        except CannotRead as error:
            raise UsageError(f"{file}: {error}.") from error
        parsed = parse(path.name, data, chunk_tokens=self.config.ingest.chunk_tokens)
        if not isinstance(parsed, Document) or not parsed.chunks:
            raise UsageError(f"{file} holds no text to compare.")
        return [
            embedding_text(parsed.title, chunk.heading_path, parsed.text[chunk.start : chunk.end])
            for chunk in parsed.chunks
        ]

    # ---- shared by the above
    def stay_inside(self, root: Path) -> None:
        """A project's own index reads the project's folder: it may have come with it, from a stranger.

        Raises UsageError.
        """
        project = self.places.project
        if project is None or self.store.path.parent != project:
            return
        if not root.resolve().is_relative_to(project.parent.resolve()):
            raise UsageError(
                f"{root} is outside the project {project.parent}, whose own index reads what is inside. Use another "
                "index for it: `--data-dir FOLDER`, or run this outside the project."
            )

    def _search(self, mode: Mode, query: str, given: Mapping[str, Any]) -> Hits:
        hits = self._found(mode, query, given)
        if self.config.memory.searches:
            self._opened.showed(parse_request(query).plain, [hit.docid for hit in hits])
        return hits

    def _found(self, mode: Mode, query: str, given: Mapping[str, Any]) -> Hits:
        """What a search gives; no memory of it is kept."""
        request = self._request(mode, query, given)
        hits = run_search(self.store, request, self._models(), costs=self._costs, cache=self._cache)
        if given.get("reread") and any(hit.stale for hit in hits):
            from qmd.rereading import read_again

            notes = read_again(self, hits)
            hits = run_search(self.store, request, self._models(), costs=self._costs, cache=self._cache)
            if notes:
                hits = replace(hits, degraded=(*hits.degraded, *notes))
        return hits

    def _request(self, mode: Mode, query: str, given: Mapping[str, Any]) -> Request:
        """Arguments over configuration. Raises UsageError."""
        said = self.config.search
        limit = said.limit if given.get("limit") is None else given["limit"]
        candidates = (
            said.candidate_limit if given.get("candidate_limit") is None else given["candidate_limit"]
        )
        budget = said.budget_ms if given.get("budget_ms") is None else given["budget_ms"]
        recency = said.recency if given.get("recency") is None else given["recency"]
        boosts = dict(said.boosts if given.get("boosts") is None else given["boosts"])
        for name, number, least in (("limit", limit, 1), ("candidate_limit", candidates, 1)):
            if number < least:
                raise UsageError(f"{name} is {number}; it must be {least} or more.")
        for name, amount in (("budget_ms", budget), ("recency", recency), *boosts.items()):
            if not 0 <= amount < float("inf"):
                raise UsageError(f"{name} is {amount}; it must be 0 or more.")
        collections = given.get("collections") or ()
        included = self.store.included() if collections else {}
        for name in collections:
            if name not in included:
                self.store.collection(name)  # raises with the known names
        return Request(
            text=query,
            mode=mode,
            limit=NO_LIMIT if given.get("all") else min(limit, NO_LIMIT),
            filter=Filter(
                collections=tuple(collections) or self._included(),
                path=_condition("path", given.get("path")),
                tags=tuple(_condition("tags", tag) or "" for tag in given.get("tags") or ()),
                title=_condition("title", given.get("title")),
                type=_condition("type", given.get("type")),
                lang=_condition("lang", given.get("lang")),
                after=_date(given.get("after")),
                before=_date(given.get("before")),
            ),
            min_score=given.get("min_score"),
            full=bool(given.get("full")),
            explain=bool(given.get("explain")),
            intent=given.get("intent"),
            expand=_switch(given.get("expand"), said.expand),
            rerank=_switch(given.get("rerank"), said.rerank),
            candidate_limit=candidates,
            budget_ms=budget or None,
            all_chunks=bool(given.get("all_chunks")),
            fold=not given.get("all"),
            recency=recency,
            half_life_days=said.half_life_days,
            boosts=boosts,
            keyword_weight=said.keyword_weight,
            vector_weight=said.vector_weight,
            rrf_k=said.rrf_k,
            vectors=said.vectors,
            rerank_weight=said.rerank_weight,
            cite=self.config.memory.citations != "off",
        )

    def _models(self) -> Models:
        names = self.config.models
        embedder = Door(names.embedding, lambda: self.embedder, lambda: self._embedder is not None)
        reranker = None
        if names.reranker is not None or self._reranker is not None:
            reranker = Door(names.reranker or "", self._open_reranker, lambda: self._reranker is not None)
        expander = None
        if names.expansion is not None:
            expander = Door(names.expansion, self._open_expander, lambda: self._expander is not None)
        return Models(embedder, reranker, expander, self._pictures_door())

    def _pictures_door(self) -> Door[ImageTextModel] | None:
        name = self.config.models.image
        if name is None or not self.store.pictures.any():
            return None
        return Door(name, lambda: self.image_text, lambda: self._image_text is not None)

    def _open_reranker(self) -> Reranker:
        with self._opening_more:
            if self._reranker is None:
                from qmd.llm import open_reranker

                self._reranker = self._open_unless_refused(open_reranker, self.config.models.reranker or "")
            return self._reranker

    def _open_expander(self) -> Generator:
        with self._opening_more:
            if self._expander is None:
                from qmd.llm import open_generator

                self._expander = self._open_unless_refused(open_generator, self.config.models.expansion or "")
            return self._expander

    def _open_unless_refused(self, open: Callable[[str], M], name: str) -> M:
        at, error = self._refused.get(name, (0.0, None))
        if error is not None and time.monotonic() - at < REFUSED_S:
            raise error.with_traceback(None)
        try:
            return open(name)
        except QmdError as error:
            self._refused[name] = time.monotonic(), error
            raise

    def _included(self) -> tuple[str, ...]:
        """The collections that a search looks into when it names none; empty when that is all of them."""
        included = self.store.included()
        if every(included.values()):
            return ()
        # No name can be empty: where everything is excluded, nothing is searched.
        return tuple(name for name, include in included.items() if include) or ("",)


def _is_picture(file: str | Path) -> bool:
    from qmd.ingest.walk import PICTURES

    return Path(file).suffix.lower().lstrip(".") in PICTURES


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in ("self", "query")}


def _switch(said: bool | None, configured: bool) -> bool | None:
    """A stage that is configured off stays off unless asked for; one that is on lets the pipeline decide."""
    return said if said is not None else (None if configured else False)


def _condition(name: str, value: str | None) -> str | None:
    """As the index can compare it. Raises UsageError for one that is too long."""
    if value is not None and len(value) > LONGEST_VALUE:
        raise UsageError(f"{name} has {len(value):,} characters; it may have {LONGEST_VALUE:,}.")
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()


def _date(value: str | None) -> str | None:
    """An ISO date from `2024`, `2024-5` or `2024-05-31`. Raises UsageError."""
    if value is None:
        return None
    date = read_date(value)
    if date is None:
        raise UsageError(f"{value!r} is not a date. Write 2026, 2026-01 or 2026-01-31.")
    return date
