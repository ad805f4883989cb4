"""BM25 of whole documents, from the postings of their chunks. Knows FTS5's tables; nothing of queries.

A chunk that holds half of a question's words loses against its document, which holds them all: on six collections the
best chunk's BM25 ranks .5 to 2.5 points of nDCG@10 below the document's own. So a document counts by
`DOCUMENT_SHARE` of its own BM25 and the rest of its best chunk's. Term counts are read back from the scores that FTS5
gives: score = idf * tf * (k1 + 1) / (tf + norm), where idf and norm are known.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qmd.store.connect import Connection
from qmd.store.keyword import K1, WEIGHTS, B, Keyword, varints

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qmd.store.postings import Kept

DOCUMENT_SHARE = 0.7
READ_AGAIN = 4_000
"""A word with more postings than this takes part only where its postings are in memory."""
SIZES_KEPT = 20_000
PAIRS = 100
"""Neighbours among a long posting list that are looked at to estimate how many documents it is in."""
_BODY_ONLY = (0.0, 0.0, 1.0, 0.0)
_LEAST_IDF = 1e-6  # FTS5's own floor, for words in more than half of all rows
MOST = 0.999
_PICTURES = "SELECT count(*) FROM documents INDEXED BY pictures_by_hash WHERE type = 'image'"


@dataclass(frozen=True, slots=True)
class Matches:
    """How well documents and chunks match, as shares in [0, 1] of what a text made of the question's words alone would
    get: 1 means every word asked for, again and again. `parts`: chunk -> its document, of all chunks."""

    documents: Mapping[int, float]
    chunks: Mapping[int, float]
    parts: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Means:
    """Mean number of tokens of a chunk, all columns, and of a document's bodies."""

    chunk: float
    document: float


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the question. unit: the BM25 that one chunk full of it would get; found: (chunk, BM25, BM25 of the body
    alone), chunks rising; as rows of an array where the postings are in memory."""

    rarity: float
    unit: float
    found: Sequence[tuple[int, float, float]] | NDArray[np.float64]


Sizes = Mapping[int, Sequence[tuple[int, int, int]]]
"""document -> (chunk, its tokens, its body's) of its chunks, at least one."""


@dataclass(frozen=True, slots=True)
class _State:
    """What is remembered of one state of the index. A search takes it once: another thread may have gone on.

    documents: without pictures; tokens: of all columns; spreads: expression -> (chunks, documents) that match.
    """

    generation: int
    documents: int = 0
    tokens: int = 0
    body_tokens: int = 0
    spreads: dict[str, tuple[int, int]] = field(default_factory=dict)
    lengths: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)


class Wholes:
    """Scores documents. What it remembers belongs to one state of the index."""

    def __init__(self, db: Connection, keyword: Keyword) -> None:
        self._db = db
        self._keyword = keyword
        self._remembered = _State(-1)

    def match(
        self, atoms: Sequence[tuple[str, int]], documents: Iterable[int], *, missing: int = 0
    ) -> Matches:
        """Score `documents` for FTS5 expressions.

        atoms: (expression of one word, phrase or choice, its number of chunks as far as it is known); missing: how many
        words were asked for that the index does not have. Documents without any of the words get 0.
        """
        with self._db.snapshot():
            return self._match(atoms, documents, missing)

    def count(self) -> int:
        """Documents in the index but for pictures; remembered until it changes."""
        return self._state().documents

    def _match(self, atoms: Sequence[tuple[str, int]], documents: Iterable[int], missing: int) -> Matches:
        state = self._state()
        count, total = state.documents, self._keyword.count()
        sizes = {
            d: chunks for d, chunks in self._sizes(state, list(dict.fromkeys(documents))).items() if chunks
        }
        means = Means(max(state.tokens / max(total, 1), 1e-9), max(state.body_tokens / max(count, 1), 1e-9))
        ids: list[int] | NDArray[np.int64] = sorted([c for chunks in sizes.values() for c, _, _ in chunks])
        arrays = "numpy" in sys.modules
        if arrays:
            import numpy as np

            ids = np.array(ids, dtype=np.int64)
        mass = missing * _rarity(count, 0)
        words: list[Word] = []
        for expression, frequency in atoms:
            # A process that answers once need not load numpy; one that goes on answering looks up in memory.
            kept = self._keyword.kept(expression, read=arrays and frequency <= READ_AGAIN)
            if kept is None and frequency > READ_AGAIN:
                continue
            holding, spread = self._spread(state, expression, kept)
            if not holding:
                continue
            rarity = _rarity(count, spread)
            mass += rarity
            unit = max(math.log((total - holding + 0.5) / (holding + 0.5)), _LEAST_IDF) * (K1 + 1)
            words.append(Word(rarity, unit, self._scores(expression, ids, kept)))
        if arrays:
            from qmd.store.whole_arrays import add_words
        else:
            add_words = _add_words
        return add_words(sizes, words, means, max(mass, 1e-9))

    def _sizes(self, state: _State, documents: Sequence[int]) -> dict[int, list[tuple[int, int, int]]]:
        """document -> (chunk, its tokens, its body's) of its chunks; `SIZES_KEPT` documents are remembered."""
        known = state.lengths
        if len(known) > SIZES_KEPT:
            known = {}
            self._remembered = replace(state, lengths=known)
        missing = [document for document in documents if document not in known]
        fresh: dict[int, list[tuple[int, int, int]]] = {document: [] for document in missing}
        for document, chunk, sizes in self._db.all(
            "SELECT c.document_id, c.id, k.sz FROM json_each(?) w CROSS JOIN chunks c ON c.document_id = w.value "
            "CROSS JOIN keyword_docsize k ON k.id = c.id",
            (json.dumps(missing),),
        ):
            lengths = varints(sizes)
            fresh[document].append((chunk, sum(lengths), lengths[2]))
        known.update(fresh)
        return {document: known[document] for document in documents}

    def _scores(
        self, expression: str, ids: list[int] | NDArray[np.int64], kept: Kept | None
    ) -> Sequence[tuple[int, float, float]] | NDArray[np.float64]:
        """(chunk, BM25, BM25 of the body alone) of those of `ids` (rising) that match."""
        if kept is not None:
            from qmd.store.postings import among

            return among(kept, ids)
        columns = ", ".join(str(float(w)) for w in WEIGHTS)
        alone = ", ".join(map(str, _BODY_ONLY))
        rows: list[tuple[int, float, float]] = self._db.all(
            f"SELECT rowid, -bm25(keyword, {columns}), -bm25(keyword, {alone}) FROM keyword "
            "WHERE keyword MATCH ? AND +rowid IN (SELECT value FROM json_each(?)) ORDER BY rowid",
            (expression, json.dumps([int(i) for i in ids])),
        )
        return rows

    def _spread(self, state: _State, expression: str, kept: Kept | None) -> tuple[int, int]:
        """(chunks, documents) that match; for long lists in memory the documents are estimated."""
        known = state.spreads
        if expression not in known:
            known[expression] = self._count(expression) if kept is None else self._estimate(kept)
        return known[expression]

    def _count(self, expression: str) -> tuple[int, int]:
        rows = self._db.all(
            "SELECT count(*), count(DISTINCT c.document_id) FROM keyword k CROSS JOIN chunks c ON c.id = k.rowid "
            "WHERE keyword MATCH ?",
            (expression,),
        )
        return int(rows[0][0]), int(rows[0][1])

    def _estimate(self, kept: Kept) -> tuple[int, int]:
        """Chunks of a document stand together: of n postings, those whose neighbour is of another document begin a
        document."""
        total = len(kept[0])
        if total <= 2 * PAIRS:
            places = self._documents(kept[0].tolist())
            return total, len(set(places.values()))
        firsts, seconds = ([int(kept[0][i * (total - 1) // PAIRS + n]) for i in range(PAIRS)] for n in (0, 1))
        places = self._documents([*firsts, *seconds])
        apart = sum(places.get(a) != places.get(b) for a, b in zip(firsts, seconds, strict=True))
        return total, max(1, round(total * apart / PAIRS))

    def _documents(self, chunks: Sequence[int]) -> dict[int, int]:
        return dict(
            self._db.all(
                "SELECT c.id, c.document_id FROM json_each(?) w CROSS JOIN chunks c ON c.id = w.value",
                (json.dumps(list(chunks)),),
            )
        )

    def _state(self) -> _State:
        generation, state = self._keyword.generation(), self._remembered
        if state.generation != generation:
            documents = int(self._db.value("SELECT count(*) FROM documents"))
            documents -= int(self._db.value(_PICTURES))
            # Record 1 of FTS5's data table: rows, then tokens of each column.
            totals = varints(self._db.value("SELECT block FROM keyword_data WHERE id = 1") or b"\0")
            sizes = [*totals[1:], 0, 0, 0, 0][:4]
            self._remembered = state = _State(generation, documents, sum(sizes), sizes[2])
        return state


def _add_words(sizes: Sizes, words: Sequence[Word], means: Means, mass: float) -> Matches:
    """Add up; `whole_arrays.add_words` does the same for a process that has numpy."""
    owner: dict[int, int] = {}
    norm: dict[int, float] = {}
    length: dict[int, int] = {}
    for document, chunks in sizes.items():
        for chunk, size, _ in chunks:
            owner[chunk] = document
            norm[chunk] = K1 * (1 - B + B * size / means.chunk)
        length[document] = sum(body for _, _, body in chunks)
    whole: dict[int, float] = defaultdict(float)
    part: dict[int, float] = defaultdict(float)
    for word in words:
        body: dict[int, float] = defaultdict(float)
        other: dict[int, float] = defaultdict(float)
        for chunk, weighted, plain in word.found:
            share = min(weighted / word.unit, MOST)
            part[chunk] += word.rarity * share
            in_body = _times(min(plain / word.unit, share), norm[chunk])
            body[owner[chunk]] += in_body
            other[owner[chunk]] += max(0.0, _times(share, norm[chunk]) - in_body)
        for document, times in body.items():
            # Title and path stand in every chunk of a document: they count once.
            counted = times + other[document] / len(sizes[document])
            whole[document] += (
                word.rarity * counted / (counted + K1 * (1 - B + B * length[document] / means.document))
            )
    scores = {
        document: (
            DOCUMENT_SHARE * whole.get(document, 0.0)
            + (1 - DOCUMENT_SHARE) * max(part.get(chunk, 0.0) for chunk, _, _ in chunks)
        )
        / mass
        for document, chunks in sizes.items()
    }
    return Matches(scores, {chunk: score / mass for chunk, score in part.items()}, owner)


def _times(share: float, norm: float) -> float:
    """The term count behind tf / (tf + norm) = share."""
    return max(0.0, share) * norm / (1 - min(share, MOST))


def _rarity(documents: int, holding: int) -> float:
    return math.log(1 + (max(documents, holding) - holding + 0.5) / (holding + 0.5))


__all__ = ["DOCUMENT_SHARE", "Matches", "Means", "Wholes", "Word"]
