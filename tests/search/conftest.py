"""Models that need no files: equal text, equal answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmd
from qmd.config import Config, Models, parse_config
from qmd.types import ModelCard


class WordsEmbedder:
    """Every word is a direction; texts with common words are near. Synonyms are the same word."""

    def __init__(self, synonyms: dict[str, str] | None = None, dim: int = 256) -> None:
        self.card = ModelCard(name="words", role="embedding", dim=dim, languages=("en",))
        self.dim, self.max_tokens, self.fingerprint = dim, 512, f"words:{dim}"
        self.synonyms = synonyms or {}
        self.asked: list[str] = []

    def embed_query(self, text: str) -> np.ndarray:
        self.asked.append(text)
        return self._vector(text)

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._vector(text) for text in texts])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + 2 for text in texts]

    def _vector(self, text: str) -> np.ndarray:
        out = np.zeros(self.dim, np.float32)
        for word in "".join(c if c.isalnum() else " " for c in text.lower()).split():
            word = self.synonyms.get(word, word)
            out[int(hashlib.sha256(word.encode()).hexdigest(), 16) % self.dim] += 1
        return out / max(float(np.linalg.norm(out)), 1e-9)


class PickReranker:
    """High for texts that hold `wanted`; counts what it was asked."""

    def __init__(self, wanted: str) -> None:
        self.card = ModelCard(name="pick", role="reranker")
        self.fingerprint = f"pick:{wanted}"
        self.wanted = wanted
        self.batches: list[tuple[str, list[str]]] = []

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        self.batches.append((query, list(texts)))
        return np.array([0.95 if self.wanted in text else 0.05 for text in texts], np.float32)


class LinesGenerator:
    """Writes the same lines for every prompt."""

    def __init__(self, text: str) -> None:
        self.card = ModelCard(name="lines", role="generation")
        self.fingerprint = "lines"
        self.text = text
        self.prompts: list[str] = []

    def generate(self, prompt: str, **_: Any) -> Iterator[str]:
        self.prompts.append(prompt)
        yield self.text


Build = Callable[..., qmd.Index]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """build({"a.md": "text"}, config={...}, reranker=...) -> an open index over these files, in `tmp_path/notes`."""
    opened: list[qmd.Index] = []

    def make(
        files: dict[str, str],
        *,
        config: dict[str, Any] | None = None,
        embedder: Any = None,
        reranker: Any = None,
        expander: Any = None,
        embed: bool = True,
    ) -> qmd.Index:
        folder = tmp_path / "notes"
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        settings = parse_config(config or {}) if config is not None else Config()
        if expander is not None:
            import msgspec

            settings = msgspec.structs.replace(settings, models=Models(expansion="lines"))
        index = qmd.open(
            tmp_path / "index.sqlite",
            config=settings,
            embedder=embedder or WordsEmbedder(),
            reranker=reranker,
        )
        index._expander = expander
        index.add(folder, name="notes", embed=embed)
        opened.append(index)
        return index

    yield make
    for index in opened:
        index.close()
