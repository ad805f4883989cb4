"""From scored documents to hits: texts read, scores calibrated, snippets cut, near-copies folded, files looked at."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from qmd.search.calibrate import Evidence, probability
from qmd.search.lexical import KeywordList
from qmd.search.snippet import Marker, Snippet, cut_snippet, fold, front_matter
from qmd.store.cjk import has_cjk, index_text
from qmd.store.pictures import KIND
from qmd.types import Hit

if TYPE_CHECKING:
    from qmd.search.pipeline import State
    from qmd.store import Store
    from qmd.store.chunks import ChunkRow

FRONTED = frozenset({"markdown"})
"""Types whose texts may open with front matter."""
FIRST_CHARACTERS = 1_500
EVIDENCE = 5
"""Hits that are looked at to say whether anything relevant was found."""
FOLDED_AMONG = 50
"""Near-copies are looked for among so many hits."""
ALIKE = 0.9
"""Share of common words from which two passages are near-copies, if no word with a digit tells them apart."""
FEWEST_WORDS = 12
QUOTE_CHARACTERS = 320
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n\s*\n")


@dataclass(frozen=True, slots=True)
class Shown:
    """What snippets mark: the words as asked, and as the index was asked for them."""

    asked: tuple[str, ...]
    words: KeywordList


def make_hits(state: State, shown: Shown) -> tuple[list[Hit], list[Evidence]]:
    """At most `limit` hits, best first, and what is known of the first of them."""
    request, store = state.request, state.store
    stems = store.keyword.stem(shown.words.words)
    marker = Marker(shown.words.words, [stem for terms in stems.values() for stem in terms])
    rarity = _rarity(store, shown.asked)
    documents = store.wholes.count()
    files = _Files(store)
    contexts = bool(store.contexts())
    complete = {chunk for chunk, _ in shown.words.ranked[: shown.words.complete]}
    hits: list[Hit] = []
    evidence: list[Evidence] = []
    copies = _Copies() if request.fold and not request.all_chunks else None
    duplicates: dict[int, list[str]] = {}
    ceiling, before = 1.0, 0.0
    for key, row in _rows(state):
        snippet = cut_snippet(*_text(store, row), marker)
        known = _evidence(state, key, row, snippet, marker, rarity, documents)
        if len(evidence) < EVIDENCE:
            evidence.append(known)
        # The order is the stages', the figure is calibrated: where they disagree, a later hit shows a little less.
        held = ceiling * (0.9 + 0.1 * min(1.0, known.score / before)) if before > 0 else ceiling
        ceiling, before = min(held, probability(known)), known.score
        if request.min_score is not None and round(ceiling, 4) < request.min_score:
            break
        if copies is not None and len(hits) < FOLDED_AMONG:
            original = copies.find(row, len(hits))
            if original is not None:
                state.folded += 1
                duplicates.setdefault(original, []).append(f"qmd://{row.collection}/{row.path}:{row.line}")
                continue
        body = None
        if request.full:
            stored = store.document(row.document_id)
            body = stored.text if stored is not None else None
        hits.append(
            Hit(
                docid=row.docid,
                score=round(ceiling, 4),
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
                explain=_explain(state, key, row, known, shown, complete) if request.explain else None,
                quote=cut_quote(snippet) if request.cite else None,
                stale=files.look(row),
                image=facts_of(store, row),
            )
        )
        if len(hits) == request.limit:
            break
    for number, files_of in duplicates.items():
        hits[number] = replace(hits[number], duplicates=tuple(files_of))
    return hits, evidence


def show_passages(
    store: Store, found: Sequence[tuple[int, float]], marker: Marker | None = None, *, cite: bool
) -> dict[int, Hit]:
    """chunk id -> hit for (chunk id, score), in their order, those deleted meanwhile left out. Without a marker the
    snippet is how the passage begins."""
    rows = store.chunks(chunk for chunk, _ in found)
    files, marker = _Files(store), marker or Marker((), ())
    hits: dict[int, Hit] = {}
    for chunk, score in found:
        row = rows.get(chunk)
        if row is None:
            continue
        snippet = cut_snippet(*_text(store, row), marker)
        hits[chunk] = Hit(
            docid=row.docid,
            score=round(min(max(score, 0.0), 1.0), 4),
            file=f"qmd://{row.collection}/{row.path}",
            line=snippet.line,
            end_line=snippet.end_line,
            title=row.title,
            collection=row.collection,
            path=row.path,
            heading_path=row.heading_path,
            context=store.context_for(row.collection, row.path),
            snippet=snippet.text,
            marks=snippet.marks,
            quote=cut_quote(snippet) if cite else None,
            stale=files.look(row),
            image=facts_of(store, row),
        )
    return hits


def facts_of(store: Store, row: ChunkRow) -> dict[str, object] | None:
    """What is known of a picture, None for a text."""
    if row.type != KIND:
        return None
    fields = store.documents.fields(row.document_id)
    return {**{k: fields[k] for k in ("format", "width", "height") if k in fields}, "size_bytes": row.size}


def _rows(state: State) -> Iterator[tuple[int, ChunkRow]]:
    """(document, its best chunk's row), best first, read in batches; those deleted meanwhile are left out."""
    keys = iter(state.scores)
    size = state.request.limit
    while batch := list(itertools.islice(keys, min(size, 1000))):
        chunks = {key: state.chunk_of(key) for key in batch}
        missing = [chunk for chunk in chunks.values() if chunk not in state.rows]
        rows = {**state.rows, **state.store.chunks(missing)} if missing else state.rows
        for key, chunk in chunks.items():
            if chunk in rows:
                yield key, rows[chunk]
        size = max(10, size)


def _rarity(store: Store, asked: Sequence[str]) -> dict[str, tuple[frozenset[str], float]]:
    """asked word -> (the forms it is marked by, its weight: log of how rare it is)."""
    pieces = [piece for word in asked for piece in (_bigrams(word) if has_cjk(word) else [word])]
    count = max(1, store.keyword.count())
    frequency = store.keyword.document_frequency(pieces)
    stems = store.keyword.stem(pieces)
    return {
        piece: (
            frozenset((fold(piece), *stems.get(piece, ()))),
            math.log(1 + count / (0.5 + frequency.get(piece, 0))),
        )
        for piece in pieces
    }


def _bigrams(word: str) -> list[str]:
    tokens = index_text(word).split()
    return tokens[:-1] if len(tokens) > 1 and len(tokens[-1]) == 1 else tokens


def _evidence(
    state: State,
    key: int,
    row: ChunkRow,
    snippet: Snippet,
    marker: Marker,
    rarity: Mapping[str, tuple[frozenset[str], float]],
    documents: int,
) -> Evidence:
    above = " ".join((row.title, *row.heading_path, row.path))
    held = snippet.found | {kind for _, _, kind in marker.find(above)}
    total = sum(weight for _, weight in rarity.values())
    have = sum(weight for forms, weight in rarity.values() if forms & held)
    return Evidence(
        mode=state.request.mode,
        score=state.scores[key],
        cosine=state.cosines.get(key),
        match=state.matches.get(key),
        deviations=state.nearness.get(key),
        documents=documents,
        coverage=have / total if total else 0.0,
        words=len(rarity),
    )


def _explain(
    state: State, key: int, row: ChunkRow, known: Evidence, shown: Shown, complete: set[int]
) -> dict[str, object]:
    lists = {
        g.found.name: {
            "rank": g.places[key],
            "score": round(g.best[key][1], 4),
            "weight": round(g.found.weight, 4),
            **({"asked": g.found.asked} if len(state.grouped) > 2 else {}),
        }
        for g in state.grouped
        if key in g.best
    }
    scores = {stage: round(of[key], 4) for stage, of in state.trail.items() if key in of}
    explained: dict[str, object] = {
        "lists": lists,
        "rrf_k": state.request.rrf_k,
        "scores": {**scores, "before_calibration": round(known.score, 4)},
        "match": None if known.match is None else round(known.match, 4),
        "cosine": None if known.cosine is None else round(known.cosine, 4),
        "deviations": None if known.deviations is None else round(known.deviations, 2),
        "coverage": round(known.coverage, 3),
        "chunk": {"line": row.line, "end_line": row.end_line},
        "words": list(shown.words.words),
        "all_words": row.id in complete if state.request.mode == "keyword" else None,
        "pruned": shown.words.pruned,
    }
    if state.expansion:
        explained["expansion"] = state.expansion
    return explained


def cut_quote(snippet: Snippet) -> str | None:
    """The sentence of a snippet with most marks, word for word; the first that says something without any."""
    best, most, at = None, -1, 0
    for piece in _SENTENCE.split(snippet.text):
        start = snippet.text.find(piece, at)
        at = start + len(piece)
        marks = sum(start <= a < at for a, _ in snippet.marks)
        if marks > most and any(c.isalnum() for c in piece):
            best, most = piece.strip(), marks
    return None if best is None else best[:QUOTE_CHARACTERS]


def _text(store: Store, row: ChunkRow) -> tuple[str, int]:
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


class _Files:
    """Whether files are as they were indexed: one `stat` a document."""

    def __init__(self, store: Store) -> None:
        self._roots = store.roots()
        self._seen: dict[int, Literal["changed", "gone"] | None] = {}

    def look(self, row: ChunkRow) -> Literal["changed", "gone"] | None:
        if row.document_id not in self._seen:
            self._seen[row.document_id] = self._look(row)
        return self._seen[row.document_id]

    def _look(self, row: ChunkRow) -> Literal["changed", "gone"] | None:
        root = self._roots.get(row.collection)
        if root is None or "\\x" in row.path:  # a name that is not UTF-8 is stored in another spelling
            return None
        try:
            now = os.stat(os.path.join(root, row.path))
        except (FileNotFoundError, NotADirectoryError):
            return "gone"
        except (OSError, ValueError):
            return None
        return None if (now.st_size, now.st_mtime_ns) == (row.size, row.mtime_ns) else "changed"


class _Copies:
    """Finds a passage that is a near-copy of one shown before, in a file of about the same size: a longer one says more
    than the passage."""

    def __init__(self) -> None:
        self._shown: list[tuple[int, ChunkRow, frozenset[str]]] = []

    def find(self, row: ChunkRow, number: int) -> int | None:
        """The number of the hit that `row` copies; else None, and `row` is remembered as hit `number`."""
        words = frozenset(row.text.split())
        if len(words) * 12 < len(row.text):  # a script without spaces
            words = frozenset(row.text[i : i + 2] for i in range(len(row.text) - 1))
        size = len(words)
        for other, shown, theirs in self._shown:
            if shown.document_id == row.document_id or not _alike(shown.size, row.size):
                continue
            if not _alike(size, len(theirs)):
                continue
            common = len(words & theirs)
            if common < ALIKE * (size + len(theirs) - common):
                continue
            if size < FEWEST_WORDS and common < size:
                continue
            if not any(c.isdigit() for word in words ^ theirs for c in word):
                return other
        self._shown.append((number, row, words))
        return None


def _alike(one: int, other: int) -> bool:
    return min(one, other) >= ALIKE * max(one, other)
