"""The causal ONNX models of `qmd.llm` (float32, int8, 4-bit) as a target.

ONNX Runtime gives a token's logits as the graph computes them for the rows at hand: what is kept is the distribution of
the verifying forward, which for quantised weights can differ from a forward over one row in the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmd.errors import ModelError
from qmd.llm.decoder import CausalModel


class OnnxCache:
    """Keys and values in ONNX Runtime's memory. Cutting back is a copy, made when the next forward needs it."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._held = model.empty_cache(1)
        self._held_length = 0
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def crop(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"cache holds {self._length} tokens, cannot cut it to {length}.")
        self._length = length

    def take(self) -> dict[str, Any]:
        """Input name -> OrtValue (1, heads, length, head_dim)."""
        if self._held_length != self._length:
            self._held = self._model.cut_cache(self._held, self._length)
            self._held_length = self._length
        return self._held

    def keep(self, grown: dict[str, Any], length: int) -> None:
        self._held, self._held_length, self._length = grown, length, length


class OnnxTarget:
    """A target from a causal ONNX graph with a cache.

    Raises ModelError for a graph without one: every step would read the whole text again.
    """

    def __init__(self, model: CausalModel, *, vocab_size: int, max_context: int, fingerprint: str) -> None:
        if not model.has_cache:
            raise ModelError("the graph takes no keys and values. Export the model with its cache.")
        if not model.gives_every_logit:
            raise ModelError(
                "the graph gives logits for the last token alone, and drafts need them for every token. Name the "
                "model's GGUF file or hub export instead."
            )
        self.model = model
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.fingerprint = fingerprint

    @classmethod
    def open(cls, name: str | Path, *, threads: int | None = None) -> OnnxTarget:
        """Open a generation model of `qmd.llm`: catalog name, hub id or local folder."""
        from qmd.llm.generator import OnnxGenerator
        from qmd.llm.open import open_generator

        generator = open_generator(str(name), threads=threads)
        if not isinstance(generator, OnnxGenerator):
            raise ModelError(f"{name} is no ONNX model. Name a folder that holds a .onnx file.")
        return cls(
            generator.model,
            vocab_size=generator.model.vocab_size,
            max_context=generator.card.max_tokens,
            fingerprint=generator.fingerprint,
        )

    def new_cache(self) -> OnnxCache:
        return OnnxCache(self.model)

    def forward(self, tokens: Sequence[int], cache: Any, *, last_only: bool = False) -> Tensor:
        start, end = cache.length, cache.length + len(tokens)
        if end > self.max_context:
            raise ValueError(f"{end} tokens do not fit this model's context of {self.max_context}.")
        ids = np.array([list(tokens)], np.int64)
        positions = np.arange(start, end, dtype=np.int64)[None]
        logits, grown = self.model.step(ids, np.ones((1, end), np.int64), positions, cache.take())
        cache.keep(grown, end)
        rows = logits[0, -1:] if last_only else logits[0]
        return torch.from_numpy(np.ascontiguousarray(rows, np.float32))
