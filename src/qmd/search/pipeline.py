"""From a question to hits, top to bottom: parse -> lists -> group by document -> fuse -> hits.

A list that cannot be made is left out and named in `degraded`; the others answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qmd.errors import ModelMismatch, NotFound, QmdError
from qmd.search.fuse import fuse_ranks
from qmd.search.lexical import KeywordList, exclusions, find_all_first, find_best, required
from qmd.search.query import Query, parse
from qmd.search.scripts import foreign_share
from qmd.search.snippet import Marker, cut_snippet, front_matter
from qmd.types import Filter, Hit, Hits

if TYPE_CHECKING:
    from qmd.llm.protocols import Embedder
    from qmd.search.inverted import VectorSearch
    from qmd.store import Store
    from qmd.store.chunks import ChunkRow

Mode = Literal["keyword", "vector", "hybrid"]

CHUNKS_PER_HIT = 5
LEAST_CHUNKS: Mapping[Mode, int] = {"keyword": 50, "vector": 200, "hybrid": 200}
"""Depth of each list, in chunks: several chunks of one document are one hit. A list alone needs fewer than one
that is fused, and is made again, deeper, where they belong to too few documents."""

FRONTED = frozenset({"markdown"})
"""Types whose texts may open with front matter."""
FIRST_CHARACTERS = 1_500


@dataclass(frozen=True, slots=True)
class Request:
    """A search. `limit` counts documents; the weights and `rrf_k` matter to hybrid alone."""

    text: str
    mode: Mode
    limit: int
    filter: Filter = field(default_factory=Filter)
    min_score: float | None = None
    full: bool = False
    explain: bool = False
    keyword_weight: float = 1.0
    vector_weight: float = 1.0
    rrf_k: int = 60
    vectors: VectorSearch = "auto"


@dataclass(frozen=True, slots=True)
class RankedList:
    """One list after grouping. `documents`: ids, best first; `best`: document id -> its best chunk and score;
    `ranks`: chunk id -> rank in the ungrouped list, from 1."""

    documents: list[int]
    best: Mapping[int, tuple[int, float]]
    ranks: Mapping[int, int]


def search(store: Store, request: Request, open_embedder: Callable[[], Embedder]) -> Hits:
    """Answer one request. `open_embedder` is called only where vectors are wanted.

    Raises ModelMismatch, ModelError and NotFound in vector mode alone; hybrid answers by keyword then.
    """
    clock = _Clock()
    query = parse(request.text, request.filter)
    depth = max(request.limit * CHUNKS_PER_HIT, LEAST_CHUNKS[request.mode])
    degraded: list[str] = []
    lists: dict[str, list[tuple[int, float]]] = {}
    weights: dict[str, float] = {}
    words = KeywordList([], words=tuple(word for term in query.terms for word in term.words))
    clock.lap("parse")

    if request.mode != "vector":
        words = _find_words(store, query, request, depth)
        lists["keyword"], weights["keyword"] = words.ranked, request.keyword_weight
        degraded += words.notes
        clock.lap("keyword")

    if request.mode != "keyword" and query:
        try:
            embedder = open_embedder()
            weight, notes = _trust(query, embedder, alone=request.mode == "vector")
            degraded += notes
            if weight > 0:
                lists["vector"], notes = _nearest(store, query, embedder, depth, clock, request.vectors)
                weights["vector"] = weight * request.vector_weight
                degraded += notes
        except (QmdError, OSError) as error:
            if request.mode == "vector":
                raise
            degraded.append(f"vector: {error}")
    elif request.mode == "vector":
        degraded.append("vector: nothing to look for")

    places = store.chunk_rows.places({chunk for ranked in lists.values() for chunk, _ in ranked})
    grouped = {name: _group(ranked, places) for name, ranked in lists.items()}
    if request.mode == "hybrid":
        docids = {document: docid for document, docid, _ in places.values()}
        fused = fuse_ranks({n: g.documents for n, g in grouped.items()}, weights, k=request.rrf_k)
        order = sorted(fused, key=lambda item: (-round(item[1], 12), docids[item[0]]))
    else:
        to_score = _keyword_score if request.mode == "keyword" else _cosine
        order = [(d, to_score(g.best[d][1])) for g in grouped.values() for d in g.documents]
    if request.min_score is not None:
        order = [(document, score) for document, score in order if score >= request.min_score]
    order = order[: request.limit]
    clock.lap("fuse")

    hits = _hits(store, request, order, grouped, weights, words)
    clock.lap("hits")
    return Hits(hits, tuple(dict.fromkeys(degraded)), clock.laps)


def _find_words(store: Store, query: Query, request: Request, depth: int) -> KeywordList:
    """The keyword list. Alone, it goes as deep as the documents asked for; to be fused, `depth` chunks."""
    if request.mode != "keyword":
        return find_best(store.keyword, query, depth)

    def enough(ranked: Sequence[tuple[int, float]]) -> bool:
        places = store.chunk_rows.places(chunk for chunk, _ in ranked)
        return len({document for document, _, _ in places.values()}) >= request.limit

    while True:
        found = find_all_first(store.keyword, query, depth, enough)
        if len(found.ranked) < depth or enough(found.ranked):
            return found
        depth *= 4


def _trust(query: Query, embedder: Embedder, *, alone: bool) -> tuple[float, list[str]]:
    """How much the vector list may say, 0 to 1: a model that cannot read the question's script would only
    add noise.
    """
    foreign = foreign_share(query.plain, embedder.card.languages)
    if not foreign:
        return 1.0, []
    known = ", ".join(embedder.card.languages)
    if alone:
        return 1.0, [f"vector: {embedder.card.name} reads {known}; expect little for this question"]
    if foreign > 0.5:
        return 0.0, [
            f"vector: left out, {embedder.card.name} reads {known} and the question is in another script"
        ]
    return 1.0 - foreign, []


def _nearest(
    store: Store, query: Query, embedder: Embedder, depth: int, clock: _Clock, vectors: VectorSearch
) -> tuple[list[tuple[int, float]], list[str]]:
    """(chunk id, cosine), best first, with the filter inside. Raises ModelMismatch, NotFound without
    vectors.
    """
    import numpy

    from qmd.search.inverted import Nearest

    stored = [model for model in store.vectors.models() if model.count]
    if all(model.fingerprint != embedder.fingerprint for model in stored):
        if stored:
            raise ModelMismatch(
                f"the index holds vectors of {stored[0].name} ({stored[0].dim}d), the configuration asks for "
                f"{embedder.card.name} ({embedder.dim}d). Run `qmd embed --model-changed`, "
                "or restore the old model in the configuration."
            )
        raise NotFound("the index has no vectors yet. Run `qmd embed`.")
    matrix = store.vectors.matrix(embedder.fingerprint)
    notes = list(matrix.notes)
    live = matrix.live
    missing = store.keyword.count() - (len(matrix) if live is None else int(live.sum()))
    if missing > 0:
        notes.append(f"vector: {missing} passages have no vector yet; run `qmd embed`")
    allowed = store.chunk_ids(query.filter)
    quoted = required(store.keyword, query)
    if quoted is not None:
        holding = store.keyword.candidates(quoted, query.filter)
        allowed = numpy.array(holding, dtype=numpy.int64)
    excluded = _excluded(store, query)
    clock.lap("matrix")
    vector = embedder.embed_query(query.plain)
    clock.lap("embed")
    scan = Nearest(matrix, vectors)
    ids, scores = scan.search(vector, depth + len(excluded), allowed=allowed)
    notes += scan.notes
    found = [(i, s) for i, s in zip(ids.tolist(), scores.tolist(), strict=True) if i not in excluded]
    clock.lap("vector")
    return found[:depth], notes


def _excluded(store: Store, query: Query) -> set[int]:
    """Chunks that hold what the question excludes: an exclusion holds for vectors too."""
    return {i for expression in exclusions(query) for i in store.keyword.candidates(expression, query.filter)}


def _group(ranked: Sequence[tuple[int, float]], places: Mapping[int, tuple[int, str, int]]) -> RankedList:
    """One entry a document. Equal scores are ordered by docid and line, so that the order in which
    documents came
    into the index says nothing."""
    alive = [(chunk, score) for chunk, score in ranked if chunk in places]
    alive.sort(key=lambda item: (-round(item[1], 6), *places[item[0]][1:]))
    best: dict[int, tuple[int, float]] = {}
    ranks: dict[int, int] = {}
    for rank, (chunk, score) in enumerate(alive, start=1):
        ranks[chunk] = rank
        best.setdefault(places[chunk][0], (chunk, score))
    return RankedList(list(best), best, ranks)


def _keyword_score(bm25: float) -> float:
    return max(bm25, 0.0) / (1.0 + max(bm25, 0.0))


def _cosine(score: float) -> float:
    return min(max(score, 0.0), 1.0)


def _hits(
    store: Store,
    request: Request,
    order: Sequence[tuple[int, float]],
    grouped: Mapping[str, RankedList],
    weights: Mapping[str, float],
    words: KeywordList,
) -> tuple[Hit, ...]:
    shown: dict[int, int] = {}
    for document, _ in order:
        # The chunk that the lists together rank best stands for the document.
        candidates = {g.best[document][0] for g in grouped.values() if document in g.best}
        shown[document] = max(
            sorted(candidates),
            key=lambda chunk: sum(
                weights.get(n, 1.0) / (request.rrf_k + g.ranks[chunk])
                for n, g in grouped.items()
                if chunk in g.ranks
            ),
        )
    rows = store.chunks(shown.values())
    stems = [stem for terms in store.keyword.stem(words.words).values() for stem in terms]
    marker = Marker(words.words, stems)
    complete = {chunk for chunk, _ in words.ranked[: words.complete]}
    contexts = bool(store.contexts())
    hits: list[Hit] = []
    for document, score in order:
        row = rows.get(shown[document])
        if row is None:  # deleted by another process meanwhile
            continue
        snippet = cut_snippet(*_shown(store, row), marker)
        body = None
        if request.full:
            stored = store.document(document)
            body = stored.text if stored is not None else None
        explain: dict[str, object] | None = None
        if request.explain:
            explain = {
                "lists": {
                    name: {
                        "rank": g.documents.index(document) + 1,
                        "score": round(g.best[document][1], 4),
                        "weight": round(weights.get(name, 1.0), 4),
                    }
                    for name, g in grouped.items()
                    if document in g.best
                },
                "rrf_k": request.rrf_k,
                "chunk": {"line": row.line, "end_line": row.end_line},
                "words": list(words.words),
                "all_words": row.id in complete if request.mode == "keyword" else None,
                "pruned": words.pruned,
            }
        hits.append(
            Hit(
                docid=row.docid,
                score=round(score, 4),
                file=f"qmd://{row.collection}/{row.path}",
                line=snippet.line,
                end_line=snippet.end_line,
                title=row.title,
                collection=row.collection,
                path=row.path,
                heading_path=row.heading_path,
                context=store.context_for(row.collection, row.path) if contexts else None,
                snippet=None if request.full else snippet.text,
                body=body,
                marks=() if request.full else snippet.marks,
                explain=explain,
            )
        )
    return tuple(hits)


def _shown(store: Store, row: ChunkRow) -> tuple[str, int]:
    """The part of a chunk that may be shown, and its line. Front matter is found, but it is not what a reader
    looks for: a chunk of nothing else gives the first lines after it.
    """
    if not row.dashed or row.type not in FRONTED:
        return row.text, row.line
    if row.start == 0 and (end := front_matter(row.text)) and row.text[end:].strip():
        return row.text[end:], row.line + row.text.count("\n", 0, end)
    document = store.document(row.document_id)
    text = document.text or "" if document is not None else ""
    end = front_matter(text)
    if end <= row.start:
        return row.text, row.line
    stop = row.end if row.end > end and text[end : row.end].strip() else end + FIRST_CHARACTERS
    return text[end:stop], 1 + text.count("\n", 0, end)


class _Clock:
    """Milliseconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = round(self.laps.get(stage, 0.0) + (now - self._last) * 1000, 3)
        self._last = now
