"""Prepare a BERT cross-encoder once: fuse, quantise, compare its scores, keep the fastest form that passes.

As `qmd.llm.prepare` does for embedders, in the same cache.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import numpy as np

from qmd.errors import ModelError
from qmd.llm.bert_graph import measure_ranges, read_bert, write_bert
from qmd.llm.files import ModelFiles
from qmd.llm.prepare import CANDIDATES, FORMAT_VERSION, Prepared, calibration_texts, keep_prepared
from qmd.llm.session import open_session

if TYPE_CHECKING:
    import onnxruntime

    from qmd.llm.reranker import ClassifierReranker

MEAN_DIFFERENCE = {"float": 1e-4, "signed": 0.01, "mixed": 0.01}
"""Of the probability, on average over the calibration pairs; a single pair may differ by eight times that."""


def prepare_reranker(files: ModelFiles, reranker: ClassifierReranker) -> Prepared | None:
    """Make, check, cache and adopt the fastest form; None when the graph is no BERT cross-encoder."""
    weights = read_bert(files.graph, heads=files.heads, first_position=files.first_position)
    if weights is None or not weights.classifies:
        return None
    texts = list(calibration_texts())
    queries = [" ".join(text.split()[:6]) for text in texts]
    pairs = [(queries[i - j], texts[i]) for i in range(len(texts)) for j in (0, 1)]
    framed = [reranker.frame(query, text) for query, text in pairs]
    rows, types = [ids for ids, _ in framed], [kinds for _, kinds in framed]
    ranges = measure_ranges(weights, rows, head="classify", types=types)
    wanted, source_s = _scores(reranker, pairs)
    seconds: dict[str, float] = {"source": source_s}
    graphs: dict[str, bytes] = {"source": b""}
    lost: dict[str, tuple[float, float]] = {"source": (0.0, 0.0)}
    original = reranker.session
    for products in CANDIDATES:
        try:
            graph = write_bert(weights, products=products, pooling="classify", ranges=ranges)
            session: onnxruntime.InferenceSession = open_session(graph, threads=reranker.threads)
            reranker.use(session)
            scores, taken = _scores(reranker, pairs)
        except (KeyError, ValueError, ModelError):
            continue
        finally:
            reranker.use(original)
        difference = np.abs(scores - wanted)
        if (
            difference.mean() <= MEAN_DIFFERENCE[products]
            and difference.max() <= 8 * MEAN_DIFFERENCE[products]
        ):
            seconds[products], graphs[products] = taken, graph
            lost[products] = float(difference.mean()), float(difference.max())
    best = min(seconds, key=lambda products: seconds[products])
    tokens, graph = sum(map(len, rows)), graphs[best]
    record = Prepared(
        FORMAT_VERSION,
        files.sha256,
        best,
        hashlib.sha256(graph).hexdigest() if graph else "",
        1 - lost[best][0],
        1 - lost[best][1],
        tokens / seconds[best],
        tokens / seconds["source"],
    )
    keep_prepared(files, graph, record)
    if graph:
        reranker.adopt(open_session(graph, threads=reranker.threads), best)
    return record


def _scores(reranker: ClassifierReranker, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, float]:
    """Probabilities of the pairs, and the least seconds of two runs."""
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        scores = reranker.score_pairs(pairs)
        best = min(best, time.perf_counter() - start)
    return scores, best
