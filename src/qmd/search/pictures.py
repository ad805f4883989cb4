"""Pictures that show or are called what a question names, beside the texts that answer it.

One stage after the texts, which are ranked as if there were no pictures. By looks: the question's vector in the
image-text model's space against the pictures' own vectors; only from `STRONG` on, so that questions about something
else see no picture. By words: names, descriptions and captions, a table of their own. What is found joins the hits by
probability. A search for pictures alone (`type:image`) shows the nearest whatever they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qmd.errors import QmdError
from qmd.search.calibrate import Evidence
from qmd.search.calibrate import probability as of_words
from qmd.search.lexical import exclusions, find_all_first, required
from qmd.search.scripts import foreign_share
from qmd.search.show import show_passages
from qmd.search.snippet import Marker
from qmd.types import Hit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qmd.llm.image_text import ImageTextModel
    from qmd.llm.protocols import Vectors
    from qmd.search.pipeline import State
    from qmd.search.query import Query
    from qmd.store import Store
    from qmd.types import Filter

STRONG = 0.5
MOST_SHOWN = 5
"""Pictures that join a search by looks which did not ask for pictures."""
MOST_WORDS = 8
"""A longer question describes no single picture."""
NAMED = 0.6
"""A name says what a picture shows and no more: a text that matches as well comes first."""
HALF = 0.5
"""Of what was asked for, weighed by rarity, the words of a picture hold at least this much."""
FAINT = 0.1
COST = "pictures"


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture near a question."""

    chunk: int
    cosine: float
    deviations: float
    probability: float


@dataclass(frozen=True, slots=True)
class Named:
    """One picture whose words are asked for; `match`: the share of them that it holds, weighed by rarity."""

    chunk: int
    match: float
    probability: float


def join_pictures(state: State, hits: Sequence[Hit]) -> list[Hit]:
    """`hits` with the pictures that the question names, by probability; at most `limit`."""
    wanted = (state.asked.filter.type or "").casefold() == "image"
    if state.asked.filter.type and not wanted:
        return list(hits)
    named, words = find_named(state, wanted=wanted)
    seen = find_seen(state, wanted=wanted)
    if not wanted:
        # What only a caption's vector says, faintly, would show pictures beside every answer.
        hits = [hit for hit in hits if hit.image is None or hit.score >= FAINT]
    if named or seen:
        hits = merge(state, hits, named, words, seen)
    state.clock.lap("pictures")
    return list(hits)


def find_named(state: State, *, wanted: bool) -> tuple[list[Named], tuple[str, ...]]:
    """Pictures by their words, best first, and the words to mark; by keyword and in hybrid search."""
    request, store = state.request, state.store
    part = next((part for part in state.asked.parts if part.kind in ("plain", "lex") and part.query), None)
    if request.mode == "vector" or part is None:
        return [], ()
    index, query = store.picture_words, part.query
    if any(term.quoted for term in query.terms) and required(index, query) is None:
        return [], ()
    found = find_all_first(index, query, 2 * request.limit, spell=False)
    places = store.chunk_rows.places(chunk for chunk, _ in found.ranked)
    count, asked = index.count(), len(found.atoms) + found.missing
    weights = [math.log(1 + count / (0.5 + frequency)) for _, frequency in found.atoms]
    total = sum(weights) + found.missing * math.log(1 + count / 0.5)
    held = dict.fromkeys(places, 0.0)
    for (expression, _), weight in zip(found.atoms, weights, strict=True):
        for chunk, _ in index.score_among(expression, list(places)):
            held[chunk] += weight / total
    named = []
    for chunk, share in held.items():
        evidence = Evidence("keyword", share, match=share, words=asked, documents=count)
        named.append(Named(chunk, share, NAMED * of_words(evidence)))
    if not wanted:
        short = asked <= MOST_WORDS
        named = [one for one in named if one.probability >= STRONG or (short and one.match >= HALF)]
    return sorted(named, key=lambda one: (-one.probability, places[one.chunk][1:])), found.words


def find_seen(state: State, *, wanted: bool) -> list[Seen]:
    """Pictures by their looks, best first; by meaning and in hybrid search, where a model is configured."""
    request, door = state.request, state.models.pictures
    if door is None or request.mode == "keyword":
        return []
    text = next(
        (part.query.plain for part in state.asked.parts if part.query.plain and part.kind != "hyde"), ""
    )
    if not text or (not wanted and len(text.split()) > MOST_WORDS):
        return []
    refused = None if wanted else state.budget.refuses(COST, *([] if door.ready() else [f"{COST}.open"]))
    if refused:
        state.degraded.append(f"pictures: {refused}")
        return []
    begin, opened = state.clock.spent_ms(), door.ready()
    try:
        model = door.open()
        if not state.store.pictures.has(model.fingerprint):
            if wanted:
                state.degraded.append("pictures: none has been looked at yet; run `qmd embed`")
            return []
        if foreign_share(text, model.languages) > 0.5 and not wanted:
            return []
        seen = look(state.store, model, vector_of(state, model, text), state.asked.filter, request.limit)
    except (QmdError, OSError) as error:
        state.degraded.append(f"pictures: {error}")
        return []
    seen = _as_asked(state.store, state.asked.parts[0].query, seen)
    if not wanted:
        seen = [one for one in seen if one.probability >= STRONG][:MOST_SHOWN]
    state.budget.costs.record(COST if opened else f"{COST}.open", state.clock.spent_ms() - begin)
    return seen


def _as_asked(store: Store, query: Query, seen: Sequence[Seen]) -> list[Seen]:
    """Without what was excluded; where something was quoted, only those whose words hold it."""
    words = store.picture_words
    outside = {chunk for e in exclusions(query) for chunk in words.candidates(e, query.filter)}
    phrase = required(words, query)
    if phrase is not None:
        inside = set(words.candidates(phrase, query.filter))
        seen = [one for one in seen if one.chunk in inside]
    elif required(store.keyword, query) is not None:
        seen = []
    return [one for one in seen if one.chunk not in outside]


def vector_of(state: State, model: ImageTextModel, text: str) -> Vectors:
    """The question in the model's space; from the text vector that the search made already, where it is the same
    embedder's."""
    nearest = state.nearest
    if nearest is not None and nearest.embedder.fingerprint == model.base_fingerprint:
        for found in state.lists:
            if found.vector is not None and found.asked == text and not state.asked.intent:
                return model.embed_features(found.vector)
    return model.embed_query(text)


def look(
    store: Store,
    model: ImageTextModel,
    vector: Vectors,
    filter: Filter,
    limit: int,
    *,
    without: int | None = None,
) -> list[Seen]:
    """The pictures nearest to a vector, best first. `without`: a document that is left out."""
    import numpy as np

    matrix = store.pictures.matrix(model.fingerprint)
    if not len(matrix.chunk_ids):
        return []
    cosines = matrix.rows @ vector
    mean, deviation = background(cosines)
    allowed = store.chunk_ids(filter)
    places = (
        np.arange(len(cosines)) if allowed is None else np.flatnonzero(np.isin(matrix.chunk_ids, allowed))
    )
    if without is not None:
        places = places[~np.isin(matrix.chunk_ids[places], store.chunk_rows.of_document(without))]
    order = places[np.lexsort((matrix.chunk_ids[places], -cosines[places]))][: 2 * limit]
    found = []
    for place in order:
        cosine = float(cosines[place])
        z = (cosine - mean) / deviation
        found.append(
            Seen(int(matrix.chunk_ids[place]), cosine, z, probability(model.settings.evidence, cosine, z))
        )
    return found


def background(cosines: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and standard deviation of a question's cosines with all pictures; few lean on what is usual."""
    import numpy as np

    mean, deviation, weight = 0.0, 0.12, 24
    count = len(cosines)
    centre = (mean * weight + float(cosines.sum())) / (weight + count)
    spread = deviation**2 * weight + float(np.square(cosines - cosines.mean()).sum())
    return centre, (spread / (weight + count)) ** 0.5


def probability(evidence: Sequence[float], cosine: float, deviations: float) -> float:
    """That a picture shows what was asked for: logistic in cosine and deviations, as the model's card says."""
    constant, of_cosine, of_deviations = evidence or (-9.0, 10.0, 0.5)
    logit = constant + of_cosine * cosine + of_deviations * deviations
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))


def merge(
    state: State, hits: Sequence[Hit], named: Sequence[Named], words: Sequence[str], seen: Sequence[Seen]
) -> list[Hit]:
    """By score; a picture that was found in several ways counts once, with the best of them."""
    request, store = state.request, state.store
    shown: dict[str, Hit] = {}
    stems = [stem for terms in store.keyword.stem(words).values() for stem in terms]
    told = {one.chunk: one for one in named[: request.limit]}
    by_words = [(chunk, one.probability) for chunk, one in told.items()]
    for chunk, hit in show_passages(store, by_words, Marker(words, stems), cite=request.cite).items():
        shown[hit.docid] = replace(hit, explain=_named(told[chunk])) if request.explain else hit
    looks = {one.chunk: one for one in seen}
    for chunk, hit in hits_of(store, [(chunk, one.probability) for chunk, one in looks.items()]).items():
        found = replace(hit, explain=_seen(looks[chunk])) if request.explain else hit
        before = shown.get(hit.docid)
        shown[hit.docid] = found if before is None else _better(before, found)
    both: list[Hit] = []
    for hit in hits:
        other = shown.pop(hit.docid, None)
        both.append(hit if other is None else _better(hit, other))
    least = request.min_score or 0.0
    both += [hit for hit in shown.values() if hit.score >= least]
    order = sorted(range(len(both)), key=lambda i: (-both[i].score, i))
    return [both[i] for i in order][: request.limit]


def _better(hit: Hit, other: Hit) -> Hit:
    """`hit` with the better of both scores and all that is known."""
    explain = None if hit.explain is None else {**(other.explain or {}), **hit.explain}
    if hit.explain and other.explain and "pictures" in hit.explain and "pictures" in other.explain:
        both = {**dict(other.explain["pictures"]), **dict(hit.explain["pictures"])}  # type: ignore[call-overload]
        explain = {**(explain or {}), "pictures": both}
    marks = hit if hit.marks else replace(hit, snippet=other.snippet, marks=other.marks, line=other.line)
    return replace(marks, score=max(hit.score, other.score), explain=explain)


def _named(one: Named) -> dict[str, object]:
    return {"pictures": {"match": round(one.match, 4), "by_words": round(one.probability, 4)}}


def _seen(one: Seen) -> dict[str, object]:
    figures = {"cosine": one.cosine, "deviations": one.deviations, "probability": one.probability}
    return {"pictures": {name: round(value, 4) for name, value in figures.items()}}


def hits_of(store: Store, found: Sequence[tuple[int, float]]) -> dict[int, Hit]:
    """chunk -> hit for (chunk, score) of pictures, in their order; those deleted meanwhile are left out."""
    return show_passages(store, found, cite=False)
