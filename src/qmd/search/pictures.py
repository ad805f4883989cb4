"""Pictures that show what a question names, beside the texts that answer it.

One stage after the texts: the question's vector in the image-text model's space against the pictures' own vectors.
What it finds joins the hits by probability, and only from `STRONG` on, so that questions about something else see no
picture; a search for pictures alone (`type:image`) shows the nearest whatever they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qmd.errors import QmdError
from qmd.search.lexical import exclusions, required
from qmd.search.scripts import foreign_share
from qmd.search.show import show_passages
from qmd.types import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qmd.llm.image_text import ImageTextModel
    from qmd.llm.protocols import Vectors
    from qmd.search.pipeline import State
    from qmd.store import Store
    from qmd.types import Filter

STRONG = 0.5
MOST_SHOWN = 5
"""Pictures that join a search which did not ask for pictures."""
MOST_WORDS = 8
"""A longer question describes no single picture."""
COST = "pictures"


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture near a question."""

    chunk: int
    cosine: float
    deviations: float
    probability: float


def join_pictures(state: State, hits: Sequence[Hit]) -> list[Hit]:
    """`hits` with the pictures that the question names, by probability; at most `limit`."""
    request, door = state.request, state.models.pictures
    if door is None or request.mode == "keyword" or not state.store.pictures.any():
        return list(hits)
    wanted = (state.asked.filter.type or "").casefold() == "image"
    if state.asked.filter.type and not wanted:
        return list(hits)
    text = next(
        (part.query.plain for part in state.asked.parts if part.query.plain and part.kind != "hyde"), ""
    )
    if not text or (not wanted and len(text.split()) > MOST_WORDS):
        return list(hits)
    refused = None if wanted else state.budget.refuses(COST, *([] if door.ready() else [f"{COST}.open"]))
    if refused:
        state.degraded.append(f"pictures: {refused}")
        return list(hits)
    begin, opened = state.clock.spent_ms(), door.ready()
    try:
        model = door.open()
        if not state.store.pictures.has(model.fingerprint):
            if wanted:
                state.degraded.append("pictures: none has been looked at yet; run `qmd embed`")
            return list(hits)
        if foreign_share(text, model.languages) > 0.5 and not wanted:
            return list(hits)
        seen = look(state.store, model, vector_of(state, model, text), state.asked.filter, request.limit)
    except (QmdError, OSError) as error:
        state.degraded.append(f"pictures: {error}")
        return list(hits)
    query = state.asked.parts[0].query
    outside = {c for e in exclusions(query) for c in state.store.keyword.candidates(e, query.filter)}
    phrase = required(state.store.keyword, query)
    if phrase is not None:
        inside = set(state.store.keyword.candidates(phrase, query.filter))
        seen = [one for one in seen if one.chunk in inside]
    seen = [one for one in seen if one.chunk not in outside]
    if not wanted:
        seen = [one for one in seen if one.probability >= STRONG][:MOST_SHOWN]
    state.clock.lap("pictures")
    state.budget.costs.record(COST if opened else f"{COST}.open", state.clock.spent_ms() - begin)
    return merge(state, hits, seen)


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


def merge(state: State, hits: Sequence[Hit], seen: Sequence[Seen]) -> list[Hit]:
    """By score; a picture that its words found too counts once, with the better of both."""
    request = state.request
    shown: dict[str, Hit] = {}
    for one in seen:
        for hit in hits_of(state.store, [(one.chunk, one.probability)]):
            shown[hit.docid] = replace(hit, explain=_explain(one)) if request.explain else hit
    both: list[Hit] = []
    for hit in hits:
        other = shown.pop(hit.docid, None)
        if other is None:
            both.append(hit)
            continue
        explain = None if hit.explain is None else {**hit.explain, **(other.explain or {})}
        both.append(replace(hit, score=max(hit.score, other.score), explain=explain))
    least = request.min_score or 0.0
    both += [hit for hit in shown.values() if hit.score >= least]
    order = sorted(range(len(both)), key=lambda i: (-both[i].score, i))
    return [both[i] for i in order][: request.limit]


def _explain(one: Seen) -> dict[str, object]:
    figures = {"cosine": one.cosine, "deviations": one.deviations, "probability": one.probability}
    return {"pictures": {name: round(value, 4) for name, value in figures.items()}}


def hits_of(store: Store, found: Sequence[tuple[int, float]]) -> list[Hit]:
    """Hits for (chunk, score) of pictures, in their order; those deleted meanwhile are left out."""
    return [replace(hit, quote=None) for hit in show_passages(store, found)]
