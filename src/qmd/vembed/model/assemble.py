"""From a name and a mode to a sentence-transformers model, and back from a folder. No remote code is ever run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmd.errors import ModelError, QmdError
from qmd.vembed.config import EncoderMode, TrainConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "qwen3_vl": ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj"),
    "clip": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "siglip": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "bert": ("query", "key", "value", "dense"),
    "qwen3": ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj"),
    "modernbert": ("Wqkv", "Wo", "Wi"),
}
"""Where the adapters of each family go: what its authors trained, or all linear layers of a block."""

_TRUSTED = ("sentence_transformers.", "qmd.vembed.model.", "qmd.vembed.rerank.")


@contextmanager
def loading(name: str) -> Iterator[None]:
    """What the libraries say of a model that cannot be loaded becomes ModelError."""
    try:
        yield
    except QmdError:
        raise
    except (OSError, ValueError, ImportError) as error:
        remedy = " `attn_implementation=sdpa` needs nothing more." if "flash" in str(error).lower() else ""
        raise ModelError(f"cannot load model {name!r}: {error}{remedy}") from error


def build_model(config: TrainConfig) -> SentenceTransformer:
    """The model that a run starts from, in the form its family needs. Raises ModelError where it cannot be loaded."""
    with loading(config.model_name_or_path):
        return _build(config)


def _build(config: TrainConfig) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize

    from qmd.vembed.model.towers import packaged_text

    if config.adapter != "none":
        from qmd.llm import open_embedder
        from qmd.vembed.model.adapted import AdaptedText

        name = config.model_name_or_path
        return SentenceTransformer(modules=[AdaptedText(open_embedder(name), name), Normalize()])
    mode = config.encoder_mode if config.encoder_mode != "auto" else guess_mode(config.model_name_or_path)
    attention = None if config.attn_implementation == "auto" else config.attn_implementation
    # Adapters train beside frozen half-precision weights; without them the weights themselves stay fp32 masters.
    dtype = config.torch_dtype if config.use_lora else "float32"
    if mode == "composed":
        from qmd.vembed.model.composed import ComposedBackbone
        from qmd.vembed.model.towers import load_image_tower, load_text_tower

        if config.image_model_name_or_path is None:
            raise ModelError("encoder_mode composed needs image_model_name_or_path, the image tower.")
        composed = ComposedBackbone(
            load_text_tower(config.model_name_or_path),
            load_image_tower(config.image_model_name_or_path),
            projection_dim=config.projection_dim or 256,
            freeze_towers=config.freeze_towers,
            head="linear" if config.loss_type == "cca" else "mlp",
        )
        return SentenceTransformer(modules=[composed, Normalize()])
    if mode == "qwen3_vl":
        from qmd.vembed.model.qwen_vl import QwenVLBackbone

        backbone = QwenVLBackbone.from_pretrained(
            config.model_name_or_path,
            torch_dtype=dtype,
            attn_implementation=attention,
            instruction=config.instruction,
            max_tokens=config.max_length,
        )
        return SentenceTransformer(modules=[backbone, Normalize()])
    options: dict[str, Any] = {"dtype": dtype} | ({"attn_implementation": attention} if attention else {})
    name = packaged_text(config.model_name_or_path)
    model = SentenceTransformer(name, model_kwargs=options, trust_remote_code=False)
    _pad_as_trained(model)
    if config.freeze_layers and not config.use_lora:
        freeze_lower(model[0].model, config.freeze_layers)
    return model


def _pad_as_trained(model: Any) -> None:
    """SigLIP pools the last position, padding or not, and was taught on texts padded to its full length without a mask.
    Padded to the longest of a batch, a text's vector would depend on its neighbours (seen: by 39%)."""
    if str(getattr(model[0].model.config, "model_type", "")).startswith("siglip"):
        text = {"padding": "max_length", "max_length": model.max_seq_length, "return_attention_mask": False}
        model[0].processing_kwargs = {"text": text}


def freeze_lower(model: Any, layers: int) -> None:
    """Stop gradients at the embeddings and the lowest `layers` blocks. Raises ModelError where there are fewer."""
    inner = model.base_model
    blocks = getattr(getattr(inner, "encoder", inner), "layer", None) or getattr(inner, "layers", None)
    embeddings = getattr(inner, "embeddings", None) or inner.get_input_embeddings()
    if blocks is None or layers > len(blocks):
        there = "none that are known" if blocks is None else str(len(blocks))
        raise ModelError(f"freeze_layers is {layers}, the model has {there}.")
    for part in (embeddings, *blocks[:layers]):
        part.requires_grad_(False)


def guess_mode(name_or_path: str) -> EncoderMode:
    """The family a model's own configuration names."""
    from transformers import AutoConfig

    if (Path(name_or_path) / "composed_config.json").exists():
        return "composed"
    from qmd.vembed.model.towers import packaged_text

    try:
        kind = str(
            AutoConfig.from_pretrained(packaged_text(name_or_path), trust_remote_code=False).model_type
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the configuration of model {name_or_path!r}: {error}") from error
    families: dict[str, EncoderMode] = {"qwen3_vl": "qwen3_vl", "clip": "clip", "siglip": "siglip"}
    return families.get(kind, "text")


def load_model(folder: str | Path) -> SentenceTransformer:
    """Read a trained model back. Modules of sentence-transformers and of this package are loaded, no others."""
    from sentence_transformers import SentenceTransformer

    modules = load_modules(folder)
    return (
        SentenceTransformer(modules=modules)
        if modules
        else SentenceTransformer(str(folder), trust_remote_code=False)
    )


def load_modules(folder: str | Path) -> list[Any]:
    """The modules of a trained folder, or none where the library reads them itself. Foreign ones are refused."""
    path = Path(folder)
    listing = path / "modules.json"
    if not listing.is_file():
        raise ModelError(f"{path} is not a trained model: it has no modules.json.")
    try:
        rows = json.loads(listing.read_text(encoding="utf-8"))
        kinds = [str(row["type"]) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{listing} is no list of modules: {error!r}") from error
    if not any(kind.startswith("qmd.") for kind in kinds):
        return []
    modules = []
    for row in rows:
        kind = str(row["type"])
        if not kind.startswith(_TRUSTED):
            raise ModelError(
                f"{path} asks for module {kind}, which is neither ours nor sentence-transformers'."
            )
        home, _, name = kind.rpartition(".")
        inside = str(row.get("path", ""))
        if Path(inside).is_absolute() or ".." in Path(inside).parts:
            raise ModelError(f"{path} names a module outside its own folder: {inside!r}.")
        try:
            module = getattr(import_module(home), name)
        except (ImportError, AttributeError) as error:
            raise ModelError(f"{path} asks for module {kind}, which is not here: {error}") from error
        modules.append(module.load(str(path), subfolder=inside))
    return modules


def open_model(name_or_path: str | Path) -> SentenceTransformer:
    """A trained folder, or a model that was never trained here, by folder or name."""
    if (Path(name_or_path) / "modules.json").is_file():
        return load_model(name_or_path)
    return build_model(TrainConfig(model_name_or_path=str(name_or_path), data_path="", output_dir=""))


def add_lora(model: Any, config: TrainConfig, *, whole: Sequence[str] = ()) -> None:
    """Put adapters on the transformer inside `model`, in place; all else is frozen, but for the modules in `whole`."""
    from peft import LoraConfig, get_peft_model

    module = model[0]
    name = "model" if hasattr(module, "model") else "auto_model"
    if not hasattr(module, name):
        raise ModelError("use_lora needs one transformer; this model is composed of towers.")
    inner = getattr(module, name)
    family = str(inner.config.model_type)
    targets = config.lora_target_modules or next(
        (names for key, names in LORA_TARGETS.items() if family.startswith(key)), ()
    )
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(targets) or "all-linear",
        bias="none",
        modules_to_save=[name for name in whole if hasattr(inner, name)] or None,
    )
    try:
        setattr(module, name, get_peft_model(inner, lora))
    except ValueError as error:
        raise ModelError(f"lora_target_modules do not fit this model: {error}") from error


def merge_lora(model: Any) -> None:
    """Fold the adapters into the weights, in place."""
    module = model[0]
    name = "model" if hasattr(module, "model") else "auto_model"
    inner = getattr(module, name)
    if hasattr(inner, "merge_and_unload"):
        setattr(module, name, inner.merge_and_unload())
