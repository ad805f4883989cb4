"""A causal ONNX graph, with or without a cache of keys and values. Knows tokens, not text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmd.errors import ModelError
from qmd.llm.batches import pad_rows
from qmd.llm.protocols import Vectors
from qmd.llm.signature import read_signature

if TYPE_CHECKING:
    import onnxruntime

_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
Cache = dict[str, Any]
"""Input name -> OrtValue (B, heads, T, head width)."""


class CausalModel:
    """Steps a causal graph. The cache stays in ONNX Runtime's memory, on the device, between steps."""

    def __init__(self, session: onnxruntime.InferenceSession, device: str = "cpu") -> None:
        self._session = session
        self._device = device
        self.signature = read_signature(session)
        outputs = list(self.signature.outputs)
        self._logits = "logits" if "logits" in outputs else outputs[0]
        self._past = {
            name: name.replace("past_key_values.", "present.")
            for name in self.signature.inputs
            if name.startswith("past_key_values.")
        }
        missing = [present for present in self._past.values() if present not in outputs]
        if missing:
            raise ModelError(f"the graph takes a cache but does not give {missing[0]}. Export it again.")
        self._input_types = {i.name: i.type for i in session.get_inputs()}

    @property
    def has_cache(self) -> bool:
        return bool(self._past)

    @property
    def vocab_size(self) -> int:
        """Width of the logits. Raises ModelError where the graph does not fix it."""
        width = self.signature.outputs[self._logits][-1]
        if not isinstance(width, int):
            raise ModelError(
                f"the graph's logits have no fixed width ({width}). Export the model with it fixed."
            )
        return width

    def cut_cache(self, cache: Cache, length: int) -> Cache:
        """The first `length` tokens of a cache, copied."""
        import onnxruntime as ort

        return {
            name: ort.OrtValue.ortvalue_from_numpy(
                np.ascontiguousarray(held.numpy()[:, :, :length]), self._device
            )
            for name, held in cache.items()
        }

    def empty_cache(self, rows: int) -> Cache:
        import onnxruntime as ort

        cache: Cache = {}
        for name in self._past:
            shape = self.signature.inputs[name]
            heads, width = shape[1], shape[3]
            if not isinstance(heads, int) or not isinstance(width, int):
                raise ModelError(
                    f"{name} has no fixed heads and width ({shape}). Export the model with them fixed."
                )
            empty = np.zeros((rows, heads, 0, width), dtype=_TYPES[self._input_types[name]])
            cache[name] = ort.OrtValue.ortvalue_from_numpy(empty, self._device)
        return cache

    def step(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], positions: NDArray[np.int64], cache: Cache
    ) -> tuple[NDArray[Any], Cache]:
        """ids (B, T) new tokens, mask (B, past + T). Returns logits (B, T, vocabulary) and the longer
        cache."""
        binding = self._session.io_binding()
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        for name, value in feeds.items():
            if name in self.signature.inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name, held in cache.items():
            binding.bind_ortvalue_input(name, held)
        binding.bind_output(self._logits, "cpu")
        for present in self._past.values():
            binding.bind_output(present, self._device)
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs()
        grown = dict(zip(self._past, values[1:], strict=True))
        return values[0].numpy(), grown

    def last_logits(self, head: Sequence[int], rows: Sequence[Sequence[int]], *, pad_id: int) -> Vectors:
        """Logits (B, vocabulary) after head + each row. With a cache, `head` runs once for all rows."""
        if not self._past:
            ids, mask = pad_rows([[*head, *row] for row in rows], pad_id)
            logits, _ = self.step(ids, mask, np.broadcast_to(np.arange(ids.shape[1]), ids.shape), {})
            last: Vectors = logits[np.arange(len(rows)), mask.sum(axis=1) - 1].astype(np.float32)
            return last
        first = np.array([head], dtype=np.int64)
        _, prefix = self.step(first, np.ones_like(first), np.arange(len(head))[None, :], self.empty_cache(1))
        ids, mask = pad_rows(rows, pad_id)
        shared = self._repeat(prefix, len(rows))
        positions = np.broadcast_to(np.arange(ids.shape[1]) + len(head), ids.shape)
        full = np.concatenate([np.ones((len(rows), len(head)), np.int64), mask], axis=1)
        logits, _ = self.step(ids, full, positions, shared)
        out: Vectors = logits[np.arange(len(rows)), mask.sum(axis=1) - 1].astype(np.float32)
        return out

    def _repeat(self, cache: Cache, rows: int) -> Cache:
        import onnxruntime as ort

        return {
            name: ort.OrtValue.ortvalue_from_numpy(np.repeat(value.numpy(), rows, axis=0), self._device)
            for name, value in cache.items()
        }
