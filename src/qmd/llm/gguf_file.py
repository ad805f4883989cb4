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
from qmd.llm.catalog import CHATML
from qmd.llm.causal_graph import BLOCK, CausalShape
from qmd.llm.chat import card_template
from qmd.llm.files import write_atomically

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_BEGIN_FIRST = ("llama3", "llama-bpe")
"""Tokenizers that put a token before every text unless the file says otherwise."""
_DIGITS_ONE_BY_ONE = ("smollm", "starcoder", "refact", "command-r")
_ELSEWHERE = "llama.cpp may run it: install 'qmd-python[gguf]'."
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT = _QWEN_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|")


class UnsafeGguf(ModelError):
    """A file over which llama.cpp would end this process."""


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
        try:
            found: NDArray[np.float32] = np.asarray(
                dequantize(tensor.data, tensor.tensor_type), dtype=np.float32
            )
        except (NotImplementedError, ValueError) as error:
            raise ModelError(f"{name} of {self.path.name} cannot be read ({error}). {_ELSEWHERE}") from error
        return found

    @property
    def template(self) -> str:
        """The card's template that gives what llama.cpp gives with the file's own: ChatML for a file without any, empty
        where no card's template does."""
        kind = self.fields.get("tokenizer.ggml.pre")
        if self.fields.get("tokenizer.ggml.add_bos_token", kind in _BEGIN_FIRST):
            return ""
        own = self.fields.get("tokenizer.chat_template")
        return CHATML if own is None else card_template(str(own)) or ""


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file that can be written as ONNX without loss. Raises MissingExtra, ModelError, and UnsafeGguf for
    one that nothing should run."""
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
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise ModelError(f"{path} is damaged or cut short ({error}). Download it again.") from error
    tokens = fields.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(set(tokens)) < len(tokens):
        raise UnsafeGguf(f"{path.name} holds a token twice. Download it again, or from somebody else.")
    architecture = str(fields.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path.name} is a {architecture} network; {', '.join(ARCHITECTURES)} can be written as ONNX. {_ELSEWHERE}"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shape = _shape(architecture, fields, tensors)
    sizes = {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in tensors.items()}
    _check_weights(path.name, sizes, shape)
    return GgufFile(path, fields, shape, tensors)


def _shape(architecture: str, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> CausalShape:
    def field(name: str, default: Any = None) -> Any:
        found = fields.get(f"{architecture}.{name}", default)
        if found is None:
            raise ModelError(f"the GGUF file does not say {architecture}.{name}. Convert the model again.")
        return found

    def number(name: str, default: float | None = None) -> float:
        found = field(name, default)
        if not isinstance(found, (int, float)) or not 0 < found < float("inf"):
            raise ModelError(
                f"{architecture}.{name} is {found}: this cannot be written as ONNX. {_ELSEWHERE}"
            )
        return found

    for name, value in fields.items():
        if name.startswith(f"{architecture}.rope.scal") and value != "none":
            raise ModelError(f"rotation that is scaled ({name}) cannot be written as ONNX. {_ELSEWHERE}")
    heads, hidden = int(number("attention.head_count")), int(number("embedding_length"))
    width = int(number("attention.key_length", hidden // heads))
    if number("rope.dimension_count", width) != width:
        raise ModelError(f"rotation of a part of each head cannot be written as ONNX. {_ELSEWHERE}")
    words = tensors.get("token_embd.weight")
    return CausalShape(
        layers=int(number("block_count")),
        hidden=hidden,
        heads=heads,
        kv_heads=int(number("attention.head_count_kv", heads)),
        head_width=width,
        inner=int(number("feed_forward_length")),
        vocabulary=0 if words is None else int(words.shape[-1]),
        positions=min(int(number("context_length")), 32768),
        rope_base=float(number("rope.freq_base", 10000.0)),
        epsilon=float(number("attention.layer_norm_rms_epsilon", 1e-5)),
        interleaved=architecture == "llama",
    )


def _check_weights(file: str, sizes: Mapping[str, tuple[int, ...]], shape: CausalShape) -> None:
    """Raises ModelError unless the file has the weights the graph is written from, in these sizes, and no others."""
    s, query, key = shape, shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    always: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (s.vocabulary, s.hidden),
        "output_norm.weight": (s.hidden,),
    }
    together: list[dict[str, tuple[int, ...]]] = [{"output.weight": (s.vocabulary, s.hidden)}]
    for layer in range(min(s.layers, len(sizes))):
        name = f"blk.{layer}"
        always |= {
            f"{name}.attn_norm.weight": (s.hidden,), f"{name}.ffn_norm.weight": (s.hidden,),
            f"{name}.attn_q.weight": (query, s.hidden), f"{name}.attn_k.weight": (key, s.hidden),
            f"{name}.attn_v.weight": (key, s.hidden), f"{name}.attn_output.weight": (s.hidden, query),
            f"{name}.ffn_gate.weight": (s.inner, s.hidden), f"{name}.ffn_up.weight": (s.inner, s.hidden),
            f"{name}.ffn_down.weight": (s.hidden, s.inner),
        }  # fmt: skip
        together.append({f"{name}.attn_{p}.bias": (n,) for p, n in (("q", query), ("k", key), ("v", key))})
        together.append({f"{name}.attn_{p}_norm.weight": (s.head_width,) for p in "qk"})
    lacking = sorted(always.keys() - sizes.keys())
    if lacking:
        raise ModelError(f"{file} lacks the weights {lacking[0]}. Download it again.")
    known = always | {
        name: size for group in together if group.keys() <= sizes.keys() for name, size in group.items()
    }
    other = sorted(name for name, size in sizes.items() if known.get(name) != size)
    if other:
        raise ModelError(f"{file} has weights {other[0]} that cannot be written as ONNX. {_ELSEWHERE}")
    if any(size % BLOCK for size in (s.hidden, s.inner, query)):
        raise ModelError(f"{file} has rows that are no blocks of {BLOCK} weights. {_ELSEWHERE}")


def write_tokenizer(model: GgufFile, target: Path) -> None:
    """Write the file's byte-level BPE as `tokenizer.json`. Raises ModelError for another kind of tokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    fields = model.fields
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise ModelError(f"{model.path.name} has no byte-level tokenizer; put its tokenizer.json beside it.")
    tokens: list[str] = fields.get("tokenizer.ggml.tokens", [])
    kinds: list[int] = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if not tokens or len(kinds) != len(tokens) or len(tokens) > model.shape.vocabulary:
        raise ModelError(f"the tokenizer in {model.path.name} is incomplete. Download it again.")
    try:
        merges = [tuple(line.split(" ", 1)) for line in fields["tokenizer.ggml.merges"]]
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
    write_atomically(target, tokenizer.to_str(pretty=True).encode())


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
    write_atomically(target, json.dumps(tree, indent=1).encode())
