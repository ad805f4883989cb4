"""Read a GGUF file: sizes, weights widened to float, tokenizer. Runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmd.errors import MissingExtra, ModelError
from qmd.llm.causal_graph import CausalShape

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_DIGITS_ONE_BY_ONE = ("smollm", "starcoder", "refact", "command-r")
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT = _QWEN_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """`fields` is the file's metadata; `shape` the network's sizes."""

    path: Path
    fields: Mapping[str, Any]
    shape: CausalShape
    tensors: Mapping[str, Any]

    def weights(self, name: str) -> NDArray[np.float32] | None:
        """One tensor as float32, (N, K) or (N,); None where the file has none of this name."""
        from gguf.quants import dequantize

        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        found: NDArray[np.float32] = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        return found

    @property
    def chat_template(self) -> str:
        return str(self.fields.get("tokenizer.chat_template", ""))


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file of a known architecture. Raises MissingExtra, ModelError."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtra("reading GGUF files", "gguf") from error
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file. Download it again.")
        reader = GGUFReader(str(path))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{path} is damaged or cut short ({error}). Download it again.") from error
    architecture = str(fields.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path.name} is a {architecture} network; {', '.join(ARCHITECTURES)} can be written as ONNX. "
            "llama.cpp may run it: install 'qmd-python[gguf]'."
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return GgufFile(path, fields, _shape(architecture, fields, tensors), tensors)


def _shape(architecture: str, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> CausalShape:
    def field(name: str, default: Any = None) -> Any:
        found = fields.get(f"{architecture}.{name}", default)
        if found is None:
            raise ModelError(f"the GGUF file does not say {architecture}.{name}. Convert the model again.")
        return found

    heads, hidden = int(field("attention.head_count")), int(field("embedding_length"))
    return CausalShape(
        layers=int(field("block_count")),
        hidden=hidden,
        heads=heads,
        kv_heads=int(field("attention.head_count_kv", heads)),
        head_width=int(field("attention.key_length", hidden // heads)),
        inner=int(field("feed_forward_length")),
        vocabulary=int(tensors["token_embd.weight"].shape[1]),
        positions=min(int(field("context_length")), 32768),
        rope_base=float(field("rope.freq_base", 10000.0)),
        epsilon=float(field("attention.layer_norm_rms_epsilon", 1e-5)),
        interleaved=architecture == "llama",
    )


def write_tokenizer(model: GgufFile, target: Path) -> None:
    """Write the file's byte-level BPE as `tokenizer.json`. Raises ModelError for another kind of tokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    fields = model.fields
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise ModelError(f"{model.path.name} has no byte-level tokenizer; put its tokenizer.json beside it.")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(line.split(" ", 1)) for line in fields["tokenizer.ggml.merges"]]
    try:
        tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(
            f"the tokenizer in {model.path.name} is damaged ({error}). Download it again."
        ) from error
    kind = str(fields.get("tokenizer.ggml.pre", ""))
    if kind in _DIGITS_ONE_BY_ONE:
        steps: list[Any] = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    elif kind in {"qwen2", "llama-bpe", "llama3"}:
        split = _QWEN_SPLIT if kind == "qwen2" else _LLAMA3_SPLIT
        steps = [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, k in zip(tokens, kinds, strict=True)
            if k in (2, 3)
        ]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == 4]
    )
    tokenizer.save(str(target))


def write_config(model: GgufFile, target: Path) -> None:
    """What the engine reads from `config.json`: sizes, end token, and where the weights came from."""
    shape = model.shape
    tree = {
        "model_type": str(model.fields.get("general.architecture")),
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "eos_token_id": model.fields.get("tokenizer.ggml.eos_token_id"),
        "source": model.path.name,
    }
    target.write_text(json.dumps(tree, indent=1))
