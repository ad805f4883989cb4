"""Embedding servers by URL: anything that speaks OpenAI's `/v1/embeddings`, and Ollama.

    http://host:8080/v1?model=NAME            OpenAI-compatible
    http://host:11434/api/embed?model=NAME    Ollama

`QMD_EMBEDDING_API_KEY` is sent as a bearer token. Vectors are normalised here, whatever the server does.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import numpy as np

from qmd.errors import ModelError
from qmd.llm.protocols import Vectors
from qmd.llm.tokens import encodable
from qmd.types import ModelCard

BATCH_TEXTS = 64
TRIES = 3
MAX_TOKENS = 512


class RemoteEmbedder:
    """An embedding server as an Embedder. Long texts are cut by characters into windows and averaged."""

    max_tokens = MAX_TOKENS

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        import httpx

        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ModelError(f"the address of the embedding server is none ({error}): {url}") from error
        model = parse_qs(parts.query).get("model", [""])[0]
        if not model:
            raise ModelError(
                "the address of the embedding server names no model. Write it as URL?model=NAME."
            )
        path = parts.path.rstrip("/")
        self._ollama = "/api" in path or (port == 11434 and not path.endswith("/v1"))
        if self._ollama:
            path = "/api/embed"
        elif not path.endswith("/embeddings"):
            path = f"{path or '/v1'}/embeddings"
        self._url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        host = parts.netloc.rpartition("@")[2]
        self._shown = urlunsplit(
            (parts.scheme, host, path, "", "")
        )  # names and passwords are nobody's business
        self._model = model
        self.runs_on = f"{host} ({'Ollama' if self._ollama else 'OpenAI-compatible'})"
        key = os.environ.get("QMD_EMBEDDING_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout_s, headers=headers)
        self.dim = len(self._ask(["dimension"])[0])
        self.card = ModelCard(model, "embedding", self.dim, MAX_TOKENS)
        identity = hashlib.sha256(f"{host}{path}\0{model}".encode()).hexdigest()
        self.fingerprint = f"{model}:{self.dim}:{identity[:16]}"

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """(n, d) float32, rows L2-normalised. Raises ModelError when the server does not answer as
        expected."""
        if isinstance(texts, str):
            raise TypeError("embed_documents takes a sequence of texts, not one string.")
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        windows = [(i, window) for i, text in enumerate(texts) for window in _windows(text)]
        for start in range(0, len(windows), BATCH_TEXTS):
            part = windows[start : start + BATCH_TEXTS]
            vectors = _unit(self._ask([text for _, text in part]))
            np.add.at(out, [i for i, _ in part], vectors)
        return _unit(out)

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.embed_documents([text])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """An estimate: the server's tokenizer is not known here. Never below one token in three bytes."""
        return [len(text.encode("utf-8", "replace")) // 3 + 2 for text in texts]

    def _ask(self, texts: Sequence[str]) -> Vectors:
        import httpx

        body = {"model": self._model, "input": [encodable(text) or " " for text in texts]}
        for attempt in range(TRIES):
            try:
                answer = self._client.post(self._url, json=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return self._read(answer, len(texts))
                failure = f"HTTP {answer.status_code}: {answer.text[:200]}"
                if answer.status_code < 500 and answer.status_code != 429:
                    break
            if attempt + 1 < TRIES:
                time.sleep(0.2 * 4**attempt)
        raise ModelError(
            f"the embedding server {self._shown} failed ({failure}). Check that it runs and serves "
            f"{self._model!r}, or set `models.embedding` to a local model."
        )

    def _read(self, answer: Any, count: int) -> Vectors:
        try:
            tree = answer.json()
            if self._ollama:
                rows = tree["embeddings"]
            else:
                rows = [item["embedding"] for item in sorted(tree["data"], key=lambda item: item["index"])]
            vectors: Vectors = np.array(rows, dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{self._shown} did not answer with embeddings ({error}).") from error
        wanted = (count, getattr(self, "dim", vectors.shape[-1]))
        if vectors.shape != wanted or not np.isfinite(vectors).all():
            raise ModelError(f"{self._shown} answered with shape {vectors.shape}, expected {wanted}.")
        return vectors


def _windows(text: str, size: int = MAX_TOKENS * 3) -> list[str]:
    """A window of 1,536 bytes is at most 512 tokens for nearly every text."""
    width = max(1, round(size * len(text) / max(1, len(text.encode("utf-8", "replace")))))
    return [text[i : i + width] for i in range(0, max(1, len(text)), width)]


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
