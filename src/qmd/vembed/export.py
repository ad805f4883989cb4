"""From a trained model to ONNX files that the model engine loads, with a card that says what they are.

The text side becomes `model.onnx` (token ids and mask -> unit vectors) with its tokenizer; the image side of a composed
model, of CLIP and SigLIP `image.onnx` (pixels -> unit vectors). `model_int8.onnx` stores weights as int8 with a scale a
row or column and computes in float, so it is a quarter of the size and very nearly the same. Every file is compared
with the model before it counts as written.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from qmd.errors import MissingExtra, ModelError, UsageError
from qmd.llm.embedder import OnnxEmbedder
from qmd.llm.files import ModelFiles, file_sha256
from qmd.llm.session import open_session
from qmd.types import ModelCard, ModelVariant

CARD = "card.json"
EXPORTED = ("bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
"""Text encoders whose graph is written; of these BERT is tested, and every file is compared before it counts."""
TWO_TOWERS = ("clip", "siglip")
FP32_TOLERANCE = 1e-4
INT8_COSINE = 0.99
_SMALLEST_QUANTISED = 4096
_PROBES = (
    "a",
    "red circle",
    "How do I renew a passport, and what does it cost?",
    "grinning face with big eyes, happy",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "如何设置文件权限",
)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written. `fp32_difference` is the largest difference of a component from the trained model's vectors,
    `int8_cosine` the least cosine to them."""

    folder: str
    card: ModelCard
    files: dict[str, int]
    fp32_difference: float
    int8_cosine: float | None


def export_onnx(
    checkpoint: str | Path, folder: str | Path, *, name: str | None = None, int8: bool = True
) -> ExportReport:
    """Write `checkpoint` as ONNX to `folder`.

    Raises ModelError for a family that has no ONNX form here, and where a file does not give the model's vectors;
    UsageError where both folders are one.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("exporting a model", "train") from error
    from qmd.vembed.model.assemble import open_model

    check_apart(checkpoint, folder)
    model = open_model(checkpoint).to("cpu").eval()
    if getattr(model[0], "stands_on_embedder", False):
        from qmd.vembed.export_pictures import export_image_text

        return export_image_text(model, checkpoint, Path(folder), name=name)
    graph, tokenizer, max_tokens, config = _text_graph(model)
    folder = Path(folder)
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    ids = torch.ones(2, 7, dtype=torch.long)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    axes = {0: "batch", 1: "tokens"}
    write_graph(
        graph,
        (ids, mask),
        folder / "model.onnx",
        {"input_ids": axes, "attention_mask": axes, "sentence_embedding": {0: "batch"}},
    )
    variants = [ModelVariant("fp32", ("model.onnx",), file_sha256(folder / "model.onnx"))]
    if int8:
        quantise_weights(folder / "model.onnx", folder / "model_int8.onnx")
        variants.append(ModelVariant("int8", ("model_int8.onnx",), file_sha256(folder / "model_int8.onnx")))
    prompts = getattr(model, "prompts", None) or {}
    record = training_record(checkpoint)
    dims = (
        tuple(record.get("config", {}).get("mrl_dims", ())) if record.get("config", {}).get("use_mrl") else ()
    )
    dim = int(model.get_embedding_dimension() or 0)
    card = ModelCard(
        name=name or Path(checkpoint).name,
        role="embedding",
        dim=dim,
        dims=tuple(size for size in dims if size <= dim),
        max_tokens=max_tokens,
        query_prefix=str(prompts.get("query") or ""),
        doc_prefix=str(prompts.get("document") or ""),
        variants=tuple(variants),
    )
    _write_descriptions(folder, card, config, record)
    # Only texts that fit: the engine makes windows of longer ones, training cuts them.
    probes = [text for text in _PROBES if len(tokenizer(text)["input_ids"]) <= max_tokens]
    wanted = model.encode(probes, show_progress_bar=False, normalize_embeddings=True)
    difference = float(np.abs(_vectors(folder, card, "fp32", probes) - wanted).max())
    if not difference <= FP32_TOLERANCE:
        raise ModelError(
            f"{folder / 'model.onnx'} differs from the model by {difference:.2g}: this family cannot be exported."
        )
    cosine = None
    if int8:
        cosine = float((_vectors(folder, card, "int8", probes) * wanted).sum(axis=1).min())
        if not cosine >= INT8_COSINE:
            raise ModelError(
                f"{folder / 'model_int8.onnx'} has cosine {cosine:.3f} to the model; export with int8=False."
            )
    _write_image_graph(model, folder)
    _compare_image_side(model, folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx"))}
    return ExportReport(str(folder), card, sizes, difference, cosine)


def check_apart(checkpoint: str | Path, folder: str | Path) -> None:
    """Raises UsageError where the files of an export would take the place of the model's own."""
    if Path(folder).resolve() == Path(checkpoint).resolve():
        raise UsageError(f"{folder} is the trained model itself. Export it to a folder of its own.")


def open_exported(folder: str | Path, *, precision: Literal["fp32", "int8"] = "fp32") -> OnnxEmbedder:
    """The engine's embedder over an exported folder. Raises ModelError where a file is not the one that was written."""
    folder = Path(folder)
    card = read_card(folder)
    variant = next((v for v in card.variants if v.precision == precision), None)
    if variant is None:
        raise ModelError(f"{folder} was exported without {precision}.")
    return _embedder(folder, card, variant)


def read_card(folder: str | Path) -> ModelCard:
    """The card of an exported folder."""
    path = Path(folder) / CARD
    try:
        return msgspec.json.decode(path.read_bytes(), type=ModelCard)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{path} is no model card: {error}") from error


def embed_image(folder: str | Path, images: Sequence[Any]) -> NDArray[np.float32]:
    """(n, dim) unit rows of image files or PIL images, by the exported image side; needs no torch."""
    from qmd.llm.image_text import read_settings
    from qmd.llm.pictures import open_image

    folder = Path(folder)
    settings = read_settings(folder)
    pixels = np.stack([settings.pixels(open_image(image)) for image in images])
    rows = open_session(folder / "image.onnx").run(None, {"pixel_values": pixels})[0]
    return np.asarray(rows, dtype=np.float32)


def quantise_weights(source: Path, target: Path) -> None:
    """Store large float matrices as int8 with a scale a column (a row for lookup tables), widened when loaded."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(source))
    looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    kept, nodes = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < _SMALLEST_QUANTISED:
            kept.append(tensor)
            continue
        axis: int | tuple[int, ...] = 1 if tensor.name in looked_up else 0
        if values.ndim > 2:  # a kernel: a scale for each channel that it makes
            axis = tuple(range(1, values.ndim))
        scale = np.maximum(np.abs(values).max(axis=axis, keepdims=True), 1e-12).astype(np.float32) / 127
        small = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
        kept.append(numpy_helper.from_array(small, f"{tensor.name}.int8"))
        kept.append(numpy_helper.from_array(scale, f"{tensor.name}.scale"))
        wide = f"{tensor.name}.wide"
        nodes.append(helper.make_node("Cast", [f"{tensor.name}.int8"], [wide], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [wide, f"{tensor.name}.scale"], [tensor.name]))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    onnx.save(model, str(target))


def _text_graph(model: Any) -> tuple[Any, Any, int, Any]:
    """(module from token ids and mask to unit vectors, tokenizer, token limit, the encoder's configuration)."""
    import torch
    from torch import nn

    from qmd.vembed.model.composed import ComposedBackbone

    first = model[0]
    composed = isinstance(first, ComposedBackbone)
    if not composed and (towers := _two_towers(first)) is not None:
        return _tower_text_graph(first, towers)
    encoder = first.text_tower.encoder if composed else _inner(first)
    kind = getattr(getattr(encoder, "config", None), "model_type", type(first).__name__)
    if encoder is None or kind not in EXPORTED:
        known = ", ".join((*EXPORTED, *TWO_TOWERS))
        raise ModelError(f"the text side of a {kind} model has no ONNX form here. Known: {known}.")
    encoder.set_attn_implementation("eager")

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.rest = nn.ModuleList([first.text_head] if composed else list(model)[1:])

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden_from = (1.0 - attention_mask[:, None, None, :].float()) * -1e9
            square = hidden_from.expand(-1, 1, input_ids.shape[1], -1)
            hidden = self.encoder(input_ids=input_ids, attention_mask=square).last_hidden_state
            if composed:
                weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
                vector = self.rest[0]((hidden * weights).sum(dim=1) / weights.sum(dim=1))
            else:
                features = {"token_embeddings": hidden, "attention_mask": attention_mask}
                for module in self.rest:
                    features = module(features)
                vector = features["sentence_embedding"]
            return torch.nn.functional.normalize(vector, dim=-1)

    limit = first.text_tower.max_tokens if composed else int(model.max_seq_length or 512)
    positions = int(getattr(encoder.config, "max_position_embeddings", limit))
    return Graph().eval(), first.tokenizer, min(limit, positions), encoder.config


def _two_towers(module: Any) -> Any:
    """The CLIP or SigLIP inside a module, or None."""
    inner = _inner(module)
    return inner if getattr(getattr(inner, "config", None), "model_type", "") in TWO_TOWERS else None


def _tower_text_graph(first: Any, towers: Any) -> tuple[Any, Any, int, Any]:
    """As `_text_graph`. CLIP looks back and pools at the end mark; SigLIP sees all of a text padded to its full length
    and pools at the last place, so the graph pads what the engine gives it."""
    import torch
    from torch import nn

    towers.set_attn_implementation("eager")
    config = towers.config.text_config
    padded = towers.config.model_type == "siglip"
    length = min(int(first.max_seq_length or config.max_position_embeddings), config.max_position_embeddings)
    pad_id = int(first.tokenizer.pad_token_id or 0)

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = towers

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            if padded:
                ids = torch.where(attention_mask > 0, input_ids, pad_id)
                filled = torch.full((1, length), pad_id, dtype=ids.dtype).expand(ids.shape[0], -1)
                ids = torch.cat([ids, filled], dim=1)[:, :length]
                hidden_from = torch.zeros(1, 1, length, length).expand(ids.shape[0], -1, -1, -1)
            else:
                ids = input_ids
                place = torch.arange(ids.shape[1])
                later = (place[None, :] > place[:, None]).float()[None, None]
                absent = 1.0 - attention_mask[:, None, None, :].float()
                hidden_from = torch.clamp(later + absent, max=1.0) * -1e9
            found = self.towers.get_text_features(input_ids=ids, attention_mask=hidden_from)
            return torch.nn.functional.normalize(found.pooler_output, dim=-1)

    return Graph().eval(), first.tokenizer, length, config


def _inner(module: Any) -> Any:
    return next((getattr(module, key) for key in ("model", "auto_model") if hasattr(module, key)), None)


def write_graph(
    graph: Any,
    example: tuple[Any, ...],
    path: Path,
    axes: dict[str, dict[int, str]],
    *,
    inputs: int | None = None,
) -> None:
    """axes: the names of all inputs, then of all outputs; all but the last are inputs unless `inputs` says how many."""
    import torch

    names = list(axes)
    count = len(names) - 1 if inputs is None else inputs
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every shape it reads
        torch.onnx.export(
            graph,
            example,
            str(path),
            input_names=names[:count],
            output_names=names[count:],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )


def _write_image_graph(model: Any, folder: Path) -> None:
    """`image.onnx` in single precision, for a composed model with a text tower of its own."""
    import torch
    from torch import nn

    from qmd.vembed.model.composed import ComposedBackbone

    backbone = model[0]
    towers = _two_towers(backbone)
    settings: dict[str, Any]
    parts: list[Any]
    if isinstance(backbone, ComposedBackbone):
        tower = backbone.image_tower
        parts = [tower, backbone.image_head]
        settings = {"size": tower.size, "mean": tower.mean, "std": tower.std}
    elif towers is not None:
        parts = [towers]
        settings = _pixel_settings(backbone.processor.image_processor)
    else:
        return

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, pixel_values: Any) -> Any:
            if towers is not None:
                vector = towers.get_image_features(pixel_values=pixel_values).pooler_output
            else:
                vector = self.parts[1](self.parts[0](pixel_values))
            return torch.nn.functional.normalize(vector, dim=-1)

    size = settings["size"]
    axes = {"pixel_values": {0: "batch"}, "sentence_embedding": {0: "batch"}}
    quick = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its operator has no ONNX form
    try:
        write_graph(Graph().eval(), (torch.zeros(2, 3, size, size),), folder / "image.onnx", axes)
    finally:
        torch.backends.mha.set_fastpath_enabled(quick)
    settings["sha256"] = {name: file_sha256(folder / name) for name in ("image.onnx", "model.onnx")}
    (folder / "image.json").write_text(json.dumps(settings), encoding="utf-8")


def _pixel_settings(processor: Any) -> dict[str, Any]:
    """What `fitted_pixels` needs to do as transformers' processor does. Raises ModelError for one of another kind."""
    size = dict(processor.size)
    if "shortest_edge" in size and processor.do_center_crop:
        fit, side = "crop", int(size["shortest_edge"])
        known = dict(processor.crop_size) == {"height": side, "width": side}
    else:
        fit, side = "stretch", int(size.get("height", 0))
        known = side > 0 and size.get("width") == side
    if not known:
        raise ModelError(f"pictures of size {size} have no ONNX form here: a square is expected.")
    channels = {"mean": list(processor.image_mean), "std": list(processor.image_std)}
    return {"fit": fit, "size": side, **channels, "resample": int(processor.resample)}


def _compare_image_side(model: Any, folder: Path) -> None:
    """Raises ModelError where the written image side does not give the model's vectors."""
    from PIL import Image

    if not (folder / "image.json").is_file():
        return
    ramp = np.linspace(0, 255, 48 * 36 * 3).reshape(36, 48, 3).astype(np.uint8)
    probes = [Image.fromarray(ramp), Image.new("RGB", (20, 44), (200, 30, 40))]
    own = type(model[0]).__module__.startswith("qmd.")
    inputs: list[Any] = [{"image": probe} for probe in probes] if own else list(probes)
    wanted = model.encode(inputs, show_progress_bar=False, normalize_embeddings=True)
    difference = float(np.abs(embed_image(folder, probes) - wanted).max())
    if not difference <= FP32_TOLERANCE:
        raise ModelError(f"{folder / 'image.onnx'} differs from the model by {difference:.2g}.")


def _write_descriptions(folder: Path, card: ModelCard, config: Any, record: dict[str, Any]) -> None:
    """The card, and the small files by which other programs know such a folder."""
    described = asdict(card) | {"trained": record}
    (folder / CARD).write_text(json.dumps(described, indent=1, ensure_ascii=False), encoding="utf-8")
    encoder = {
        "model_type": config.model_type,
        "hidden_size": card.dim,
        "num_attention_heads": getattr(config, "num_attention_heads", None),
        "max_position_embeddings": getattr(config, "max_position_embeddings", card.max_tokens),
        "pad_token_id": config.pad_token_id,
    }
    (folder / "config.json").write_text(json.dumps(encoder, indent=1), encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": card.max_tokens}))
    pooling = {"word_embedding_dimension": card.dim, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def training_record(checkpoint: str | Path) -> dict[str, Any]:
    """What a run wrote down of itself, folders left out; nothing for a model that was not trained here."""
    path = Path(checkpoint) / "training.json"
    if not path.is_file():
        return {}
    try:
        record = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ModelError(f"{path} is not the record of a run: {error}") from error
    for key in ("data_path", "val_data_path", "image_root", "output_dir", "feature_cache"):
        value = record.get("config", {}).get(key)
        if isinstance(value, str):
            record["config"][key] = os.path.basename(
                value
            )  # a card is passed on; folders are nobody's business
    return record


def _vectors(folder: Path, card: ModelCard, precision: str, texts: Sequence[str]) -> NDArray[np.float32]:
    variant = next(v for v in card.variants if v.precision == precision)
    return _embedder(folder, replace(card, doc_prefix="", query_prefix=""), variant).embed_documents(texts)


def _embedder(folder: Path, card: ModelCard, variant: ModelVariant) -> OnnxEmbedder:
    graph = folder / variant.files[0]
    digest = file_sha256(graph)
    if digest != variant.sha256:
        raise ModelError(f"{graph} is not the file that {folder / CARD} describes. Export the model again.")
    files = ModelFiles(card, variant, graph, folder / "tokenizer.json", digest)
    return OnnxEmbedder.open(files, prepare=False)
