"""Validation pairs against a model: Recall@1/5/10, MRR and nDCG@10 over all distinct positives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.base.evaluation import BaseEvaluator

from qmd.errors import ModelError
from qmd.vembed.data import Item, Pair
from qmd.vembed.evaluation.metrics import compute_mrr, compute_ndcg_at_k, compute_recall_at_k

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class PairEvaluator(BaseEvaluator):
    """Callable as sentence-transformers wants an evaluator to be; gives metric name -> value."""

    def __init__(self, pairs: Sequence[Pair], *, batch_size: int = 32) -> None:
        super().__init__()
        self.pairs, self.batch_size = tuple(pairs), batch_size
        self.primary_metric = "recall@1"
        self.greater_is_better = True

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        similarities, relevant = pair_similarities(model, self.pairs, batch_size=self.batch_size)
        return ranking_metrics(similarities, relevant)


def ranking_metrics(similarities: NDArray[np.float32], relevant: NDArray[np.bool_]) -> dict[str, float]:
    """The figures of the specification's tables."""
    recalls = {f"recall@{k}": compute_recall_at_k(similarities, k, relevant) for k in (1, 5, 10)}
    return recalls | {
        "mrr": compute_mrr(similarities, relevant),
        "ndcg@10": compute_ndcg_at_k(similarities, 10, relevant),
    }


def pair_similarities(
    model: SentenceTransformer, pairs: Sequence[Pair], *, batch_size: int = 32, dim: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(queries, candidates) cosines and which are right. Equal queries are one query with several positives."""
    queries = list(dict.fromkeys(pair.query for pair in pairs))
    candidates = list(dict.fromkeys(pair.positive for pair in pairs))
    rows = {item: row for row, item in enumerate(queries)}
    columns = {item: column for column, item in enumerate(candidates)}
    relevant = np.zeros((len(queries), len(candidates)), dtype=np.bool_)
    for pair in pairs:
        relevant[rows[pair.query], columns[pair.positive]] = True
    left, right = (
        encode_items(model, items, batch_size=batch_size, dim=dim) for items in (queries, candidates)
    )
    return left @ right.T, relevant


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


def encode_items(
    model: SentenceTransformer, items: Sequence[Item], *, batch_size: int = 32, dim: int | None = None
) -> NDArray[np.float32]:
    """(n, dim) unit rows; items of one kind are encoded together."""
    from qmd.vembed.run import encoder_input

    own = type(model[0]).__module__.startswith("qmd.")
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for index, item in enumerate(items):
        kinds.setdefault((item.text is None, item.image is None), []).append(index)
    result: NDArray[np.float32] | None = None
    for indices in kinds.values():
        inputs: list[Any] = [
            encoder_input({"text": items[i].text, "image": _name(items[i].image)}, own) for i in indices
        ]
        part = np.asarray(
            model.encode(inputs, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True),
            np.float32,
        )
        if not np.isfinite(part).all():
            raise ModelError("the model's vectors are no numbers any more: give a smaller learning_rate.")
        part = part[:, :dim] if dim else part
        if result is None:
            result = np.empty((len(items), part.shape[1]), dtype=np.float32)
        result[indices] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    if result is None:
        raise ValueError("no items to encode")
    return result
