"""Keys and values of known texts, computed once: an exact start for a prompt, and knowledge for the draft.

An entry is a token sequence and what the target made of it, one safetensors file, memory-mapped when read. An entry
serves a prompt that begins with its tokens (or with a part of them): the target is causal, so those keys and values are
the ones it would compute again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qmd.errors import MissingExtra, ModelMismatch

FORMAT_VERSION = 1
BLOCK = 16
"""Prefixes are found at multiples of this many tokens, and at an entry's full length."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored text. `keys`/`values` are read with `KnowledgeCacheManager.load`."""

    name: str
    tokens: tuple[int, ...]
    text: str
    size_bytes: int


class KnowledgeCacheManager:
    """Build, keep and find the keys and values of known texts.

    hidden_size, num_heads: of the model whose draft will read the knowledge. cache_dim: inner width of the draft's
    cross-attention over it. folder: where entries are kept; None keeps them in memory. max_bytes: the entries used
    longest ago are removed beyond it. embedder: `embed_query(text)` and `embed_documents(texts)` with unit rows, for
    `retrieve`; without one the mean of the target's input embeddings serves (words, not meaning).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        cache_dim: int = 512,
        *,
        folder: Path | str | None = None,
        max_bytes: int = 2 << 30,
        embedder: Any = None,
    ) -> None:
        if cache_dim % num_heads:
            raise ValueError(f"cache_dim {cache_dim} must be a multiple of num_heads {num_heads}.")
        self.hidden_size, self.num_heads, self.cache_dim = hidden_size, num_heads, cache_dim
        self.folder = None if folder is None else Path(folder)
        self.max_bytes = max_bytes
        self.embedder = embedder
        self.fingerprint: str | None = None
        self._held: dict[str, tuple[Tensor, Tensor]] = {}
        self._entries: dict[str, Entry] = {}  # in order of use, oldest first
        self._prefixes: dict[bytes, tuple[str, int]] = {}
        self._vectors: dict[str, Tensor] = {}
        self._token_vectors: Tensor | None = None

    @property
    def kv_cache(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Entry name -> keys and values, each (layers, kv_heads, T, head_dim); read when asked for."""
        return _Stored(self)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    @property
    def size_bytes(self) -> int:
        return sum(e.size_bytes for e in self._entries.values())

    def attach(self, target: Any) -> KnowledgeCacheManager:
        """Bind to a TorchTarget and read what was stored for it; entries of another model stay where they are."""
        if self.fingerprint not in (None, target.fingerprint):
            raise ModelMismatch(
                f"knowledge cache holds entries of model {self.fingerprint}, this target is {target.fingerprint}. "
                "Use a cache of its own for each model."
            )
        self.fingerprint = target.fingerprint
        self._token_vectors = target.embedding
        if self.folder is not None and (self.folder / target.fingerprint).is_dir():
            files = (self.folder / target.fingerprint).glob("*.safetensors")
            for file in sorted(files, key=lambda f: f.stat().st_mtime_ns):
                self._adopt(file)
        return self

    def add(self, target: Any, tokens: Sequence[int], text: str = "", *, cache: Any = None) -> Entry:
        """Store the keys and values of `tokens`; computes them unless `cache` already holds them."""
        if self.fingerprint is None:
            self.attach(target)
        elif self.fingerprint != target.fingerprint:
            raise ModelMismatch(f"cache is of model {self.fingerprint}, target is {target.fingerprint}.")
        tokens = tuple(tokens)
        if not tokens:
            raise ValueError("an entry needs at least one token.")
        name = _digest(tokens).hex()[:32]
        if name in self._entries:
            self._touch(name)
            return self._entries[name]
        if cache is None or cache.length < len(tokens):
            cache = target.new_cache()
            target.forward(tokens, cache, last_only=True)
        keys, values = (x[:, :, : len(tokens)].clone() for x in cache.view())
        size = 2 * keys.numel() * keys.element_size()
        entry = Entry(name, tokens, text, size)
        if self.folder is None:
            self._held[name] = (keys, values)
        else:
            self._write(entry, keys, values)
        self._register(entry)
        self._evict()
        return entry

    def build(self, target: Any, tokenizer: Any, texts: Sequence[str]) -> list[Entry]:
        """Store each text's keys and values, tokenised without special tokens."""
        return [
            self.add(target, tokenizer(t, add_special_tokens=False).input_ids, t) for t in texts if t.strip()
        ]

    def load(self, entry: Entry) -> tuple[Tensor, Tensor]:
        """Keys and values (layers, kv_heads, T, head_dim); from disk they are memory-mapped."""
        held = self._held.get(entry.name)
        if held is not None:
            return held
        from safetensors import safe_open

        with safe_open(self._file(entry.name), framework="pt") as file:
            return file.get_tensor("keys"), file.get_tensor("values")

    def prefix(self, tokens: Sequence[int]) -> tuple[Entry, int] | None:
        """The entry that shares the longest start with `tokens`, and how many tokens it shares."""
        best: tuple[str, int] | None = None
        running = hashlib.blake2b(digest_size=16)
        lengths = {n for _, n in self._prefixes.values()}
        for n, token in enumerate(tokens, start=1):
            running.update(int(token).to_bytes(4, "little"))
            if n in lengths:
                found = self._prefixes.get(running.copy().digest())
                if found is not None:
                    best = found
        return None if best is None else (self._entries[best[0]], best[1])

    def start(self, target: Any, tokens: Sequence[int]) -> Any:
        """A cache that holds as much of `tokens`' beginning as is known; give it to `generate(cache=...)`."""
        cache = target.new_cache()
        if target.fingerprint != self.fingerprint:
            return cache
        while (found := self.prefix(tokens)) is not None:
            entry, shared = found
            stored = self._load_or_forget(entry)
            if stored is not None:
                cache.load(*(x[:, :, :shared] for x in stored))
                self._touch(entry.name)
                break
        return cache

    def _load_or_forget(self, entry: Entry) -> tuple[Tensor, Tensor] | None:
        """As `load`; an entry that another process has removed is forgotten here too."""
        try:
            return self.load(entry)
        except FileNotFoundError:
            self.remove(entry.name)
            return None

    def retrieve(self, query_text: str, k: int = 1) -> list[tuple[Entry, float]]:
        """The k entries nearest in meaning, with cosine similarity, best first. Entries without text are left out."""
        named = [e for e in self._entries.values() if e.text]
        if not named:
            return []
        missing = [e for e in named if e.name not in self._vectors]
        if missing:
            for entry, vector in zip(missing, self._embed([e.text for e in missing]), strict=True):
                self._vectors[entry.name] = vector
        if self.embedder is not None:
            query = torch.as_tensor(self.embedder.embed_query(query_text))
        else:
            query = self._embed([query_text])[0]
        scores = torch.stack([self._vectors[e.name] for e in named]) @ query
        top = scores.topk(min(k, len(named)))
        return [(named[int(i)], float(s)) for s, i in zip(top.values, top.indices, strict=True)]

    def knowledge_kv(self, query_text: str, k: int = 1) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the k nearest entries, joined along T, for the draft's cross-attention."""
        found = [x for e, _ in self.retrieve(query_text, k) if (x := self._load_or_forget(e)) is not None]
        if not found:
            return None
        return torch.cat([x for x, _ in found], 2), torch.cat([x for _, x in found], 2)

    tokenizer: Any = None
    """Used by the built-in embedding of `retrieve` when there is no embedder."""

    def _embed(self, texts: Sequence[str]) -> Tensor:
        if self.embedder is not None:
            return torch.as_tensor(self.embedder.embed_documents(list(texts)))
        if self.tokenizer is None or self._token_vectors is None:
            raise MissingExtra("finding knowledge by meaning without an embedder or a tokenizer", "draft")
        rows = []
        for text in texts:
            ids = torch.tensor(sorted(set(self.tokenizer(text, add_special_tokens=False).input_ids)) or [0])
            rows.append(F.normalize(self._token_vectors[ids].float().mean(0), dim=0))
        return torch.stack(rows)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        assert self.fingerprint is not None
        return self.folder / self.fingerprint / f"{name}.safetensors"

    def _write(self, entry: Entry, keys: Tensor, values: Tensor) -> None:
        from safetensors.torch import save_file

        path = self._file(entry.name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        about = {
            "format_version": str(FORMAT_VERSION),
            "tokens": json.dumps(entry.tokens),
            "text": entry.text,
        }
        save_file({"keys": keys.contiguous(), "values": values.contiguous()}, temporary, about)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def _adopt(self, path: Path) -> None:
        """Take over a stored file; one that is damaged or of another format is passed by."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about: Mapping[str, str] = file.metadata() or {}
                if about.get("format_version") != str(FORMAT_VERSION):
                    return
                tokens = tuple(json.loads(about["tokens"]))
        except (SafetensorError, OSError, KeyError, ValueError):
            return
        if _digest(tokens).hex()[:32] == path.stem:
            self._register(Entry(path.stem, tokens, about.get("text", ""), path.stat().st_size))

    def _register(self, entry: Entry) -> None:
        self._entries[entry.name] = entry
        running = hashlib.blake2b(digest_size=16)
        for n, token in enumerate(entry.tokens, start=1):
            running.update(int(token).to_bytes(4, "little"))
            if n % BLOCK == 0 or n == len(entry.tokens):
                self._prefixes[running.copy().digest()] = (entry.name, n)

    def _touch(self, name: str) -> None:
        self._entries[name] = self._entries.pop(name)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.utime(self._file(name))

    def _evict(self) -> None:
        while self.size_bytes > self.max_bytes and len(self._entries) > 1:
            self.remove(next(iter(self._entries)))

    def remove(self, name: str) -> None:
        """Forget one entry, on disk too."""
        del self._entries[name]
        self._held.pop(name, None)
        self._vectors.pop(name, None)
        if self.folder is not None:
            self._file(name).unlink(missing_ok=True)
        self._prefixes = {}
        for entry in self:
            self._register(entry)


class _Stored(Mapping[str, tuple[Tensor, Tensor]]):
    """The entries of a manager by name."""

    def __init__(self, manager: KnowledgeCacheManager) -> None:
        self._manager = manager

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        return self._manager.load(self._manager._entries[name])

    def __len__(self) -> int:
        return len(self._manager)

    def __iter__(self) -> Iterator[str]:
        return iter(entry.name for entry in self._manager)


def _digest(tokens: Sequence[int]) -> bytes:
    data = b"".join(int(t).to_bytes(4, "little") for t in tokens)
    return hashlib.blake2b(data, digest_size=16).digest()
