"""The embedder of an index, frozen, and a matrix behind it that learns: seconds of training, and no text embedded anew.

x -> x + x @ C, C starting at zero: the first step begins at the base model. The base is opened by the model engine, so
it may be any model of the catalog, a folder, or a server; its vectors are computed once a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from qmd.errors import ModelError
from qmd.llm import open_embedder
from qmd.llm.adapted import read_adapter, write_adapter
from qmd.llm.protocols import Embedder


class AdaptedText(InputModule):
    """Texts -> `sentence_embedding` (B, d), normalised by the module that follows."""

    def __init__(self, base: Embedder, name: str) -> None:
        super().__init__()
        self.base, self.name = base, name
        self.change = nn.Parameter(torch.zeros(base.dim, base.dim))
        self._kept: dict[str, np.ndarray] = {}

    @property
    def modalities(self) -> list[Any]:
        return ["text", "message"]

    @property
    def max_seq_length(self) -> int:
        return self.base.max_tokens

    @property
    def tokenizer(self) -> None:
        return None

    def get_embedding_dimension(self) -> int:
        return self.base.dim

    def get_word_embedding_dimension(self) -> int:
        return self.base.dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """`input_values` (B, d): the base's vectors."""
        texts = [(prompt or "") + _text(item) for item in inputs]
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if new:
            self._kept.update(zip(new, self.base.embed_documents(new), strict=True))
        return {"input_values": torch.from_numpy(np.stack([self._kept[text] for text in texts]))}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        rows = features["input_values"].to(self.change)
        features["sentence_embedding"] = rows + rows @ self.change
        return features

    def write_features(self, path: str | Path) -> None:
        """Keep the base's vectors for other runs over the same texts."""
        if not self._kept:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        listing = json.dumps([self.base.fingerprint, *self._kept]).encode()
        with Path(path).open("wb") as file:
            np.savez(file, texts=np.frombuffer(listing, np.uint8), rows=np.stack(list(self._kept.values())))

    def read_features(self, path: str | Path) -> None:
        """Take up vectors that `write_features` kept; those of another base are left alone."""
        with np.load(path, allow_pickle=False) as file:
            fingerprint, *texts = json.loads(file["texts"].tobytes())
            if fingerprint == self.base.fingerprint:
                self._kept.update(zip(texts, file["rows"], strict=True))

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        folder = Path(output_path)
        matrix = torch.eye(self.base.dim) + self.change.detach().float().cpu()
        try:
            trained = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            trained = {}
        write_adapter(
            folder, matrix.numpy(), base=self.name, base_fingerprint=self.base.fingerprint, trained=trained
        )

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> Self:
        described, matrix = read_adapter(Path(model_name_or_path) / subfolder)
        base = open_embedder(described["base"])
        if base.fingerprint != described["base_fingerprint"]:
            raise ModelError(
                f"{model_name_or_path} was trained over another version of {described['base']}. Train it again."
            )
        model = cls(base, described["base"])
        with torch.no_grad():
            model.change.copy_(torch.from_numpy(matrix) - torch.eye(base.dim))
        return model


def _text(item: Any) -> str:
    text = item.get("text") if isinstance(item, Mapping) and item.get("image") is None else item
    if not isinstance(text, str):
        raise ModelError("an adapter reads texts; for images choose another encoder_mode.")
    return text
