"""What a training run is: one frozen set of options, read from YAML, overridden by `key=value`.

docs/training.md explains each key. A key nobody knows is refused with the nearest one that exists, because a
silently dropped `learning_rate` costs a night.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

import msgspec

from qmd.errors import ConfigError

RetrievalMode = Literal["t2i", "i2t", "m2i", "t2t", "i2i"]
EncoderMode = Literal["auto", "qwen3_vl", "clip", "siglip", "text", "composed"]
Task = Literal["embed", "rerank"]
LossType = Literal[
    "infonce",
    "symmetric_infonce",
    "cosent",
    "triplet",
    "sigmoid",
    "distillation",
    "cca",
    "listwise",
    "lambda",
    "binary",
]
RERANK_LOSSES = ("listwise", "lambda", "binary")
PRESETS = ("A", "B", "C")
REPORTERS = ("tensorboard", "wandb")
INDEX_PRESET = "index"
"""What `qmd train --from-index` starts from."""


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of one run. Sizes count pairs, dims count vector components, `save_steps` 0 saves per epoch."""

    task: Task = "embed"
    model_name_or_path: str
    encoder_mode: EncoderMode = "auto"
    image_model_name_or_path: str | None = None
    torch_dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    instruction: str | None = None
    max_length: int | None = None
    projection_dim: int | None = None
    freeze_towers: bool = False
    feature_cache: str | None = None
    freeze_layers: int = 0
    adapter: Literal["none", "residual"] = "none"
    ridge_image: float = 1.0
    ridge_text: float = 0.5
    ridge_both: float = 0.001
    change_weight: float = 0.4
    correlation_power: float = 0.5

    use_lora: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] = ()

    data_path: str
    val_data_path: str | None = None
    image_root: str | None = None
    retrieval_mode: RetrievalMode = "t2i"
    skip_bad: bool = False
    num_negatives: int = 4
    score_head: Literal["first", "tokens"] = "first"

    output_dir: str
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 1.5e-5
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = 0.1
    seed: int = 42

    loss_type: LossType = "infonce"
    temperature: float = 0.05
    false_negative_margin: float | None = None
    hardness_weight: float = 0.0

    use_gradient_cache: bool = False
    gradient_cache_chunk_size: int = 32
    gradient_checkpointing: bool = False

    use_mrl: bool = False
    mrl_dims: tuple[int, ...] = (1536, 1024, 768, 512, 256, 128)

    logging_steps: int = 10
    save_steps: int = 0
    eval_strategy: Literal["no", "epoch", "steps"] = "epoch"
    eval_steps: int | None = None
    report_to: str = "none"

    def __post_init__(self) -> None:
        positive = (
            "epochs",
            "batch_size",
            "learning_rate",
            "gradient_accumulation_steps",
            "temperature",
            "gradient_cache_chunk_size",
            "lora_r",
            "lora_alpha",
            "logging_steps",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}")
        for name in ("max_length", "projection_dim", "eval_steps"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}")
        not_negative = (
            "freeze_layers",
            "num_negatives",
            "save_steps",
            "seed",
            "weight_decay",
            "max_grad_norm",
            "hardness_weight",
        )
        for name in not_negative:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)!r}")
        for name in self.__struct_fields__:
            if isinstance(value := getattr(self, name), float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, not {value}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below {2**32}, not {self.seed}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be in [0, 1), not {self.lora_dropout}")
        if self.use_lora and self.encoder_mode == "composed":
            raise ValueError(
                "use_lora has no place in encoder_mode 'composed'; freeze_towers teaches its heads alone"
            )
        reranks = self.task == "rerank"
        if reranks != (self.loss_type in RERANK_LOSSES):
            fitting = RERANK_LOSSES if reranks else [k for k in get_args(LossType) if k not in RERANK_LOSSES]
            raise ValueError(
                f"loss_type {self.loss_type!r} does not fit task {self.task!r}, which knows {', '.join(fitting)}"
            )
        if reranks:
            self._check_reranking()
        if self.false_negative_margin is not None and (self.loss_type != "infonce" or self.hardness_weight):
            raise ValueError("false_negative_margin works with loss_type infonce and without hardness_weight")
        if self.hardness_weight and self.loss_type not in ("infonce", "symmetric_infonce"):
            raise ValueError(f"hardness_weight works with infonce losses, not with {self.loss_type}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be in [0, 1), not {self.warmup_ratio!r}")
        for name in self.reporters:
            if name not in REPORTERS:
                raise ValueError(
                    f"report_to {name!r}: known are none, {', '.join(REPORTERS)}, or both by comma"
                )
        if self.use_mrl and (not self.mrl_dims or min(self.mrl_dims) < 1):
            raise ValueError("use_mrl needs mrl_dims, each at least 1")
        if self.encoder_mode == "composed" and not self.image_model_name_or_path:
            raise ValueError("encoder_mode 'composed' needs image_model_name_or_path, the image tower")
        if self.loss_type == "cca" and not (self.encoder_mode == "composed" and self.freeze_towers):
            raise ValueError(
                "loss_type 'cca' needs encoder_mode 'composed' and freeze_towers: it solves for heads"
            )
        adapts = self.adapter != "none"
        if self.feature_cache and not (adapts or (self.encoder_mode == "composed" and self.freeze_towers)):
            raise ValueError(
                "feature_cache needs encoder_mode 'composed' and freeze_towers, or an adapter: only then features stay"
            )
        if adapts and self.encoder_mode not in ("auto", "text"):
            raise ValueError(
                f"an adapter reads texts; encoder_mode {self.encoder_mode!r} has no place beside it"
            )
        if self.score_head != "first" and not reranks:
            raise ValueError("score_head belongs to task 'rerank'")
        if adapts and self.retrieval_mode != "t2t":
            raise ValueError(f"an adapter reads retrieval_mode t2t, not {self.retrieval_mode}")
        for name in ("use_lora", "freeze_layers", "freeze_towers", "gradient_checkpointing", "use_mrl"):
            if adapts and getattr(self, name):
                raise ValueError(f"{name} has no place beside an adapter: the model itself stays as it is")

    @property
    def reporters(self) -> tuple[str, ...]:
        """The names in `report_to`; nothing for `none`."""
        names = tuple(name.strip() for name in self.report_to.split(","))
        return () if names == ("none",) else names

    def _check_reranking(self) -> None:
        if self.retrieval_mode != "t2t":
            raise ValueError(f"task 'rerank' reads retrieval_mode t2t, not {self.retrieval_mode}")
        if self.num_negatives < 1:
            raise ValueError("task 'rerank' needs num_negatives of at least 1")
        for name in ("use_mrl", "use_gradient_cache", "freeze_towers", "projection_dim"):
            if getattr(self, name):
                raise ValueError(f"{name} belongs to embedding models, not to task 'rerank'")
        if self.adapter != "none" or self.feature_cache:
            raise ValueError("an adapter belongs to embedding models, not to task 'rerank'")
        if self.encoder_mode not in ("auto", "text"):
            raise ValueError(
                f"task 'rerank' reads texts; encoder_mode {self.encoder_mode!r} has no place in it"
            )


def load_train_config(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, object] | None = None,
) -> TrainConfig:
    """Read a run's options: `defaults` first, the preset, the file, then `key=value` overrides (values are YAML).

    Raises ConfigError naming the source, the key and the nearest known key.
    """
    tree: dict[str, object] = dict(defaults or {})
    if preset is not None:
        if preset not in (*PRESETS, INDEX_PRESET):
            raise ConfigError(f"unknown preset {preset!r}. Known presets: {', '.join(PRESETS)}.")
        text = (resources.files("qmd.vembed") / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
        tree |= _read_mapping(text, f"preset {preset}")
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        tree |= _read_mapping(text, str(path))
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--config_override {item!r}: expected key=value.")
        tree[key.strip()] = _read_yaml(value, f"--config_override {item!r}")
    if tree.get("task") == "rerank":  # what a reranker is taught with when nothing is said
        tree = {"loss_type": "listwise", "retrieval_mode": "t2t"} | tree
    known = TrainConfig.__struct_fields__
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
            raise ConfigError(f"training configuration: unknown key {key!r}. {hint}")
    try:
        return msgspec.convert(_exact_values(tree), TrainConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"training configuration: {error}") from error


def _read_yaml(text: str, source: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error


def _read_mapping(text: str, source: str) -> dict[str, object]:
    tree = _read_yaml(text, source)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected a mapping of options, found {type(tree).__name__}.")
    return {str(key): value for key, value in tree.items()}


def _exact_values(tree: dict[str, object]) -> dict[str, object]:
    """YAML 1.1 reads `1e-5` as text and `no` as false; where a number or the word is asked for, it is that."""
    numeric = {f.name for f in msgspec.structs.fields(TrainConfig) if f.type in (float, float | None)}
    result: dict[str, object] = {}
    for key, value in tree.items():
        if key in numeric and isinstance(value, str):
            try:
                value = float(value)
            except ValueError as error:
                raise ConfigError(
                    f"training configuration: {key} is {value!r}, expected a number."
                ) from error
        result[key] = "no" if key == "eval_strategy" and value is False else value
    return result
