"""Documents like a document: the mean of its passages' vectors against all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qmd.errors import NotFound
from qmd.search.retrieve import Found, group, open_matrix, scan_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmd.llm.protocols import Embedder, Vectors
    from qmd.search.inverted import VectorSearch
    from qmd.store import Store
    from qmd.types import Filter

LEAST_CHUNKS = 100


def mean_of_document(store: Store, embedder: Embedder, document_id: int) -> Vectors:
    """(d,) unit vector. Raises NotFound where no passage of the document has a vector, ModelMismatch."""
    matrix = open_matrix(store, embedder)
    wanted = np.array(store.chunk_rows.of_document(document_id), np.int64)
    rows = matrix.rows[np.flatnonzero(np.isin(matrix.chunk_ids, wanted))]
    if not len(rows):
        raise NotFound("the document has no vectors yet. Run `qmd embed`.")
    return _unit(rows)


def mean_of_texts(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """(d,) unit vector of texts that are in no index."""
    return _unit(embedder.embed_documents(texts))


def nearest_documents(
    store: Store,
    embedder: Embedder,
    vector: Vectors,
    filter: Filter,
    limit: int,
    *,
    without: int | None = None,
    vectors: VectorSearch = "auto",
) -> list[tuple[int, int, float]]:
    """(document id, its nearest chunk, cosine), best first. `without`: the document that is compared."""
    from qmd.search.inverted import MatrixSearch

    matrix = open_matrix(store, embedder)
    scan = MatrixSearch(matrix, vectors, scan_of(matrix))
    allowed = store.chunk_ids(filter)
    own = len(store.chunk_rows.of_document(without)) if without is not None else 0
    depth = max(LEAST_CHUNKS, 10 * limit) + own
    while True:
        ids, scores = scan.search(vector, depth, allowed=allowed)
        ranked = list(zip(ids.tolist(), map(float, scores), strict=True))
        grouped = group(Found("vector", "vector", ranked), store.chunk_rows.places(ids.tolist()))
        order = [document for document in grouped.order if document != without]
        if len(order) >= limit or len(ranked) < depth:
            return [(document, *grouped.best[document]) for document in order[:limit]]
        depth *= 4


def _unit(rows: Vectors) -> Vectors:
    mean = np.asarray(rows, np.float32).mean(axis=0)
    out: Vectors = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return out
