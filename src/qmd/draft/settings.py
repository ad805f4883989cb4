"""The configuration of a draft and its training: the specification's keys and defaults; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from qmd.errors import ConfigError

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the tree."""


class DraftModel(Section, frozen=True):
    """hot_vocabulary: rows of the reduced output head; 0 takes the target's whole head. transition_rank: inner width of
    a transition layer; 0 means a quarter of the hidden size."""

    num_sampled_layers: Positive = 6
    sampling_strategy: Literal["uniform"] = "uniform"
    hot_vocabulary: NotNegative = 0
    transition_rank: NotNegative = 0


class KnowledgeEnhancement(Section, frozen=True):
    enabled: bool = True
    cache_dim: Positive = 512


class Training(Section, frozen=True):
    """max_new_tokens: length of the answers the target writes as training text. seed: order, windows, weights."""

    num_epochs: Positive = 5
    batch_size: Positive = 8
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 3e-5
    kl_divergence_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.8
    acceptance_loss_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.3
    max_new_tokens: Positive = 64
    held_out: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    max_steps: NotNegative = 0
    seed: int = 0


class DraftConfig(Section, frozen=True):
    target_model: str = "Qwen/Qwen3-0.6B"
    draft_model: DraftModel = DraftModel()
    knowledge_enhancement: KnowledgeEnhancement = KnowledgeEnhancement()
    training: Training = Training()


def read_config(source: DraftConfig | Mapping[str, Any] | str | Path | None) -> DraftConfig:
    """From a YAML file, a mapping, or as it is. Raises ConfigError naming an unknown or ill-typed key."""
    if source is None:
        return DraftConfig()
    if isinstance(source, DraftConfig):
        return source
    if not isinstance(source, Mapping):
        import yaml

        try:
            source = yaml.safe_load(Path(source).read_text(encoding="utf-8-sig")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read {source}: {error}") from error
    try:
        return msgspec.convert(source, DraftConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"draft configuration: {error}") from error
