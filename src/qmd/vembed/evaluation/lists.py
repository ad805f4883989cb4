"""How well a reranker orders candidate lists: nDCG@10 and MRR, with bootstrap intervals over the queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sentence_transformers.base.evaluation import BaseEvaluator

from qmd.errors import ModelError
from qmd.vembed.data import DataError
from qmd.vembed.evaluation.metrics import Interval, bootstrap, compute_mrr, compute_ndcg_at_k

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from qmd.vembed.rerank.lists import CandidateList

Score = Callable[[str, Sequence[str]], Sequence[float]]
"""(query, n texts) -> n scores, higher fits better: a cross-encoder in training, or the engine's reranker."""


@dataclass(frozen=True, slots=True)
class ListRow:
    """Figures of one reranker over `queries` lists of `candidates` texts on average."""

    model: str
    queries: int
    candidates: float
    ndcg: Interval
    mrr: Interval


def evaluate_lists(score: Score, lists: Sequence[CandidateList], *, name: str) -> ListRow:
    """Order every list by `score`; ties count against the model. Raises DataError where a list has no negative."""
    ndcg, mrr, sizes = [], [], []
    for row in lists:
        if not row.negatives:
            raise DataError(f"line {row.line}: a reranker is measured on negatives, and this query has none.")
        texts = [*row.positives, *row.negatives]
        scores = np.asarray(score(row.query, texts), dtype=np.float64).reshape(1, -1)
        if not np.isfinite(scores).all():
            raise ModelError("the reranker's scores are no numbers any more: give a smaller learning_rate.")
        right = np.arange(len(texts))[None, :] < len(row.positives)
        ndcg.append(compute_ndcg_at_k(scores, 10, right))
        mrr.append(compute_mrr(scores, right))
        sizes.append(len(texts))
    return ListRow(name, len(ndcg), float(np.mean(sizes)), bootstrap(ndcg), bootstrap(mrr))


def score_with(model: CrossEncoder, batch_size: int = 32) -> Score:
    """The scores of a cross-encoder, as `evaluate_lists` wants them."""

    def score(query: str, texts: Sequence[str]) -> Sequence[float]:
        pairs = [(query, text) for text in texts]
        scores: Sequence[float] = model.predict(pairs, batch_size=batch_size, show_progress_bar=False)
        return scores

    return score


class ListEvaluator(BaseEvaluator):
    """Callable as sentence-transformers wants an evaluator to be; gives metric name -> value."""

    def __init__(self, lists: Sequence[CandidateList], *, batch_size: int = 32) -> None:
        super().__init__()
        self.lists, self.batch_size = tuple(lists), batch_size
        self.primary_metric = "ndcg@10"
        self.greater_is_better = True

    def __call__(
        self, model: CrossEncoder, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        row = evaluate_lists(score_with(model, self.batch_size), self.lists, name="")
        return {"ndcg@10": row.ndcg.value, "mrr": row.mrr.value}


def list_table(rows: Sequence[ListRow]) -> Iterator[str]:
    """A Markdown table; intervals cover 95%."""
    yield "| model | queries | candidates | nDCG@10 | MRR |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for row in rows:
        ndcg = f"{100 * row.ndcg.value:.1f} ({100 * row.ndcg.low:.1f} to {100 * row.ndcg.high:.1f})"
        mrr = f"{row.mrr.value:.3f} ({row.mrr.low:.3f} to {row.mrr.high:.3f})"
        yield f"| {row.model} | {row.queries} | {row.candidates:.1f} | {ndcg} | {mrr} |"
