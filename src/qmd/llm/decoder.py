"""A causal ONNX graph, with or without a cache of keys and values. Knows tokens, not text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qmd.errors import ModelError
from qmd.llm.batches import pad_rows
from qmd.llm.feeds import CACHE_TYPES
from qmd.llm.protocols import Vectors
from qmd.llm.signature import read_signature

if TYPE_CHECKING:
    import onnxruntime

Cache = dict[str, Any]
"""Input name -> OrtValue (B, heads, T, head width)."""
KEEP = "num_logits_to_keep"
"""Input of the hub's newer exports and of `causal_graph`: for how many of the last tokens logits are wanted."""
FIRST_CAPACITY = 512
"""Tokens that the buffers of a decoding hold at first; they double when full."""


class Decoding(Protocol):
    """One row of tokens with what the model remembers of them."""

    length: int

    def feed(self, tokens: Sequence[int]) -> Vectors:
        """Append tokens (at least one). Returns the logits after the last, (vocabulary,)."""
        ...

    def feed_each(self, tokens: Sequence[int]) -> Vectors:
        """Append tokens. Returns the logits after each of them, (T, vocabulary); needs `gives_every_logit`."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        ...


class CausalModel:
    """Steps a causal graph. The cache stays in ONNX Runtime's memory, on the device, between steps."""

    def __init__(self, session: onnxruntime.InferenceSession, device: str = "cpu") -> None:
        self.session = session
        self.device = device
        self.signature = read_signature(session)
        outputs = list(self.signature.outputs)
        self.logits = "logits" if "logits" in outputs else outputs[0]
        self.past = {
            name: name.replace("past_key_values.", "present.")
            for name in self.signature.inputs
            if name.startswith("past_key_values.")
        }
        missing = [present for present in self.past.values() if present not in outputs]
        if missing:
            raise ModelError(f"the graph takes a cache but does not give {missing[0]}. Export it again.")
        properties: dict[str, str] = session.get_modelmeta().custom_metadata_map
        self.one_buffer = bool(self.past) and properties.get("qmd.cache") == "one buffer"
        self.shares_prefix = bool(self.past) and not self.one_buffer
        self._prefix: tuple[list[int], Cache] = ([], {})
        self._head: tuple[list[int], Decoding] | None = None

    def decoding(self) -> Decoding:
        """Start one row of tokens, in the way the graph allows."""
        if self.one_buffer:
            return BufferDecoding(self)
        return GrowingDecoding(self) if self.past else PlainDecoding(self)

    @property
    def has_cache(self) -> bool:
        return bool(self.past)

    @property
    def gives_every_logit(self) -> bool:
        """Whether logits can be had for every token given, not for the last alone."""
        return KEEP in self.signature.inputs or self.signature.outputs[self.logits][1] != 1

    @property
    def must_give_every_logit(self) -> bool:
        """Whether logits of the last token cannot be had alone."""
        return KEEP not in self.signature.inputs and self.signature.outputs[self.logits][1] != 1

    @property
    def vocab_size(self) -> int:
        """Width of the logits. Raises ModelError where the graph does not fix it."""
        width = self.signature.outputs[self.logits][-1]
        if not isinstance(width, int):
            raise ModelError(
                f"the graph's logits have no fixed width ({width}). Export the model with it fixed."
            )
        return width

    def cut_cache(self, cache: Cache, length: int) -> Cache:
        """The first `length` tokens of a cache, copied."""
        import onnxruntime as ort

        return {
            name: ort.OrtValue.ortvalue_from_numpy(held.numpy()[:, :, :length].copy(), self.device)
            for name, held in cache.items()
        }

    def empty_cache(self, rows: int, capacity: int = 0, held: Cache | None = None) -> Cache:
        """Zeros for `capacity` tokens, beginning with what `held` holds."""
        import onnxruntime as ort

        cache: Cache = {}
        for name in self.past:
            shape = self.signature.inputs[name]
            heads, width = shape[1], shape[3]
            if not isinstance(heads, int) or not isinstance(width, int):
                raise ModelError(
                    f"{name} has no fixed heads and width ({shape}). Export the model with them fixed."
                )
            empty = np.zeros((rows, heads, capacity, width), dtype=CACHE_TYPES[self.signature.types[name]])
            if held is not None:
                old = held[name].numpy()
                empty[:, :, : old.shape[2]] = old
            cache[name] = ort.OrtValue.ortvalue_from_numpy(empty, self.device)
        return cache

    def step(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        positions: NDArray[np.int64],
        cache: Cache,
        *,
        last: int | None = None,
    ) -> tuple[NDArray[Any], Cache]:
        """ids (B, T) new tokens, mask (B, past + T). Returns logits (B, T, vocabulary), of the `last` tokens alone from
        a graph that can be asked for them, or (B, 1, vocabulary) from one that gives no others; and the longer
        cache."""
        binding = self.session.io_binding()
        keep = np.array(1 if self.one_buffer else last or ids.shape[1], np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, KEEP: keep}
        for name, value in feeds.items():
            if name in self.signature.inputs:
                binding.bind_cpu_input(name, np.asarray(value, order="C"))
        for name, held in cache.items():
            binding.bind_ortvalue_input(name, held)
        binding.bind_output(self.logits, "cpu")
        for present in self.past.values():
            binding.bind_output(present, self.device)
        self.session.run_with_iobinding(binding)
        values = binding.get_outputs()
        grown = dict(zip(self.past, values[1:], strict=True))
        return values[0].numpy(), grown

    def last_logits(self, head: Sequence[int], rows: Sequence[Sequence[int]], *, pad_id: int) -> Vectors:
        """Logits (B, vocabulary) after head + each row. With a cache, `head` runs once for all rows, also those of
        later calls; a graph whose attention cannot start a batch from a shared cache runs head and row together."""
        if self.one_buffer:
            return self._row_after_row(head, rows)
        if self.shares_prefix:
            from onnxruntime.capi.onnxruntime_pybind11_state import (
                Fail,
                InvalidArgument,
                NotImplemented,
                RuntimeException,
            )

            try:
                return self._shared_logits(head, rows, pad_id)
            except (Fail, InvalidArgument, NotImplemented, RuntimeException):
                self.shares_prefix = False
        ids, mask = pad_rows([[*head, *row] for row in rows], pad_id)
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        logits, _ = self.step(ids, mask, positions, self.empty_cache(len(rows)), last=_ragged(mask))
        return _at_last(logits, mask)

    def _row_after_row(self, head: Sequence[int], rows: Sequence[Sequence[int]]) -> Vectors:
        """A graph that writes keys and values in place goes on from the head for each row, without padding."""
        if self._head is None:
            self._head = ([], self.decoding())
        held, decoding = self._head
        if held != list(head):
            self._head = ([], decoding)  # nothing is held while the new head is read
            decoding.rewind(0)
            decoding.feed(head)
            self._head = (list(head), decoding)
        logits = []
        for row in rows:
            decoding.rewind(len(head))
            logits.append(decoding.feed(row).copy())
        return np.stack(logits)

    def _shared_logits(self, head: Sequence[int], rows: Sequence[Sequence[int]], pad_id: int) -> Vectors:
        if self._prefix[0] != list(head):
            first = np.array([head], dtype=np.int64)
            positions = np.arange(len(head))[None, :]
            _, prefix = self.step(first, np.ones_like(first), positions, self.empty_cache(1), last=1)
            self._prefix = (list(head), prefix)
        ids, mask = pad_rows(rows, pad_id)
        positions = np.broadcast_to(np.arange(ids.shape[1]) + len(head), ids.shape)
        full = np.concatenate([np.ones((len(rows), len(head)), np.int64), mask], axis=1)
        cache = self._repeat(self._prefix[1], len(rows))
        logits, _ = self.step(ids, full, positions, cache, last=_ragged(mask))
        return _at_last(logits, mask)

    def _repeat(self, cache: Cache, rows: int) -> Cache:
        import onnxruntime as ort

        return {
            name: ort.OrtValue.ortvalue_from_numpy(np.repeat(value.numpy(), rows, axis=0), self.device)
            for name, value in cache.items()
        }


def _ragged(mask: NDArray[np.int64]) -> int:
    """In how many of the last columns a row may end."""
    return int(mask.shape[1] - mask.sum(axis=1).min()) + 1


def _at_last(logits: NDArray[Any], mask: NDArray[np.int64]) -> Vectors:
    """Logits (B, as many of the last T as there are, vocabulary) at the last real token of each row (B, vocabulary)."""
    at = mask.sum(axis=1) - 1 - (mask.shape[1] - logits.shape[1])
    last: Vectors = logits[np.arange(len(logits)), np.maximum(at, 0)].astype(np.float32)
    return last


class PlainDecoding:
    """No cache: every step reads all tokens again."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._tokens: list[int] = []
        self.length = 0

    def feed(self, tokens: Sequence[int]) -> Vectors:
        row: Vectors = self.feed_each(tokens)[-1]
        return row

    def feed_each(self, tokens: Sequence[int]) -> Vectors:
        self._tokens += tokens
        self.length = len(self._tokens)
        ids = np.array([self._tokens], dtype=np.int64)
        logits, _ = self._model.step(ids, np.ones_like(ids), np.arange(self.length)[None, :], {})
        rows: Vectors = logits[0, -len(tokens) :].astype(np.float32)
        return rows

    def rewind(self, length: int) -> None:
        del self._tokens[length:]
        self.length = length


class GrowingDecoding:
    """A cache that the graph gives back longer at each step, as the hub's exports do."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._cache = model.empty_cache(1)
        self.length = 0

    def feed(self, tokens: Sequence[int]) -> Vectors:
        row: Vectors = self._step(tokens)[-1].astype(np.float32)
        return row

    def feed_each(self, tokens: Sequence[int]) -> Vectors:
        rows: Vectors = self._step(tokens).astype(np.float32)
        return rows

    def _step(self, tokens: Sequence[int]) -> NDArray[Any]:
        ids = np.array([tokens], dtype=np.int64)
        end = self.length + len(tokens)
        positions = np.arange(self.length, end, dtype=np.int64)[None, :]
        logits, self._cache = self._model.step(ids, np.ones((1, end), np.int64), positions, self._cache)
        self.length = end
        rows: NDArray[Any] = logits[0]
        return rows

    def rewind(self, length: int) -> None:
        if length < self.length:
            self._cache = self._model.cut_cache(self._cache, length)
            self.length = length


class BufferDecoding:
    """Keys and values in buffers that the graph writes in place: nothing is copied between steps, and forgetting is
    free."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self.length = 0
        self._bind(FIRST_CAPACITY)

    def _bind(self, capacity: int, held: Cache | None = None) -> None:
        model = self._model
        self._capacity = capacity
        self._cache = model.empty_cache(1, capacity, held)
        self._binding = model.session.io_binding()
        for name, buffer in self._cache.items():
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(model.past[name], buffer)
        self._rows = 0

    def feed(self, tokens: Sequence[int]) -> Vectors:
        row: Vectors = self._step(tokens, 1)[-1]
        return row

    def feed_each(self, tokens: Sequence[int]) -> Vectors:
        return self._step(tokens, len(tokens))

    def _step(self, tokens: Sequence[int], rows: int) -> Vectors:
        end = self.length + len(tokens)
        if end >= self._capacity:  # one place stays free: see `causal_graph`
            self._bind(max(2 * self._capacity, end + 1), self._cache)
        binding = self._binding
        binding.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, end), np.int64))
        if rows != self._rows:
            binding.bind_cpu_input(KEEP, np.array(rows, np.int64))
            binding.bind_output(self._model.logits, "cpu")
            self._rows = rows
        self._model.session.run_with_iobinding(binding)
        self.length = end
        # outputs come in the order of binding: the cache, then the logits
        logits: Vectors = (
            binding.get_outputs()[-1].numpy()[0].copy()
        )  # the next step writes into the same memory
        return logits

    def rewind(self, length: int) -> None:
        self.length = min(self.length, length)
