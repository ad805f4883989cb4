"""One training run of a reranker: candidate lists in, a cross-encoder out. Trainer and losses are the library's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qmd.types import Progress
from qmd.vembed.config import TrainConfig
from qmd.vembed.rerank.lists import CandidateList, candidate_lists, training_rows
from qmd.vembed.rerank.model import build_reranker
from qmd.vembed.run import (
    TrainReport,
    begin_run,
    read_data,
    run_trainer,
    trainer_class,
    training_arguments,
    write_curve,
)

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_SHARP = 10
"""ListNet compares softmax(scores) with softmax(labels); labels ten apart put all the weight on the right text."""


def train_reranker(
    config: TrainConfig, *, resume: bool = False, progress: Progress | None = None
) -> TrainReport:
    """As `qmd.vembed.run.train`, which calls it for `task: rerank`."""
    from sentence_transformers import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
    from transformers import set_seed

    from qmd.vembed.evaluation.lists import ListEvaluator, ListRow, evaluate_lists, score_with
    from qmd.vembed.evaluation.report import write_tables
    from qmd.vembed.model.assemble import merge_lora

    output = Path(config.output_dir)
    pairs = read_data(config, config.data_path)
    validation = read_data(config, config.val_data_path) if config.val_data_path else None
    lists = candidate_lists(pairs.pairs)
    held_out = candidate_lists(validation.pairs) if validation else []
    rows = training_rows(lists, negatives=config.num_negatives, seed=config.seed)
    set_seed(config.seed)
    model = build_reranker(config)
    before = _probe(model, lists)
    figures: list[ListRow] = []
    if held_out:
        figures.append(evaluate_lists(score_with(model, config.batch_size), held_out, name="before"))
    first = os.environ.get("RANK", "0") == "0"
    evaluator = ListEvaluator(held_out, batch_size=config.batch_size) if held_out else None
    trainer = trainer_class(CrossEncoderTrainer)(
        model=model,
        args=training_arguments(
            CrossEncoderTrainingArguments,
            config,
            metric=evaluator.primary_metric if evaluator else None,
            learning_rate_mapping=_rates(config),
        ),
        train_dataset=dataset_of_lists(rows, config),
        loss=build_list_loss(model, config),
        evaluator=evaluator,
        data_collator=CrossEncoderDataCollator(preprocess_fn=model.preprocess),
    )
    trainer.has_moved = lambda: not np.array_equal(before, _probe(model, lists))
    if first:
        begin_run(output, config, pairs, validation, resume=resume)
    result = run_trainer(trainer, resume=resume, progress=progress)
    if config.use_lora:
        merge_lora(model)
    if held_out:
        figures.append(evaluate_lists(score_with(model, config.batch_size), held_out, name="after"))
    if first:
        model.save(str(output), create_model_card=False)
        write_curve(output, trainer.state.log_history, evaluator.primary_metric if evaluator else None)
        if figures:
            write_tables(output, figures)
    return TrainReport(
        output_dir=str(output),
        steps=int(result.global_step),
        final_loss=float(result.training_loss),
        metrics={"ndcg@10": figures[-1].ndcg.value, "mrr": figures[-1].mrr.value} if figures else {},
        skipped=pairs.skipped,
        rows=tuple(figures),
    )


def _rates(config: TrainConfig) -> dict[str, float]:
    """Learning rates of parameters whose names match, where they differ from the model's."""
    if config.score_head != "tokens":
        return {}
    from qmd.vembed.rerank.tokens import HEAD_RATE

    return {r"\bhead\.": config.learning_rate * HEAD_RATE}


def dataset_of_lists(rows: Sequence[tuple[str, list[str], list[int]]], config: TrainConfig) -> Any:
    """Lists as columns query, texts, labels; for `binary` one row a (query, text), shuffled by the trainer."""
    from datasets import Dataset

    if config.loss_type == "binary":
        flat = [
            (q, text, float(label))
            for q, texts, labels in rows
            for text, label in zip(texts, labels, strict=True)
        ]
        queries, texts, labels = zip(*flat, strict=True)
        return Dataset.from_dict({"query": list(queries), "text": list(texts), "label": list(labels)})
    scale = _SHARP if config.loss_type == "listwise" else 1
    return Dataset.from_dict(
        {
            "query": [query for query, _, _ in rows],
            "texts": [texts for _, texts, _ in rows],
            "labels": [[float(scale * label) for label in labels] for _, _, labels in rows],
        }
    )


def build_list_loss(model: CrossEncoder, config: TrainConfig) -> Any:
    """Softmax over a list (ListNet, Cao et al. 2007), LambdaLoss (Wang et al. 2018), or cross-entropy per pair."""
    from sentence_transformers.cross_encoder import losses

    if config.loss_type == "binary":
        return losses.BinaryCrossEntropyLoss(model)
    if config.loss_type == "lambda":
        return losses.LambdaLoss(model, k=10)
    return losses.ListNetLoss(model)


def _probe(model: CrossEncoder, lists: Sequence[CandidateList]) -> Any:
    import torch

    pairs = [(row.query, row.positives[0]) for row in lists[:4]]
    return model.predict(pairs, show_progress_bar=False, activation_fn=torch.nn.Identity())
