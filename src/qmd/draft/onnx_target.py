"""The causal ONNX models of `qmd.llm` (float32, int8, 4-bit) as a target.

ONNX Runtime gives a token's logits as the graph computes them for the rows at hand. In the graphs that `qmd.llm` writes
with 8-bit blocks a row has the same bits whatever rows stand beside it, so a verified token is the one plain decoding
writes; elsewhere they agree to rounding, and what is kept is the choice of the verifying forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmd.errors import ModelError
from qmd.llm.decoder import CausalModel
from qmd.llm.protocols import Vectors

if TYPE_CHECKING:
    from torch import Tensor


class OnnxCache:
    """Keys and values in ONNX Runtime's memory."""

    def __init__(self, model: CausalModel) -> None:
        self._decoding = model.decoding()

    @property
    def length(self) -> int:
        return self._decoding.length

    def crop(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"cache holds {self.length} tokens, cannot cut it to {length}.")
        self._decoding.rewind(length)

    def extend(self, tokens: Sequence[int], *, last_only: bool = False) -> Vectors:
        """Append tokens. Returns logits (T, vocabulary), or (1, vocabulary) of the last."""
        return self._decoding.feed(tokens)[None] if last_only else self._decoding.feed_each(tokens)


def check_target(model: CausalModel) -> None:
    """Raises ModelError for a graph that cannot check several tokens at once, or would read all the text for each."""
    if not model.has_cache:
        raise ModelError("the graph takes no keys and values. Export the model with its cache.")
    if not model.gives_every_logit:
        raise ModelError(
            "the graph gives logits for the last token alone, and drafts need them for every token. Name the "
            "model's GGUF file or hub export instead."
        )


class OnnxTarget:
    """A target from a causal ONNX graph with a cache. Raises ModelError for a graph that cannot be one."""

    def __init__(self, model: CausalModel, *, vocab_size: int, max_context: int, fingerprint: str) -> None:
        check_target(model)
        self.model = model
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.fingerprint = fingerprint

    @classmethod
    def open(cls, name: str | Path, *, threads: int | None = None, precision: Any = None) -> OnnxTarget:
        """Open a generation model of `qmd.llm`: catalog name, hub id, local folder, or a GGUF file with `precision`."""
        from qmd.llm.generator import OnnxGenerator
        from qmd.llm.open import open_generator

        generator = open_generator(str(name), threads=threads, precision=precision)
        if not isinstance(generator, OnnxGenerator):
            raise ModelError(
                f"{name} is no ONNX model. Name a folder that holds a .onnx file, or a precision."
            )
        return cls(
            generator.model,
            vocab_size=generator.model.vocab_size,
            max_context=generator.card.max_tokens,
            fingerprint=generator.fingerprint,
        )

    def new_cache(self) -> OnnxCache:
        return OnnxCache(self.model)

    def forward(self, tokens: Sequence[int], cache: Any, *, last_only: bool = False) -> Tensor:
        import torch

        end = cache.length + len(tokens)
        if end > self.max_context:
            raise ValueError(f"{end} tokens do not fit this model's context of {self.max_context}.")
        return torch.from_numpy(cache.extend(tokens, last_only=last_only))
