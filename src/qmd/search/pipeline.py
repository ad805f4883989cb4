"""From a question to hits, top to bottom: parse -> lists -> expand -> fuse -> rerank -> calibrate -> hits -> pictures.

Each stage is one function, timed, and shown by `explain`. A stage that fails, or that the time does not allow, is left
out and named in `degraded`; the others answer.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qmd.errors import QmdError
from qmd.search import calibrate, expand
from qmd.search.budget import Budget, Clock, Costs
from qmd.search.fuse import blend, fuse_ranks
from qmd.search.lexical import KeywordList
from qmd.search.query import Asked, Part, parse_request
from qmd.search.request import Mode, Models, Request
from qmd.search.retrieve import Found, Grouped, Nearest, best_chunk, find_words, group, trust
from qmd.search.show import Shown, make_hits
from qmd.search.weigh import weigh
from qmd.types import Hits

if TYPE_CHECKING:
    from qmd.store import Store
    from qmd.store.cache import AnswerCache
    from qmd.store.chunks import ChunkRow

__all__ = ["Mode", "Models", "Request", "search"]

CHUNKS_PER_HIT = 5
LEAST_CHUNKS: Mapping[Mode, int] = {"keyword": 50, "vector": 200, "hybrid": 200}
"""Depth of each list, in chunks: several chunks of one document are one hit. A list alone needs fewer than one
that is fused, and is made again, deeper, where they belong to too few documents."""

MOST_DEEPER = 64

MODEL_EXPANSION_WEIGHT = 0.5
"""Weight of a list that a model's line made, against 1 of the question's own; the original's 1 to 2."""
SURE_SCORE, SURE_GAP = 0.85, 0.15
"""A first keyword hit of b / (1 + b) >= .85 for its BM25 b, .15 ahead of the second, needs no expansion by a model; the
original's figures."""


@dataclass(slots=True)
class State:
    """What the stages hand on. `scores`: document (or chunk) -> score, best first; `trail`: stage -> its scores."""

    store: Store
    request: Request
    models: Models
    budget: Budget
    clock: Clock
    asked: Asked
    cache: AnswerCache | None = None
    depth: int = 0
    degraded: list[str] = field(default_factory=list)
    nearest: Nearest | None = None
    vectors_failed: bool = False
    lists: list[Found] = field(default_factory=list)
    expansion: list[dict[str, object]] = field(default_factory=list)
    feedback: list[tuple[str, int]] = field(default_factory=list)
    grouped: list[Grouped] = field(default_factory=list)
    places: dict[int, tuple[int, str, int]] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    matches: Mapping[int, float] = field(default_factory=dict)
    nearness: Mapping[int, float] = field(default_factory=dict)
    cosines: Mapping[int, float] = field(default_factory=dict)
    trail: dict[str, dict[int, float]] = field(default_factory=dict)
    rows: dict[int, ChunkRow] = field(default_factory=dict)
    folded: int = 0

    def chunk_of(self, key: int) -> int:
        """The chunk that stands for a document."""
        return key if self.request.all_chunks else best_chunk(self.grouped, key, self.request.rrf_k)


def search(
    store: Store,
    request: Request,
    models: Models,
    *,
    costs: Costs | None = None,
    cache: AnswerCache | None = None,
) -> Hits:
    """Answer one request. A model is opened only where its stage runs.

    costs: measured costs of earlier searches; cache: what models answered before. Raises ModelMismatch, ModelError and
    NotFound in vector mode alone; hybrid answers by keyword then.
    """
    clock = Clock()
    budget = Budget(request.budget_ms, costs or Costs(), clock)
    asked = parse_request(request.text, request.filter, request.intent)
    state = State(store, request, models, budget, clock, asked, cache)
    state.depth = request.deeper * max(request.limit * CHUNKS_PER_HIT, LEAST_CHUNKS[request.mode])
    clock.lap("parse")

    make_lists(state)
    expand_from_passages(state)
    expand_with_model(state)
    fuse(state)
    rerank(state)
    boost(state)
    hits = answer(state)
    full = any(len(found.ranked) >= state.depth for found in state.lists)
    # A keyword list alone stops at as many documents as were wanted, however deep it could go.
    full = full or (request.mode == "keyword" and len(state.scores) >= request.limit * request.deeper)
    if state.folded and full and len(hits) < request.limit and request.deeper < MOST_DEEPER:
        # Copies took the places of others: look for those further down.
        deeper = replace(request, deeper=request.deeper * 4)
        return search(store, deeper, models, costs=costs, cache=cache)
    return hits


# ---- lists
def make_lists(state: State) -> None:
    """A keyword and a vector list for each part of the request; the first part of several counts double."""
    request, asked = state.request, state.asked
    several = len(asked.parts) > 1
    for number, part in enumerate(asked.parts, start=1):
        share = 2.0 if several and number == 1 else 1.0
        label = f" {number}" if several else ""
        if request.mode != "vector" and part.kind in ("plain", "lex"):
            _add_words(state, part, f"keyword{label}", share * request.keyword_weight, alone=not several)
        if request.mode != "keyword" and part.kind != "lex":
            _add_nearest(state, part, f"vector{label}", share * request.vector_weight)
    if not state.lists and asked.typed and request.mode != "hybrid":
        wanted = "lex:" if request.mode == "keyword" else "vec: or hyde:"
        state.degraded.append(f"{request.mode}: no {wanted} line to look for")


def _add_words(state: State, part: Part, name: str, weight: float, *, alone: bool) -> None:
    request = state.request
    alone = alone and request.mode == "keyword"
    depth, documents = state.depth, request.limit * request.deeper
    if request.all_chunks:
        documents = 0
    words = find_words(state.store, part.query, depth, alone=alone, documents=documents)
    state.degraded += words.notes
    state.lists.append(Found(name, "keyword", words.ranked, weight, part.query.plain, words))
    state.clock.lap("keyword")


def _add_nearest(state: State, part: Part, name: str, weight: float) -> None:
    request, models = state.request, state.models
    alone = request.mode == "vector"
    if not part.query:
        if alone:
            state.degraded.append("vector: nothing to look for")
        return
    if state.vectors_failed:
        return
    stages = ["vector"] if models.embedder.ready() else ["vector", "vector.open"]
    refused = None if alone else state.budget.refuses(*stages)
    if refused:
        state.vectors_failed = True
        state.degraded.append(f"vector: {refused}")
        return
    opened = models.embedder.ready()
    begin = state.clock.spent_ms()
    try:
        embedder = models.embedder.open()
        if not opened:
            state.budget.costs.record("vector.open", state.clock.spent_ms() - begin)
            begin = state.clock.spent_ms()
        share, notes = trust(part.query, embedder, alone=alone)
        state.degraded += notes
        if share <= 0:
            return
        first = state.nearest is None
        if state.nearest is None:
            state.nearest = Nearest(state.store, part.query, embedder, state.clock, request.vectors)
        intent = f" {state.asked.intent}" if state.asked.intent and part.kind != "hyde" else ""
        vector = state.nearest.embed(part.query.plain + intent, passage=part.kind == "hyde")
        ranked = state.nearest.near(vector, state.depth)
        state.degraded += [note for note in state.nearest.notes if note not in state.degraded]
        if first and opened:
            state.budget.costs.record("vector", state.clock.spent_ms() - begin)
    except (QmdError, OSError) as error:
        if alone:
            raise
        state.vectors_failed = True
        state.degraded.append(f"vector: {error}")
        return
    state.lists.append(Found(name, "vector", ranked, share * weight, part.query.plain, vector=vector))


# ---- expansion
def expand_from_passages(state: State) -> None:
    """Words that the best passages share, to weigh documents by (`expand.feedback`)."""
    request = state.request
    if request.mode != "hybrid" or request.expand is False or state.asked.typed:
        return
    if not expand.FEEDBACK_PASSAGES or not state.lists:
        return
    asked = [word for term in state.asked.parts[0].query.terms for word in term.words]
    if len(asked) < expand.FEWEST_WORDS:
        return
    best = _first_passages(state, expand.FEEDBACK_PASSAGES)
    keyword = state.store.keyword
    state.feedback = expand.feedback(
        asked, [row.text for row in best], keyword.document_frequency, keyword.stem, keyword.count()
    )
    if state.feedback:
        state.expansion.append({"from": "passages", "words": [word for word, _ in state.feedback]})
    state.clock.lap("feedback")


def _first_passages(state: State, count: int) -> list[ChunkRow]:
    """The best chunks over all lists so far."""
    ranks = {f.name: [chunk for chunk, _ in f.ranked[: 3 * count]] for f in state.lists}
    weights = {f.name: f.weight for f in state.lists}
    best = [chunk for chunk, _ in fuse_ranks(ranks, weights, k=state.request.rrf_k)[:count]]
    return list(state.store.chunks(best).values())


def expand_with_model(state: State) -> None:
    """Lists for the lines that the expansion model writes, unless the first hit is sure already."""
    request, door = state.request, state.models.expander
    forced = request.expand is True or state.asked.expand
    if request.mode != "hybrid" or request.expand is False or door is None or not state.asked.plain:
        if forced and door is None and request.mode == "hybrid":
            state.degraded.append("expand: no model; set `models.expansion` in the configuration")
        return
    if not forced and (state.asked.typed or is_sure(state.lists)):
        state.expansion.append({"from": "model", "left_out": "the first hit is sure, or lines were given"})
        return
    from qmd.search.rewrite import Rewriter

    rewriter = Rewriter(door, state.cache)
    cost, loading = f"expand:{door.name}", f"open:{door.name}"
    known = rewriter.recall(state.asked.plain, state.asked.intent)
    if known is None:
        refused = None if forced else state.budget.refuses(cost, *([] if door.ready() else [loading]))
        if refused:
            state.degraded.append(f"expand: {refused}")
            return
    begin, opened = state.clock.spent_ms(), door.ready()
    try:
        lines = known if known is not None else rewriter.write(state.asked.plain, state.asked.intent)
        embedder = state.nearest.embedder if state.nearest is not None else None
        kept, dropped = rewriter.check(state.asked.plain, lines, embedder)
    except (QmdError, OSError) as error:
        state.budget.costs.record_failure(cost if opened else loading, state.clock.spent_ms() - begin)
        state.degraded.append(f"expand: {error}")
        state.clock.lap("expand")
        return
    if known is None:
        state.budget.costs.record(cost if opened else loading, state.clock.spent_ms() - begin)
    state.expansion.append(
        {"from": "model", "model": door.name, "cached": known is not None, "dropped": dropped}
    )
    state.clock.lap("expand")
    for number, (kind, text) in enumerate(kept, start=1):
        first, query = state.asked.parts[0].query, parse_request(text).parts[0].query
        query = replace(query, filter=first.filter, excluded=first.excluded, required=first.required)
        part = Part(kind, query)
        if kind == "lex":
            _add_words(
                state,
                part,
                f"expand {number} lex",
                MODEL_EXPANSION_WEIGHT * request.keyword_weight,
                alone=False,
            )
        elif state.nearest is not None:
            weight = MODEL_EXPANSION_WEIGHT * request.vector_weight
            _add_nearest(state, part, f"expand {number} {kind}", weight)


def is_sure(lists: Sequence[Found]) -> bool:
    """Whether the first keyword hit stands so far ahead that more words can only do harm."""
    for found in lists:
        if found.kind == "keyword":
            top = [_bounded(score) for _, score in found.ranked[:2]]
            return bool(top) and top[0] >= SURE_SCORE and top[0] - (top[1] if len(top) > 1 else 0) >= SURE_GAP
    return False


# ---- one order
def fuse(state: State) -> None:
    """One entry a document (or a chunk), all lists in one order."""
    request = state.request
    chunks = {chunk for found in state.lists for chunk, _ in found.ranked}
    state.places = state.store.chunk_rows.places(chunks)
    state.grouped = [group(found, state.places, by_chunk=request.all_chunks) for found in state.lists]
    if state.grouped:
        weighed = weigh(state.store, state.grouped, state.places, state.nearest, request, state.feedback)
        state.scores, state.matches = weighed.scores, weighed.matches
        state.nearness, state.cosines = weighed.nearness, weighed.cosines
    if request.explain:
        state.trail["fused"] = dict(state.scores)
    state.clock.lap("fuse")


def rerank(state: State) -> None:
    """The first `candidate_limit` in a new order, by the configured reranker."""
    request = state.request
    if request.rerank is False or request.mode == "keyword" or not state.scores or not state.asked.plain:
        return
    door = state.models.reranker
    if door is None:
        if request.rerank is True:
            state.degraded.append("rerank: no model; set `models.reranker` in the configuration")
        return
    from qmd.search.rerank import score_cached

    question = f"{state.asked.plain}\n{state.asked.intent}" if state.asked.intent else state.asked.plain
    wanted = min(request.candidate_limit, len(state.scores))
    cost, loading = f"rerank:{door.name}", None if door.ready() else f"open:{door.name}"
    if request.rerank is not True:
        count = state.budget.fitting(cost, wanted, loading=loading)
        if count < min(2, wanted):
            state.degraded.append(f"rerank: left out, the {request.budget_ms:.0f} ms are used up")
            return
        if count < wanted:
            state.degraded.append(f"rerank: {count} of {wanted} candidates, as many as the time allows")
        wanted = count
    keys = list(state.scores)[:wanted]
    texts = _texts(state, keys)
    begin = state.clock.spent_ms()
    try:
        if loading is not None:
            door.open()
            state.budget.costs.record(loading, state.clock.spent_ms() - begin)
            begin, loading = state.clock.spent_ms(), None
        scores, scored = score_cached(door.open(), question, texts, state.cache)
    except (QmdError, OSError) as error:
        # The time is that of all candidates: what takes so long to fail is not to be tried on a few of them.
        state.budget.costs.record_failure(loading or cost, state.clock.spent_ms() - begin)
        state.degraded.append(f"rerank: {error}")
        state.clock.lap("rerank")
        return
    if scored:
        state.budget.costs.record(cost, (state.clock.spent_ms() - begin) / scored)
    _reorder(state, keys, scores, request.rerank_weight)
    state.clock.lap("rerank")


def _texts(state: State, keys: Sequence[int]) -> list[str]:
    """The matched chunk of each candidate, under its title."""
    chunks = [state.chunk_of(key) for key in keys]
    state.rows.update(state.store.chunks([chunk for chunk in chunks if chunk not in state.rows]))
    return [f"{row.title}\n{row.text}" if (row := state.rows.get(chunk)) else "" for chunk in chunks]


def _reorder(state: State, keys: Sequence[int], scores: Sequence[float], weight: float) -> None:
    """Blend new scores of the first `keys` with the old; the rest keeps its order below them."""
    state.trail["reranked"] = dict(zip(keys, map(float, scores), strict=True))
    blended = blend([state.scores[key] for key in keys], scores, weight)
    first = dict(sorted(zip(keys, blended, strict=True), key=lambda item: -item[1]))
    least = min(first.values(), default=0.0)
    highest = (state.scores[keys[0]] if keys else 0.0) or 1.0
    rest = {k: s * min(1.0, least / highest) for k, s in state.scores.items() if k not in first}
    state.scores = {**first, **rest}


def boost(state: State) -> None:
    """Collections with a factor, and new documents before old ones, where asked for."""
    request = state.request
    if not state.scores or not (request.recency > 0 or any(f != 1 for f in request.boosts.values())):
        return
    keys = state.scores.keys()
    documents = {key: state.places[key][0] if request.all_chunks else key for key in keys}
    days = state.store.documents.days(set(documents.values()))
    today = datetime.datetime.now(tz=datetime.UTC).date()
    factors: dict[int, float] = {}
    for key, document in documents.items():
        collection, day = days.get(document, ("", None))
        factor = request.boosts.get(collection, 1.0)
        if day is not None and request.recency > 0:
            age = max(0, (today - day).days)
            factor *= 1 + request.recency * 0.5 ** (age / request.half_life_days)
        factors[key] = factor
    # Divided by the largest factor there can be, so that a score stays a score in [0, 1].
    top = max(1.0, *request.boosts.values()) if request.boosts else 1.0
    top *= 1 + request.recency
    boosted = {key: score * factors[key] / top for key, score in state.scores.items()}
    state.scores = dict(sorted(boosted.items(), key=lambda item: -item[1]))
    if request.explain:
        state.trail["boost"] = factors
    state.clock.lap("boost")


# ---- the answer
def answer(state: State) -> Hits:
    """Calibrated hits, near-duplicates folded, and whether any of them answers the question."""
    words = next((f.words for f in state.lists if f.kind == "keyword"), KeywordList([]))
    asked = [word for part in state.asked.parts for term in part.query.terms for word in term.words]
    if state.lists and not words.words:
        words = KeywordList([], words=tuple(asked))
    elif len(state.lists) > 1:
        more = [word for f in state.lists if f.kind == "keyword" for word in f.words.words]
        words = replace(words, words=tuple(dict.fromkeys((*words.words, *more))))
    shown = Shown(asked=tuple(dict.fromkeys(asked)), words=words)
    hits, evidence = make_hits(state, shown)
    any_relevant = calibrate.any_relevant(evidence)
    state.clock.lap("hits")
    if state.store.pictures.any():
        from qmd.search.pictures import join_pictures

        hits = join_pictures(state, hits)
        best = max((hit.score for hit in hits if hit.image is not None), default=0.0)
        any_relevant = max(any_relevant or 0.0, best) if best or any_relevant is not None else None
    nothing = any_relevant is not None and any_relevant < calibrate.NOTHING_BELOW
    state.clock.lap("hits")
    return Hits(tuple(hits), tuple(dict.fromkeys(state.degraded)), state.clock.laps, any_relevant, nothing)


def _bounded(bm25: float) -> float:
    return max(bm25, 0.0) / (1.0 + max(bm25, 0.0))
