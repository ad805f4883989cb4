"""A small stand-in for the stages before the store, and a deterministic embedder: equal text, equal vector."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from qmd.ingest.run import LeftOut, Steps
from qmd.types import Chunk, Document, ModelCard


def walk(where, config):
    for folder, folders, files in os.walk(where.root):
        folders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            stat = path.stat()
            yield SimpleNamespace(
                path=path.relative_to(where.root).as_posix(),
                absolute=path,
                size=stat.st_size,
                mtime_ns=stat.st_mtime_ns,
            )


def read(found, config):
    return found.absolute.read_bytes()


def parse(path, data, config):
    if b"\0" in data:
        return LeftOut(path, "binary: NUL bytes")
    text = data.decode("utf-8", "replace")
    return replace(document(text), title=Path(path).stem)


STEPS = Steps(walk, read, parse)


def document(text, title="Note", size=800, **more):
    """Chunks of about `size` characters, cut at line ends."""
    chunks, start, line = [], 0, 1
    for match in re.finditer(r"\n|\Z", text):
        end = match.end()
        if end - start >= size or (end == len(text) and end > start):
            lines = text.count("\n", start, end)
            chunks.append(Chunk(start, end, line, line + max(lines - 1, 0), (title,), (end - start) // 3))
            start, line = end, line + lines
    return Document(text, title, "text", "en", tuple(chunks), **more)


class FakeEmbedder:
    """Unit vectors from a hash of the text."""

    def __init__(self, dim=16, fingerprint="fake-1", name="fake"):
        self.card = ModelCard(name, "embedding", dim)
        self.dim, self.max_tokens, self.fingerprint = dim, 256, fingerprint
        self.texts: list[str] = []

    def embed_documents(self, texts):
        self.texts += texts
        return np.stack([self._vector(t) for t in texts])

    def embed_query(self, text):
        return self._vector(text)

    def count_tokens(self, texts):
        return [len(t.split()) for t in texts]

    def _vector(self, text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        vector = np.random.default_rng(seed).standard_normal(self.dim).astype(np.float32)
        return vector / np.linalg.norm(vector)
