"""BM25 of whole documents over arrays: the sums of `wholes`, for a process that has numpy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from qmd.store.keyword import K1, B
from qmd.store.wholes import DOCUMENT_SHARE, MOST, Matches, Means, Sizes, Word

Floats = NDArray[np.float64]


def add_words(sizes: Sizes, words: Sequence[Word], means: Means, mass: float) -> Matches:
    """Add up the words' scores for every document of `sizes` and every chunk of theirs."""
    if not sizes:
        return Matches({}, {}, {})
    flat = chain.from_iterable(chain.from_iterable(sizes.values()))
    rows = np.fromiter(flat, dtype=np.int64).reshape(-1, 3)
    parts = np.fromiter((len(chunks) for chunks in sizes.values()), np.int64, len(sizes))
    place = np.repeat(np.arange(len(sizes)), parts)
    order = np.argsort(rows[:, 0])
    ids, of = rows[order, 0], place[order]
    norm = K1 * (1 - B + B * rows[order, 1] / means.chunk)
    length = np.bincount(place, rows[:, 2], len(sizes))
    norm_document = K1 * (1 - B + B * length / means.document)
    whole, part = np.zeros(len(sizes)), np.zeros(len(ids))
    for word in words:
        if not len(word.found):
            continue
        found = np.asarray(word.found, dtype=np.float64)
        at = np.searchsorted(ids, found[:, 0].astype(np.int64))
        share = np.minimum(found[:, 1] / word.unit, MOST)
        part[at] += word.rarity * share
        in_body = _times(np.minimum(found[:, 2] / word.unit, share), norm[at])
        body = np.bincount(of[at], in_body, len(sizes))
        other = np.bincount(of[at], np.maximum(0.0, _times(share, norm[at]) - in_body), len(sizes))
        # Title and path stand in every chunk of a document: they count once.
        counted = body + other / parts
        whole += word.rarity * counted / (counted + norm_document)
    in_order = np.empty_like(part)
    in_order[order] = part
    best = np.maximum.reduceat(in_order, np.cumsum(parts) - parts)
    scores = (DOCUMENT_SHARE * whole + (1 - DOCUMENT_SHARE) * best) / mass
    matched = np.flatnonzero(part)
    documents = list(sizes)
    return Matches(
        dict(zip(documents, scores.tolist(), strict=True)),
        dict(zip(ids[matched].tolist(), (part[matched] / mass).tolist(), strict=True)),
        {chunk: document for document, chunks in sizes.items() for chunk, _, _ in chunks},
    )


def _times(share: Floats, norm: Floats) -> Floats:
    """The term count behind tf / (tf + norm) = share."""
    times: Floats = np.maximum(0.0, share) * norm / (1 - np.minimum(share, MOST))
    return times
