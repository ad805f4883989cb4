"""From a trained reranker to ONNX files and a card that `qmd.llm.open_reranker` reads; torch is not needed after that.

`model.onnx` gives the score as `logits` (B, 1). `model_int8.onnx` of a BERT is the fused graph with int8 products and
an int8 table of word vectors (a quarter of the size, and quicker); of any other family its weights alone are int8.
Both are run by the engine and compared with the model before they count as written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qmd.errors import MissingExtra, ModelError
from qmd.llm.bert_graph import BertWeights, measure_ranges, write_bert
from qmd.llm.files import file_sha256
from qmd.llm.open import open_reranker
from qmd.llm.tokens import TextTokenizer
from qmd.types import ModelCard, ModelVariant
from qmd.vembed.export import CARD, EXPORTED, check_apart, quantise_weights, training_record, write_graph

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from qmd.llm.providers import Precision

FP32_TOLERANCE = 1e-4
INT8_TOLERANCE = 0.1
"""Largest differences of a probability from the trained model's."""
PROBES = (
    ("a red circle", "the circle is red"),
    (
        "how do I renew a passport",
        "Renewing costs 60 and takes three weeks; bring the old passport and a photograph.",
    ),
    ("how do I renew a passport", "The quick brown fox jumps over the lazy dog. " * 8),
    ("lift of a wing in a slipstream", "an experimental study of a wing in a propeller slipstream was made"),
    ("x", "y"),
)


@dataclass(frozen=True, slots=True)
class RerankerExport:
    """What was written. The differences are the largest of a probability from the trained model's."""

    folder: str
    card: ModelCard
    files: dict[str, int]
    fp32_difference: float
    int8_difference: float | None


def export_reranker(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    int8: bool = True,
    license: str = "",
    languages: Sequence[str] = (),
    calibration: Sequence[tuple[str, str]] = (),
) -> RerankerExport:
    """Write a trained reranker as ONNX to `folder`, with tokenizer and card.

    calibration: (query, text) pairs on which the ranges of the int8 products are measured; texts like those it will
    read. Raises ModelError for a family that has no ONNX form here, and where a file does not give the model's scores;
    UsageError where both folders are one.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("exporting a model", "train") from error
    from qmd.vembed.rerank.model import load_reranker
    from qmd.vembed.rerank.tokens import TokenPairs
    from qmd.vembed.rerank.yes_no import YesNoPairs

    check_apart(checkpoint, folder)
    model = load_reranker(checkpoint).to("cpu").eval()
    first: Any = model[0]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    first.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    asks = isinstance(first, YesNoPairs)
    if asks:
        graph, inputs = _yes_no_graph(first)
    elif isinstance(first, TokenPairs):
        graph, inputs = _token_graph(first)
    else:
        graph, inputs = _classifier_graph(first.model)
    ids = torch.ones(2, 7, dtype=torch.long)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    kinds = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0]])
    axes = {0: "batch", 1: "tokens"}
    write_graph(
        graph,
        (ids, mask, kinds)[: len(inputs)],
        folder / "model.onnx",
        dict.fromkeys(inputs, axes) | {"logits": {0: "batch"}},
    )
    variants = [ModelVariant("fp32", ("model.onnx",), file_sha256(folder / "model.onnx"))]
    if int8:
        target = folder / "model_int8.onnx"
        if first.model.config.model_type == "bert":
            target.write_bytes(_fused(model, calibration or PROBES))
        else:
            quantise_weights(folder / "model.onnx", target)
        variants.append(ModelVariant("int8", (target.name,), file_sha256(target)))
    card = ModelCard(
        name=name or Path(checkpoint).name,
        role="reranker",
        max_tokens=int(model.max_seq_length or 512),
        license=license,
        languages=tuple(languages),
        variants=tuple(variants),
        form="seq-cls",
        template=first.template.replace("{instruction}", first.instruction) if asks else "",
    )
    described = asdict(card) | {"trained": training_record(checkpoint)}
    (folder / CARD).write_text(json.dumps(described, indent=1, ensure_ascii=False), encoding="utf-8")
    config = first.model.config
    kept = {key: getattr(config, key, None) for key in ("model_type", "hidden_size", "num_attention_heads")}
    (folder / "config.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    probes = _probes(folder, card)
    wanted = np.asarray(model.predict(probes, show_progress_bar=False, activation_fn=torch.nn.Sigmoid()))
    difference = float(np.abs(_scores(folder, "fp32", probes) - wanted).max())
    if not difference <= FP32_TOLERANCE:
        raise ModelError(
            f"{folder / 'model.onnx'} differs from the model by {difference:.2g}: it cannot be exported."
        )
    rounded = None
    if int8:
        rounded = float(np.abs(_scores(folder, "int8", probes) - wanted).max())
        if not rounded <= INT8_TOLERANCE:
            raise ModelError(
                f"{folder / 'model_int8.onnx'} differs from the model by {rounded:.2g}; export with int8=False."
            )
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx"))}
    return RerankerExport(str(folder), card, sizes, difference, rounded)


def _probes(folder: Path, card: ModelCard) -> list[tuple[str, str]]:
    """The pairs that fit: the engine makes windows of longer ones, training cuts them."""
    tokenizer = TextTokenizer.from_file(folder / "tokenizer.json")
    frame = tokenizer.counts([card.template])[0] + 4
    return [pair for pair in PROBES if frame + sum(tokenizer.counts(pair)) <= card.max_tokens]


def _scores(folder: Path, precision: Precision, probes: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
    """The probe pairs through the engine, one by one, as a user meets them."""
    engine = open_reranker(str(folder), precision=precision)
    return np.array([engine.score(query, [text])[0] for query, text in probes])


def _hidden_from(mask: Any, rows: int) -> Any:
    return ((1.0 - mask[:, None, None, :].float()) * -1e9).expand(-1, 1, rows, -1)


def _classifier_graph(model: Any) -> tuple[Any, tuple[str, ...]]:
    """(module from ids, mask and token types to scores, its inputs)."""
    from torch import nn

    kind = str(model.config.model_type)
    if kind not in EXPORTED:
        raise ModelError(f"a {kind} reranker has no ONNX form here. Known: {', '.join(EXPORTED)}, and Qwen3.")
    model.set_attn_implementation("eager")
    typed = int(getattr(model.config, "type_vocab_size", 0)) > 1

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            given = {"token_type_ids": token_type_ids} if typed else {}
            hidden_from = _hidden_from(attention_mask, input_ids.shape[1])
            return self.model(input_ids=input_ids, attention_mask=hidden_from, **given).logits

    names = ("input_ids", "attention_mask", "token_type_ids")
    return Graph().eval(), names if typed else names[:2]


def _token_graph(pairs: Any) -> tuple[Any, tuple[str, ...]]:
    """(module from ids, mask and which tokens are of the text to scores, its inputs)."""
    from torch import nn

    if str(pairs.model.config.model_type) not in EXPORTED:
        raise ModelError(f"a {pairs.model.config.model_type} reranker has no ONNX form here.")
    pairs.model.set_attn_implementation("eager")

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = pairs.model, pairs.head

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            hidden_from = _hidden_from(attention_mask, input_ids.shape[1])
            hidden = self.model(input_ids=input_ids, attention_mask=hidden_from).last_hidden_state
            text = attention_mask * token_type_ids
            return self.head(hidden, attention_mask - text, text)

    return Graph().eval(), ("input_ids", "attention_mask", "token_type_ids")


def _yes_no_graph(pairs: Any) -> tuple[Any, tuple[str, ...]]:
    """(module from ids and mask to the log-odds of yes, its inputs)."""
    import torch
    from torch import nn

    model = pairs.model
    model.set_attn_implementation("eager")

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            length = input_ids.shape[1]
            place = torch.arange(length)
            later = (place[None, :] > place[:, None]).float()[None, None] * -1e9
            hidden = model.get_decoder()(
                input_ids=input_ids,
                attention_mask=torch.clamp(_hidden_from(attention_mask, length) + later, min=-1e9),
                position_ids=place[None, :],
                use_cache=False,
            ).last_hidden_state
            return pairs.score(hidden, attention_mask)

    return Graph().eval(), ("input_ids", "attention_mask")


def _fused(model: CrossEncoder, calibration: Sequence[tuple[str, str]]) -> bytes:
    """The int8 graph of a BERT cross-encoder, ranges measured on the calibration pairs."""
    first: Any = model[0]
    config, head = first.model.config, getattr(first, "head", None)
    parts = first.model.state_dict() | (
        {f"tokens.{k}": v for k, v in head.state_dict().items()} if head else {}
    )
    state = {key: value.detach().float().numpy() for key, value in parts.items()}
    pooling: Literal["classify", "tokens"] = "tokens" if head else "classify"
    tensors: dict[str, Any] = {}
    for key, value in state.items():
        name = key.removeprefix("bert.")
        tensors[name] = value
        if value.ndim == 2 and name.startswith("encoder."):
            tensors[name.removesuffix(".weight") + ".kernel"] = value.T
    weights = BertWeights(
        tensors,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.hidden_size,
        0,
        config.layer_norm_eps,
    )
    rows, types = [], []
    for pair in calibration:
        features = model.preprocess([pair])
        rows.append(features["input_ids"][0].tolist())
        types.append(features["token_type_ids"][0].tolist())
    ranges = measure_ranges(weights, rows, head=pooling, types=types)
    return write_bert(weights, products="mixed", pooling=pooling, ranges=ranges, whole_words=True)
