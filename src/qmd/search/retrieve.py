"""Make ranked lists of chunks: by keyword, and by vector. Knows the store and an embedder; fuses nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from qmd.errors import ModelMismatch, NotFound
from qmd.search.lexical import KeywordList, exclusions, find_all_first, find_best, required
from qmd.search.query import Query
from qmd.search.scripts import foreign_share

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from qmd.llm.protocols import Embedder, Vectors
    from qmd.search.budget import Clock
    from qmd.search.dense import Background, Scan
    from qmd.search.inverted import VectorSearch
    from qmd.store import Store
    from qmd.store.matrix import VectorMatrix


@dataclass(frozen=True, slots=True)
class Found:
    """One list, ungrouped: (chunk id, score) best first. `asked` is the text it was made for, `weight` its say,
    `vector` what was looked for where the list is of cosines."""

    name: str
    kind: str
    ranked: Sequence[tuple[int, float]]
    weight: float = 1.0
    asked: str = ""
    words: KeywordList = field(default_factory=lambda: KeywordList([]))
    vector: Vectors | None = None


@dataclass(frozen=True, slots=True)
class Grouped:
    """One list after grouping. `order`: documents (or chunks) best first; `best`: document -> its best chunk and
    score; `ranks`: chunk id -> rank in the ungrouped list; `places`: document -> rank, both from 1."""

    found: Found
    order: list[int]
    best: Mapping[int, tuple[int, float]]
    ranks: Mapping[int, int]
    places: Mapping[int, int]


def find_words(store: Store, query: Query, depth: int, *, alone: bool, documents: int = 0) -> KeywordList:
    """The keyword list. `alone`: all words first, as deep as `documents` need; else BM25 over any word, to be fused."""
    if not alone:
        return find_best(store.keyword, query, depth)

    def enough(ranked: Sequence[tuple[int, float]]) -> bool:
        places = store.chunk_rows.places(chunk for chunk, _ in ranked)
        return len({document for document, _, _ in places.values()}) >= documents

    while True:
        found = find_all_first(store.keyword, query, depth, enough)
        if len(found.ranked) < depth or enough(found.ranked):
            return found
        depth *= 4


def trust(query: Query, embedder: Embedder, *, alone: bool) -> tuple[float, list[str]]:
    """How much a vector list may say, 0 to 1: a model that cannot read the question's script would only add noise."""
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


class Nearest:
    """The vectors of an index, ready for the texts of one search. The filter, phrases that must be there and
    exclusions of `query` hold for every text. Raises ModelMismatch, NotFound without vectors."""

    def __init__(
        self, store: Store, query: Query, embedder: Embedder, clock: Clock, vectors: VectorSearch = "auto"
    ) -> None:
        import numpy

        from qmd.search.inverted import MatrixSearch

        self.embedder = embedder
        self._clock = clock
        matrix = open_matrix(store, embedder)
        self.notes = list(matrix.notes)
        live = matrix.live
        have = len(matrix) if live is None else int(live.sum())
        missing = store.keyword.count() + store.picture_words.count() - have
        if missing > 0:
            self.notes.append(f"vector: {missing} passages have no vector yet; run `qmd embed`")
        self._allowed: NDArray[numpy.int64] | None = store.chunk_ids(query.filter)
        tables = [store.keyword] + ([store.picture_words] if store.picture_words.count() else [])
        quoted = next((phrase for table in tables if (phrase := required(table, query))), None)
        if quoted is not None:
            holding = [chunk for table in tables for chunk in table.candidates(quoted, query.filter)]
            self._allowed = numpy.array(sorted(holding), dtype=numpy.int64)
        self._excluded = {
            chunk
            for e in exclusions(query)
            for table in tables
            for chunk in table.candidates(e, query.filter)
        }
        self._scan = scan_of(matrix)
        self._search = MatrixSearch(matrix, vectors, self._scan)
        self._pictures = store.pictures.chunk_ids()
        clock.lap("matrix")

    def embed(self, text: str, *, passage: bool = False) -> Vectors:
        """(d,), L2-normalised. passage: embed `text` as a document and not as a question."""
        vector = self.embedder.embed_documents([text])[0] if passage else self.embedder.embed_query(text)
        self._clock.lap("embed")
        return vector

    def near(self, vector: Vectors, depth: int) -> list[tuple[int, float]]:
        """(chunk id, cosine), best first. vector: (d,), L2-normalised."""
        ids, scores = self._search.search(vector, depth + len(self._excluded), allowed=self._allowed)
        both = zip(ids.tolist(), scores.tolist(), strict=True)
        found = [(i, s) for i, s in both if i not in self._excluded]
        self.notes += [note for note in self._search.notes if note not in self.notes]
        self._clock.lap("vector")
        return found[:depth]

    def cosines(self, vector: Vectors, chunks: Sequence[int]) -> dict[int, float]:
        """chunk id -> cosine, of those that have a vector."""
        return self._scan.score(vector, chunks)

    def middle(self, chunks: Sequence[int]) -> Vectors | None:
        """(d,) unit vector amid these chunks; None where none has a vector."""
        return self._scan.middle(chunks)

    def background(self, vector: Vectors) -> Background:
        """How near the question is to texts of this index at large: pictures, known by their names, say nothing."""
        return self._scan.background(vector, self._pictures)


def open_matrix(store: Store, embedder: Embedder) -> VectorMatrix:
    """The vectors of the embedder's model. Raises ModelMismatch, NotFound without vectors."""
    if not store.vectors.has(embedder.fingerprint):
        stored = [model for model in store.vectors.models() if model.count]
        if stored:
            raise ModelMismatch(
                f"the index holds vectors of {stored[0].name} ({stored[0].dim}d), the configuration asks for "
                f"{embedder.card.name} ({embedder.dim}d). Run `qmd embed --model-changed`, "
                "or restore the old model in the configuration."
            )
        raise NotFound("the index has no vectors yet. Run `qmd embed`.")
    return store.vectors.matrix(embedder.fingerprint)


_scans: WeakKeyDictionary[VectorMatrix, Scan] = WeakKeyDictionary()


def scan_of(matrix: VectorMatrix) -> Scan:
    """One for each matrix: what it has worked out of its rows serves the next search."""
    from qmd.search.dense import Scan

    scan = _scans.get(matrix)
    if scan is None:
        scan = Scan(matrix.rows, matrix.chunk_ids, matrix.codes, matrix.scales)
        _scans[matrix] = scan
    return scan


def group(found: Found, places: Mapping[int, tuple[int, str, int]], *, by_chunk: bool = False) -> Grouped:
    """One entry a document (`by_chunk`: a chunk). Equal scores are ordered by docid and line, so that the order in
    which documents came into the index says nothing."""
    alive = [
        (-round(score, 6), *places[chunk][1:], chunk, score)
        for chunk, score in found.ranked
        if chunk in places
    ]
    alive.sort()
    best: dict[int, tuple[int, float]] = {}
    ranks: dict[int, int] = {}
    for rank, (_, _, _, chunk, score) in enumerate(alive, start=1):
        ranks[chunk] = rank
        best.setdefault(chunk if by_chunk else places[chunk][0], (chunk, score))
    order = list(best)
    return Grouped(found, order, best, ranks, {key: rank for rank, key in enumerate(order, start=1)})


def best_chunk(grouped: Sequence[Grouped], document: int, k: int) -> int:
    """The chunk of a document that the lists together rank best."""
    candidates = {g.best[document][0] for g in grouped if document in g.best}
    if len(candidates) == 1:
        return candidates.pop()
    return max(
        sorted(candidates),
        key=lambda chunk: sum(g.found.weight / (k + g.ranks[chunk]) for g in grouped if chunk in g.ranks),
    )
