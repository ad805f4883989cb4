"""One training run: data in, a model folder out, with all that is needed to know and repeat how it was made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from qmd.errors import MissingExtra, ModelError
from qmd.vembed.config import TrainConfig
from qmd.vembed.data import Item, Pair, PairSet, read_pairs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RECORD = "training.json"


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run left behind. `metrics` are those of the kept checkpoint on the validation pairs."""

    output_dir: str
    steps: int
    final_loss: float
    metrics: Mapping[str, float]
    skipped: tuple[str, ...]


def train(config: TrainConfig, *, resume: bool = False) -> TrainReport:
    """Fine-tune as `config` says. The kept model is in `output_dir`, the checkpoints in `output_dir/checkpoints`.

    `resume` goes on from the newest checkpoint. Raises ConfigError, DataError, ModelError before any step is made.
    """
    try:
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
        from transformers import set_seed
    except ImportError as error:
        raise MissingExtra("training", "train") from error
    from qmd.vembed.evaluation.evaluator import PairEvaluator
    from qmd.vembed.losses import build_loss
    from qmd.vembed.model.assemble import add_lora, build_model, merge_lora

    output = Path(config.output_dir)
    pairs = _read(config, config.data_path)
    validation = _read(config, config.val_data_path) if config.val_data_path else None
    set_seed(config.seed)
    model = build_model(config)
    if config.use_lora:
        add_lora(model, config)
    if config.gradient_checkpointing and hasattr(model[0], "model"):
        model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    before = _probe(model, pairs)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    output.mkdir(parents=True, exist_ok=True)
    _record(output, config, pairs, validation)

    evaluator = PairEvaluator(validation.pairs, batch_size=config.batch_size) if validation else None
    evaluation = config.eval_strategy if validation else "no"
    half = config.torch_dtype == "bfloat16" and not config.use_lora
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output / "checkpoints"),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        lr_scheduler_type=config.scheduler_type,
        warmup_steps=config.warmup_ratio,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        eval_strategy=evaluation,
        eval_steps=config.eval_steps,
        save_strategy="steps" if config.save_steps else ("epoch" if evaluation != "steps" else "steps"),
        save_steps=config.save_steps or config.eval_steps or 500,
        save_total_limit=2,
        load_best_model_at_end=False,
        bf16=half,
        seed=config.seed,
        data_seed=config.seed,
        report_to=[] if config.report_to == "none" else config.report_to.split(","),
        dataloader_drop_last=False,
        disable_tqdm=not os.isatty(2),
        remove_unused_columns=False,
    )
    keeper = _best_keeper(model, output, evaluator)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(pairs.pairs),
        loss=build_loss(model, config, ranks=ranks),
        data_collator=SentenceTransformerDataCollator(preprocess_fn=_preprocessor(model)),
        callbacks=[keeper] if evaluator else None,
    )
    if resume and not any((output / "checkpoints").glob("checkpoint-*")):
        raise ModelError(f"nothing to resume in {output / 'checkpoints'}: start without --resume.")
    result = trainer.train(resume_from_checkpoint=resume or None)
    metrics: dict[str, float] = dict(keeper.best_metrics)
    if not evaluator or not keeper.kept:
        if config.use_lora:
            merge_lora(model)
        model.save(str(output))
        metrics = evaluator(model) if evaluator else {}
    if _unchanged(model, pairs, before):
        raise ModelError("training changed no vector: the adapter or the heads never reached the loss.")
    (output / "curve.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    return TrainReport(
        str(output), int(result.global_step), float(result.training_loss), metrics, pairs.skipped
    )


def _read(config: TrainConfig, path: str) -> PairSet:
    return read_pairs(
        path,
        retrieval_mode=config.retrieval_mode,
        image_root=config.image_root,
        skip_bad=config.skip_bad,
    )
