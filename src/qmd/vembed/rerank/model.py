"""From a name to a cross-encoder: a score head over both texts, or a causal model asked for yes or no."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmd.errors import ModelError
from qmd.vembed.config import TrainConfig
from qmd.vembed.model.assemble import add_lora, freeze_lower, load_modules, loading

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

MAX_TOKENS = 512


def build_reranker(config: TrainConfig) -> CrossEncoder:
    """The model that a run starts from. An encoder without a score head gets a fresh one, or one that compares tokens
    (`score_head: tokens`). Raises ModelError where it cannot be loaded."""
    with loading(config.model_name_or_path):
        return _build(config)


def _build(config: TrainConfig) -> CrossEncoder:
    from sentence_transformers import CrossEncoder
    from transformers import AutoConfig

    from qmd.vembed.model.towers import packaged_text

    name = packaged_text(config.model_name_or_path)
    attention = None if config.attn_implementation == "auto" else config.attn_implementation
    dtype = config.torch_dtype if config.use_lora else "float32"
    described = AutoConfig.from_pretrained(name, trust_remote_code=False)
    causal = any(kind.endswith("ForCausalLM") for kind in described.architectures or ())
    if causal and config.score_head != "first":
        raise ModelError(f"{name} is asked for yes or no: score_head {config.score_head!r} is for encoders.")
    if causal:
        from qmd.vembed.rerank.yes_no import YesNoPairs

        pairs = YesNoPairs.from_pretrained(
            name,
            dtype=dtype,
            attn_implementation=attention,
            max_tokens=config.max_length,
            instruction=config.instruction,
        )
        model = CrossEncoder(modules=[pairs])
    else:
        options: dict[str, Any] = {"dtype": dtype} | ({"attn_implementation": attention} if attention else {})
        positions = int(getattr(described, "max_position_embeddings", MAX_TOKENS))
        if described.model_type in ("roberta", "xlm-roberta"):
            positions -= int(described.pad_token_id or 0) + 1
        length = min(config.max_length or MAX_TOKENS, positions)
        if config.score_head == "tokens":
            from qmd.vembed.rerank.tokens import TokenPairs

            model = CrossEncoder(modules=[TokenPairs.from_pretrained(name, max_tokens=length, **options)])
        else:
            model = CrossEncoder(
                name, num_labels=1, max_length=length, model_kwargs=options, trust_remote_code=False
            )
    if config.gradient_checkpointing:
        model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.use_lora:
        add_lora(model, config, whole=("classifier", "score"))
    elif config.freeze_layers:
        freeze_lower(model[0].model, config.freeze_layers)
    return model


def load_reranker(folder: str | Path) -> CrossEncoder:
    """Read a trained reranker back. Modules of sentence-transformers and of this package are loaded, no others."""
    from sentence_transformers import CrossEncoder

    modules = load_modules(folder)
    return CrossEncoder(modules=modules) if modules else CrossEncoder(str(folder), trust_remote_code=False)
