"""One score for each document (or chunk) of all lists: how much of the question it matches, and how near it is.

A document that only one list found is looked up in the other, so that nothing is scored by its absence. The first
`request.limit * 2` of each list, at least `LEAST` (by keyword alone `LEAST_ALONE`), are weighed so; the rest follows
by rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmd.search import expand
from qmd.search.fuse import fuse_ranks, fuse_scores
from qmd.search.retrieve import best_chunk

if TYPE_CHECKING:
    from qmd.llm.protocols import Vectors
    from qmd.search.request import Request
    from qmd.search.retrieve import Grouped, Nearest
    from qmd.store import Store
    from qmd.store.wholes import Matches

LEAST, LEAST_ALONE, MOST = 40, 20, 500
FEW_WORDS = 3
"""Keyword search puts documents with every word first where so few were asked for: somebody who types three words wants
all three. In a question each word is one of many, and the order by BM25 is the better one (Go's documentation,
nDCG@10: 58.9 without the rule, 56.7 with it)."""
Places = Mapping[int, tuple[int, str, int]]


@dataclass(frozen=True, slots=True)
class Weighed:
    """`scores`: id -> score in [0, 1], best first. `matches`: id -> share of the question's words matched, weighed by
    rarity; `nearness`: id -> standard deviations of cosine above the background; `cosines` themselves."""

    scores: dict[int, float]
    matches: Mapping[int, float]
    nearness: Mapping[int, float]
    cosines: Mapping[int, float]


def weigh(
    store: Store,
    grouped: Sequence[Grouped],
    places: Places,
    nearest: Nearest | None,
    request: Request,
    feedback: Sequence[tuple[str, int]] = (),
) -> Weighed:
    """Score what the lists found. Keyword search alone keeps those with every word first.

    feedback: (word, chunks that hold it) that the best passages share; with any, neighbours of the best documents count
    more, too.
    """
    deep = min(max(2 * request.limit, LEAST_ALONE if request.mode == "keyword" else LEAST), MOST)
    keys = list(dict.fromkeys(key for g in grouped for key in g.order[:deep]))
    document = {key: places[key][0] if request.all_chunks else key for key in keys}
    matches: list[tuple[Mapping[int, float], float]] = []
    nearness: list[tuple[Mapping[int, float], float]] = []
    cosines: Mapping[int, float] = {}
    parts: Mapping[int, int] = {}
    for g in grouped:
        if g.found.kind == "keyword":
            words = g.found.words
            found = store.wholes.match(words.atoms, document.values(), missing=words.missing)
            parts = parts or found.parts
            matches.append((_of(found, keys, by_chunk=request.all_chunks), g.found.weight))
    for g in grouped:
        if g.found.vector is not None and nearest is not None:
            known = {key: score for key, (_, score) in g.best.items()}
            near, of_list = _nearness(
                g.found.vector, known, keys, nearest, parts, by_chunk=request.all_chunks
            )
            cosines = cosines or of_list
            nearness.append((near, g.found.weight))
    own = matches[0][0] if matches else {}
    if feedback:
        atoms = [(f'"{word}"', frequency) for word, frequency in feedback]
        found = store.wholes.match(atoms, document.values())
        matches.append(
            (_of(found, keys, by_chunk=request.all_chunks), expand.FEEDBACK_WEIGHT * request.keyword_weight)
        )
    scores = fuse_scores(matches, nearness)
    if feedback and nearness and nearest is not None and expand.NEIGHBOUR_DOCUMENTS:
        best = [
            key if request.all_chunks else best_chunk(grouped, key, request.rrf_k)
            for key in list(scores)[: expand.NEIGHBOUR_DOCUMENTS]
        ]
        middle = nearest.middle(best)
        if middle is not None:
            near = _nearness(middle, {}, keys, nearest, parts, by_chunk=request.all_chunks)[0]
            scores = fuse_scores(
                matches, [*nearness, (near, expand.NEIGHBOUR_WEIGHT * request.vector_weight)]
            )
    order = _in_order(scores, grouped, places, cosines, request)
    return Weighed(order, own, nearness[0][0] if nearness else {}, cosines)


def _of(found: Matches, keys: Sequence[int], *, by_chunk: bool) -> dict[int, float]:
    of = found.chunks if by_chunk else found.documents
    return {key: of.get(key, 0.0) for key in keys}


def _nearness(
    vector: Vectors,
    known: Mapping[int, float],
    keys: Sequence[int],
    nearest: Nearest,
    parts: Mapping[int, int],
    *,
    by_chunk: bool,
) -> tuple[dict[int, float], dict[int, float]]:
    """(id -> deviations above the background, id -> cosine). known: cosines that need no second look."""
    cosines = dict(known)
    absent = {key for key in keys if key not in cosines}
    if by_chunk:
        cosines.update(nearest.cosines(vector, sorted(absent)))
    elif absent:
        wanted = [chunk for chunk, document in parts.items() if document in absent]
        for chunk, score in nearest.cosines(vector, wanted).items():
            cosines[parts[chunk]] = max(score, cosines.get(parts[chunk], -1.0))
    background = nearest.background(vector)
    return {key: background.z(cosines[key]) for key in keys if key in cosines}, cosines


def _in_order(
    scores: Mapping[int, float],
    grouped: Sequence[Grouped],
    places: Places,
    cosines: Mapping[int, float],
    request: Request,
) -> dict[int, float]:
    """Best first; equal scores (all below the background are) by cosine, then by docid and line, so that the order of
    indexing says nothing. Then the rest by rank."""
    first: set[int] = set()
    if request.mode == "keyword" and len(grouped) == 1:
        words = grouped[0].found.words
        few = len(words.atoms) + words.missing <= FEW_WORDS
        complete = {chunk for chunk, _ in words.ranked[: words.complete]} if few else set()
        first = {chunk if request.all_chunks else places[chunk][0] for chunk in complete if chunk in places}
    if request.all_chunks:
        names = {chunk: (docid, line) for chunk, (_, docid, line) in places.items()}
    else:
        names = {document: (docid, 0) for document, docid, _ in places.values()}
    ordered = sorted(
        scores,
        key=lambda key: (
            key not in first, -round(scores[key], 9), -round(cosines.get(key, -1.0), 6), names[key]
        ),
    )  # fmt: skip
    out: dict[int, float] = {}
    ceiling = 1.0
    for key in ordered:
        ceiling = min(ceiling, scores[key]) if first else scores[key]
        out[key] = ceiling
    orders = {g.found.name: [key for key in g.order if key not in scores] for g in grouped}
    rest = fuse_ranks(orders, {g.found.name: g.found.weight for g in grouped}, k=request.rrf_k)
    least = min(out.values(), default=1.0)
    out.update((key, score * least) for key, score in rest)
    return out
