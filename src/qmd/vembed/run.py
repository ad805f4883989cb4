"""One training run: data in, a model folder out, with all that is needed to know and repeat how it was made."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from qmd.errors import ConfigError, MissingExtra, ModelError
from qmd.types import Progress
from qmd.vembed.config import TrainConfig
from qmd.vembed.data import Item, Pair, PairSet, check_loss_fits, check_model_fits, read_pairs
from qmd.vembed.model.images import open_image

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from qmd.vembed.evaluation.lists import ListRow
    from qmd.vembed.evaluation.report import Row

RECORD = "training.json"
CURVE, CURVE_PLOT = "curve.json", "curve.svg"
WEIGHTS = "trained.safetensors"
MAY_DIFFER = ("data_path", "val_data_path", "image_root", "output_dir", "feature_cache", "report_to")
"""Options that a resumed run may have otherwise: where things lie. That the data are the same, their digests say."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run left behind. `metrics` are those of the kept checkpoint on the validation pairs; `rows` set it beside
    the model it started from, per mode and vector size; `notes` say what of the data was not used."""

    output_dir: str
    steps: int
    final_loss: float
    metrics: Mapping[str, float]
    skipped: tuple[str, ...]
    rows: tuple[Row | ListRow, ...] = ()
    notes: tuple[str, ...] = ()


def train(config: TrainConfig, *, resume: bool = False, progress: Progress | None = None) -> TrainReport:
    """Fine-tune as `config` says. The kept model is in `output_dir`, the checkpoints in `output_dir/checkpoints`.

    `resume` goes on from the newest checkpoint, with the same options and data; without it a run begins anew, and the
    checkpoints of an earlier one go. Raises ConfigError, DataError, ModelError before any step is made.
    """
    try:
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
        from transformers import set_seed
    except ImportError as error:
        raise MissingExtra("training", "train") from error
    if config.task == "rerank":
        from qmd.vembed.rerank.train import train_reranker

        return train_reranker(config, resume=resume, progress=progress)
    from qmd.vembed.evaluation.evaluator import PairEvaluator
    from qmd.vembed.evaluation.report import evaluate_pairs, write_tables
    from qmd.vembed.losses import build_loss
    from qmd.vembed.model.assemble import add_lora, build_model, merge_lora

    output = Path(config.output_dir)
    pairs = read_data(config, config.data_path)
    validation = read_data(config, config.val_data_path) if config.val_data_path else None
    set_seed(config.seed)
    model = build_model(config)
    own = type(model[0]).__module__.startswith("qmd.")
    for part in (pairs, validation):
        if part is not None:
            check_model_fits(part.pairs, supports=model.supports, mixes=own or part is validation)
    if config.use_lora:
        add_lora(model, config)
    if config.feature_cache and Path(config.feature_cache).exists():
        model[0].read_features(config.feature_cache)
    if config.gradient_checkpointing and hasattr(model[0], "model"):
        model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    before = _probe(model, pairs)
    dims = config.mrl_dims if config.use_mrl else ()
    # With a margin, one negative is all that the library's loss takes.
    used, note = negatives_used(
        pairs.pairs, config.loss_type, most=None if config.false_negative_margin is None else 1
    )
    rows: list[Row] = []
    if validation:
        rows = evaluate_pairs(model, validation.pairs, name="before", dims=dims, batch_size=config.batch_size)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    first = os.environ.get("RANK", "0") == "0"
    evaluator = PairEvaluator(validation.pairs, batch_size=config.batch_size) if validation else None
    if config.loss_type == "cca":
        begin_run(output, config, pairs, validation)
        return _solve(model, config, pairs, validation, rows, evaluator)
    arguments = training_arguments(
        SentenceTransformerTrainingArguments,
        config,
        metric=evaluator.primary_metric if evaluator else None,
        # A query or positive that occurs twice in a batch would be its own false negative.
        batch_sampler=distinct_batches if _uses_other_pairs(config) else "batch_sampler",
    )
    trainer = trainer_class(SentenceTransformerTrainer)(
        model=model,
        args=arguments,
        train_dataset=dataset_of(pairs.pairs, config.loss_type, negatives=used),
        loss=build_loss(model, config, ranks=ranks),
        evaluator=evaluator,
        data_collator=SentenceTransformerDataCollator(preprocess_fn=preprocessor(model)),
    )
    trainer.has_moved = lambda: _moved(model, pairs, before)
    if first:
        begin_run(output, config, pairs, validation, resume=resume)
    result = run_trainer(trainer, resume=resume, progress=progress)
    metrics = evaluator(model) if evaluator else {}
    if config.use_lora:
        merge_lora(model)
    if validation:
        rows += evaluate_pairs(model, validation.pairs, name="after", dims=dims, batch_size=config.batch_size)
    if first and config.feature_cache:
        model[0].write_features(config.feature_cache)
    if first:
        model.save(str(output), create_model_card=False)
        write_curve(output, trainer.state.log_history, evaluator.primary_metric if evaluator else None)
        if rows:
            write_tables(output, rows)
    return TrainReport(
        output_dir=str(output),
        steps=int(result.global_step),
        final_loss=float(result.training_loss),
        metrics=metrics,
        skipped=pairs.skipped,
        rows=tuple(rows),
        notes=(note,) if note else (),
    )


def _solve(
    model: SentenceTransformer,
    config: TrainConfig,
    pairs: PairSet,
    validation: PairSet | None,
    rows: list[Row],
    evaluator: Any,
) -> TrainReport:
    """Heads in closed form: no step, no checkpoint."""
    from qmd.vembed.closed_form import fit_heads
    from qmd.vembed.evaluation.report import evaluate_pairs, write_tables

    output = Path(config.output_dir)
    correlation = fit_heads(model[0], pairs.pairs, config)
    model.save(str(output), create_model_card=False)
    if config.feature_cache:
        model[0].write_features(config.feature_cache)
    if validation:
        dims = config.mrl_dims if config.use_mrl else ()
        rows += evaluate_pairs(model, validation.pairs, name="after", dims=dims, batch_size=config.batch_size)
        write_tables(output, rows)
    return TrainReport(
        output_dir=str(output),
        steps=0,
        final_loss=1.0 - correlation,
        metrics=evaluator(model) if evaluator else {},
        skipped=pairs.skipped,
        rows=tuple(rows),
    )


def training_arguments(kind: Any, config: TrainConfig, *, metric: str | None, **options: Any) -> Any:
    """The trainer's arguments as `config` says; `metric`, of the evaluator, chooses the best checkpoint.

    Raises MissingExtra for a reporter that is not installed, ConfigError for what the trainer refuses."""
    for name in config.reporters:
        if find_spec(name) is None:
            raise MissingExtra(f"report_to: {name}", name)
    evaluation = config.eval_strategy if metric else "no"
    by_steps = bool(config.save_steps) or evaluation == "steps"
    if by_steps and evaluation == "epoch":
        evaluation = "steps"  # what is saved must have been measured, or the best is not known
    every = config.eval_steps or config.save_steps
    eval_steps = every or config.logging_steps
    save_steps = every or math.ceil(500 / eval_steps) * eval_steps
    try:
        return kind(
            output_dir=str(Path(config.output_dir) / "checkpoints"),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            lr_scheduler_type=config.scheduler_type,
            warmup_steps=config.warmup_ratio,
            logging_steps=config.logging_steps,
            logging_first_step=True,
            eval_strategy=evaluation,
            eval_steps=eval_steps,
            save_strategy="steps" if by_steps else "epoch",
            save_steps=save_steps,
            save_total_limit=2,
            load_best_model_at_end=evaluation != "no",
            metric_for_best_model=f"eval_{metric}" if metric else None,
            greater_is_better=True if metric else None,
            bf16=config.torch_dtype == "bfloat16" and not config.use_lora,
            seed=config.seed,
            data_seed=config.seed,
            report_to=list(config.reporters),
            disable_tqdm=True,
            remove_unused_columns=False,
            **options,
        )
    except ValueError as error:  # bfloat16 where no accelerator has it
        raise ConfigError(f"the trainer refuses these options: {error}") from error


def run_trainer(trainer: Any, *, resume: bool, progress: Progress | None) -> Any:
    """Train, from the newest checkpoint if asked. Raises ModelError where nothing moved."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if progress is not None:
        trainer.add_callback(_progress_callback(progress))
    result = trainer.train(resume_from_checkpoint=resume or None)
    if not trainer.moved:
        raise ModelError(
            "training changed no vector: what is trained never reached the loss, or every step fell into the warm-up."
        )
    return result


def distinct_batches(dataset: Any, **options: Any) -> Any:
    """Batches in which no query and no positive occurs twice. Negatives may: they are wrong for every query anyway."""
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    return NoDuplicatesBatchSampler(_Sides(dataset), **options)


class _Sides:
    """A data set of short names, equal where cells are equal: comparing these is quick."""

    column_names = ("query", "positive")

    def __init__(self, dataset: Any) -> None:
        known: dict[tuple[str, str | None, str | None], str] = {}
        sides = [
            [known.setdefault((side, cell["text"], cell["image"]), str(len(known))) for cell in dataset[side]]
            for side in self.column_names
        ]
        self.rows = list(zip(*sides, strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, str]:
        return dict(zip(self.column_names, self.rows[index], strict=True))


def _uses_other_pairs(config: TrainConfig) -> bool:
    return config.loss_type in ("infonce", "symmetric_infonce", "sigmoid")


def negatives_used(
    pairs: Sequence[Pair], loss_type: str = "infonce", *, most: int | None = None
) -> tuple[int, str]:
    """How many negatives of each line are trained on, and what is to be said of those left out: the trainer wants as
    many on every line."""
    fewest = min(pairs, key=lambda pair: len(pair.negatives))
    limit = {"cosent": 0, "triplet": 1, "sigmoid": 0}.get(loss_type, most)
    used = len(fewest.negatives) if limit is None else min(len(fewest.negatives), limit)
    left_out = sum(len(pair.negatives) - used for pair in pairs)
    why = "the loss takes no more" if used == limit else f"line {fewest.line} has no more"
    return used, (left_out and f"{left_out} negatives were left out: {used} a line are used, {why}.") or ""


def dataset_of(pairs: Sequence[Pair], loss_type: str = "infonce", *, negatives: int | None = None) -> Any:
    """Columns query, positive, negative_1.. as sentence-transformers wants them, each cell {text, image}; the scores as
    `label` where the loss learns from them. negatives: of each line; None means as many as all have.
    Raises DataError where the pairs lack what it needs."""
    from datasets import Dataset

    check_loss_fits(pairs, loss_type)
    if negatives is None:
        negatives = negatives_used(pairs, loss_type)[0]
    columns: dict[str, list[Any]] = {
        "query": [_cell(pair.query) for pair in pairs],
        "positive": [_cell(pair.positive) for pair in pairs],
    }
    for number in range(negatives):
        columns[f"negative_{number + 1}"] = [_cell(pair.negatives[number]) for pair in pairs]
    if loss_type == "cosent":
        columns["label"] = [pair.scores[0] for pair in pairs]
    elif loss_type == "distillation":
        columns["label"] = [list(pair.scores) for pair in pairs]
    return Dataset.from_dict(columns)


def preprocessor(model: SentenceTransformer) -> Callable[..., dict[str, Any]]:
    """`model.preprocess` over cells: each becomes a plain text, an opened image, or a mapping of both."""
    own = type(model[0]).__module__.startswith("qmd.")

    def preprocess(inputs: Sequence[Mapping[str, str | None]], **options: Any) -> dict[str, Any]:
        options = {key: value for key, value in options.items() if value is not None}
        prepared: dict[str, Any] = model.preprocess([encoder_input(cell, own) for cell in inputs], **options)
        return prepared

    return preprocess


def encoder_input(cell: Mapping[str, str | None], own_module: bool) -> Any:
    """What a model's `encode` takes for one cell. Our own modules open images themselves and cache by path."""
    text, image = cell.get("text"), cell.get("image")
    if image is None:
        return {"text": text} if own_module else text
    if own_module:
        return {"image": image} if text is None else {"text": text, "image": image}
    opened = open_image(image)
    return opened if text is None else {"text": text, "image": opened}


def _cell(item: Item) -> dict[str, str | None]:
    return {"text": item.text, "image": None if item.image is None else str(item.image)}


def _progress_callback(progress: Progress) -> Any:
    from transformers import TrainerCallback

    class Reported(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                progress(f"training, loss {float(logs['loss']):.3f}", state.global_step, state.max_steps)

    return Reported()


def trainer_class(base: Any) -> Any:
    """A trainer of sentence-transformers, with checkpoints that hold what is trained and nothing else.

    That is the same for adapters, heads and whole models, needs no code from the checkpoint to read, and resumes
    bit for bit, since optimiser, scheduler and random state are kept beside it by the trainer itself.
    """
    from safetensors.torch import load_file, save_file

    class Trainer(base):
        has_moved: Callable[[], bool]
        moved = False

        def add_model_card_callback(self, *args: Any, **options: Any) -> None:
            """The library's card would tokenise a thousand rows for its statistics; the run writes its own record."""

        def train(self, *args: Any, **options: Any) -> Any:
            result = super().train(*args, **options)
            self.moved = self.moved or self.has_moved()
            return result

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file({key: value.contiguous() for key, value in self._trained().items()}, folder / WEIGHTS)

        def _load_from_checkpoint(self, checkpoint_path: str) -> None:
            weights = load_file(Path(checkpoint_path) / WEIGHTS)
            own = self._trained()
            if wrong := set(weights) ^ set(own):
                raise ModelError(f"{checkpoint_path} does not fit this run, first at {min(wrong)!r}.")
            for key, value in weights.items():
                own[key].copy_(value)

        def _trained(self) -> dict[str, Any]:
            """Parameters that take gradients, once each: the model's, and those that the loss has of its own."""
            model = dict(self.model.named_parameters())
            known = {id(value) for value in model.values()}
            loss = {f"loss.{k}": v for k, v in self.loss.named_parameters() if id(v) not in known}
            return {key: value.detach() for key, value in (model | loss).items() if value.requires_grad}

        def _load_best_model(self) -> None:
            self.moved = self.has_moved()  # the best may be the first, before anything moved
            if self.state.best_model_checkpoint:
                self._load_from_checkpoint(self.state.best_model_checkpoint)

    return Trainer


def read_data(config: TrainConfig, path: str) -> PairSet:
    return read_pairs(
        path, retrieval_mode=config.retrieval_mode, image_root=config.image_root, skip_bad=config.skip_bad
    )


def _probe(model: SentenceTransformer, pairs: PairSet) -> Any:
    own = type(model[0]).__module__.startswith("qmd.")
    cells = [_cell(item) for pair in pairs.pairs[:4] for item in (pair.query, pair.positive)]
    return [model.encode([encoder_input(cell, own)], show_progress_bar=False)[0] for cell in cells]


def _moved(model: SentenceTransformer, pairs: PairSet, before: Any) -> bool:
    import numpy as np

    now = np.stack(_probe(model, pairs))
    if not np.isfinite(now).all():
        raise ModelError("the model's vectors are no numbers any more: give a smaller learning_rate.")
    return not np.array_equal(np.stack(before), now)


def begin_run(
    output: Path, config: TrainConfig, pairs: PairSet, validation: PairSet | None, *, resume: bool = False
) -> None:
    """Leave no checkpoint of an earlier run, or make sure that the one to go on with is this one; write its record.

    Raises ModelError where there is nothing to resume, ConfigError where options or data have changed."""
    checkpoints = list((output / "checkpoints").glob("checkpoint-*"))
    record = _record(config, pairs, validation)
    if resume:
        if not (checkpoints and (output / RECORD).is_file()):
            raise ModelError(f"nothing to resume in {output / 'checkpoints'}: start without --resume.")
        if changed := _changes(read_record(output / RECORD), record):
            raise ConfigError(
                f"the run in {output} is another one: {changed}. Give what it had, or start without --resume."
            )
    else:
        for folder in checkpoints:
            shutil.rmtree(folder)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / RECORD, record)


def read_record(path: Path) -> dict[str, Any]:
    """What a run wrote down of itself. Raises ModelError for a file of another form."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ModelError(f"{path} is not the record of a run: {error}") from error


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What a resumed run has otherwise than its record, or nothing."""
    now = json.loads(json.dumps(now))
    asked, had = now["config"], before.get("config", {})
    found = [
        f"{key} was {had[key]}, is {asked[key]}"
        for key in asked
        if key not in MAY_DIFFER and key in had and had[key] != asked[key]
    ]
    if before.get("data") != now["data"]:
        found.append("the data were others")
    return "; ".join(found)


def _record(config: TrainConfig, pairs: PairSet, validation: PairSet | None) -> dict[str, Any]:
    """The effective options, the data's fingerprints and the versions."""
    versions: dict[str, str | None] = {}
    for name in ("qmd-python", "torch", "transformers", "sentence-transformers", "peft", "accelerate"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    data = {"train": pairs, "validation": validation}
    return {
        "config": msgspec.to_builtins(config),
        "data": {
            name: {"sha256": part.fingerprint, "pairs": len(part.pairs), "skipped": len(part.skipped)}
            for name, part in data.items()
            if part is not None
        },
        "environment": {"python": platform.python_version(), "system": platform.platform(), **versions},
    }


def write_curve(output: Path, history: Sequence[Mapping[str, float]], metric: str | None) -> None:
    """The trainer's log, and what it looks like."""
    from qmd.vembed.evaluation.plot import curve_svg

    write_json(output / CURVE, history)
    (output / CURVE_PLOT).write_text(curve_svg(history, metric=metric), encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
