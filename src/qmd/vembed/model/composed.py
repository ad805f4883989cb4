"""A dual encoder composed of any text tower and any image tower, joined by small projection heads.

Text alone, an image alone, or an image with a text that says what should be different (m2i): each becomes one
vector in the common space. With frozen towers their features are computed once and kept, so that only the heads
cost time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from qmd.errors import ModelError
from qmd.vembed.model.images import open_image
from qmd.vembed.model.towers import EmbedderTower, ImageTower, TextTower, load_image_tower, load_text_tower

Kind = Literal["text", "image"]
Key = tuple[str, str, int, int]


class Head(nn.Module):
    """Two layers from a tower's features to the common space."""

    def __init__(self, dim_in: int, dim_out: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim_in),
            nn.Linear(dim_in, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.layers(x)
        return projected


class LinearHead(nn.Module):
    """One matrix behind the signed root of the features: what `qmd.vembed.closed_form` solves for."""

    def __init__(self, dim_in: int, dim_out: int, rooted: tuple[int, int]) -> None:
        super().__init__()
        self.dim_in, self.rooted = dim_in, rooted
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        start, end = self.rooted
        part = x[:, start:end]
        rooted = torch.sign(part) * torch.sqrt(torch.abs(part))
        projected: Tensor = self.linear(torch.cat([x[:, :start], rooted, x[:, end:]], dim=1))
        return projected

    def prepare(self, rows: np.ndarray) -> np.ndarray:
        """(n, dim_in) features as the matrix takes them, in double precision."""
        start, end = self.rooted
        out = np.array(rows, dtype=np.float64)
        out[:, start:end] = np.sign(out[:, start:end]) * np.sqrt(np.abs(out[:, start:end]))
        return out

    @torch.no_grad()
    def set_linear(self, weights: np.ndarray, bias: np.ndarray) -> None:
        """weights: (dim_in, dim_out), bias: (dim_out,), over prepared rows."""
        self.linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(weights.T)))
        self.linear.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))

    @torch.no_grad()
    def apply_rows(self, rows: np.ndarray) -> np.ndarray:
        """(n, dim_in) features -> (n, dim_out)."""
        weight, bias = (p.double().numpy() for p in (self.linear.weight, self.linear.bias))
        return np.asarray(self.prepare(rows) @ weight.T + bias)


class ComposedBackbone(InputModule):
    """Text tower + image tower + heads. Inputs are strings or mappings with `text` and/or `image`."""

    config_keys: ClassVar[list[str]] = ["projection_dim", "hidden", "dropout", "freeze_towers", "head"]
    config_file_name = "composed_config.json"

    def __init__(
        self,
        text_tower: TextTower | EmbedderTower,
        image_tower: ImageTower,
        *,
        projection_dim: int = 256,
        hidden: int = 768,
        dropout: float = 0.1,
        freeze_towers: bool = True,
        head: Literal["mlp", "linear"] = "mlp",
    ) -> None:
        super().__init__()
        self.text_tower = text_tower
        self.image_tower = image_tower
        self.tokenizer = text_tower.tokenizer
        self.projection_dim, self.hidden, self.dropout = projection_dim, hidden, dropout
        self.freeze_towers = freeze_towers
        self.head = head
        text, image = text_tower.dim, image_tower.dim
        if head == "linear":
            # Pictures' features are sums of what was seen: their root weighs the many and the few more evenly.
            self.text_head: nn.Module = LinearHead(text, projection_dim, (0, 0))
            self.image_head: nn.Module = LinearHead(image, projection_dim, (0, image))
            self.fuse_head: nn.Module = LinearHead(text + image, projection_dim, (text, text + image))
        else:
            self.text_head = Head(text, projection_dim, hidden, dropout)
            self.image_head = Head(image, projection_dim, hidden, dropout)
            self.fuse_head = Head(text + image, projection_dim, hidden, dropout)
        self._kept: dict[Key, np.ndarray] = {}
        if freeze_towers:
            for tower in (text_tower, image_tower):
                tower.requires_grad_(False)

    @property
    def modalities(self) -> list[Any]:
        return ["text", "image", ("text", "image"), "message"]

    def get_embedding_dimension(self) -> int:
        return self.projection_dim

    def get_word_embedding_dimension(self) -> int:
        return self.projection_dim

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_towers:
            self.text_tower.eval()
            self.image_tower.eval()
        return self

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Frozen: `input_values` (B, d_text + d_image), the towers' features. Else tokens (B, T), pixels (n, 3, h, w).

        `has_text` and `has_image` (B,) say which parts an input has.
        """
        parts = [_split(item, prompt) for item in inputs]
        features: dict[str, Tensor] = {
            "has_text": torch.tensor([text is not None for text, _ in parts]),
            "has_image": torch.tensor([image is not None for _, image in parts]),
        }
        if self.freeze_towers:
            text = self._frozen_rows("text", [t for t, _ in parts], self._text_rows, self.text_tower.dim)
            image = self._frozen_rows("image", [i for _, i in parts], self._image_rows, self.image_tower.dim)
            features["input_values"] = torch.cat([text, image], dim=1)
            return features
        features |= self.text_tower.tokenize([text or "" for text, _ in parts])
        images = [self.image_tower.pixels(open_image(image)) for _, image in parts if image is not None]
        features["num_images_per_sample"] = features["has_image"].int()
        if images:
            features["pixel_values"] = torch.stack(images)
        return features

    def _frozen_rows(
        self, kind: Kind, items: list[Any], compute: Callable[[list[Any]], np.ndarray], dim: int
    ) -> Tensor:
        """(B, dim) tower features, zeros where there is no item. Texts and image files are computed once."""
        keys = [None if item is None else _key(kind, item) for item in items]
        wanted = {key: item for key, item in zip(keys, items, strict=True) if key is not None}
        rows = {key: self._kept[key] for key in wanted if key in self._kept}
        new = [(key, item) for key, item in wanted.items() if key not in rows]
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            for (key, item), row in zip(part, compute([item for _, item in part]), strict=True):
                rows[key] = row
                if isinstance(item, str | Path):
                    self._kept[key] = row
        nothing = np.zeros(dim, dtype=np.float32)
        return torch.from_numpy(np.stack([nothing if key is None else rows[key] for key in keys]))

    @property
    def stands_on_embedder(self) -> bool:
        """Whether the text tower is an embedder of QMD's engine, which is not exported again."""
        return isinstance(self.text_tower, EmbedderTower)

    @property
    def feature_rows(
        self,
    ) -> tuple[Callable[[Sequence[str]], np.ndarray], Callable[[Sequence[Any]], np.ndarray]]:
        """(texts -> (n, d_text) features, image files -> (n, d_image) features) of the frozen towers."""

        def texts(items: Sequence[str]) -> np.ndarray:
            rows = self._frozen_rows("text", list(items), self._text_rows, self.text_tower.dim)
            return np.asarray(rows.numpy(), np.float64)

        def images(items: Sequence[Any]) -> np.ndarray:
            named = [str(item) for item in items]
            rows = self._frozen_rows("image", named, self._image_rows, self.image_tower.dim)
            return np.asarray(rows.numpy(), np.float64)

        return texts, images

    def write_features(self, path: str | Path) -> None:
        """Keep the frozen towers' features for other runs over the same texts and image files."""
        tensors: dict[str, Tensor] = {}
        record = {}
        for kind in ("text", "image"):
            kept = {key: row for key, row in self._kept.items() if key[0] == kind}
            record[kind] = json.dumps([self._tower_name(kind), *kept])
            if kept:
                tensors[kind] = torch.from_numpy(np.stack(list(kept.values())))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=record)

    def read_features(self, path: str | Path) -> None:
        """Take up features that `write_features` kept; those of other towers are left alone."""
        with safe_open(path, "pt") as file:
            record = file.metadata() or {}
            for kind in file.keys():  # noqa: SIM118  # no mapping, its only iterator
                tower, *keys = json.loads(record[kind])
                if tower == self._tower_name(kind):
                    rows = file.get_tensor(kind).numpy()
                    self._kept.update(zip((tuple(key) for key in keys), rows, strict=True))

    def _tower_name(self, kind: str) -> str:
        if kind == "image":
            return self.image_tower.name
        embedder = getattr(self.text_tower, "embedder", None)
        return embedder.fingerprint if embedder else f"{self.text_tower.name}, {self.text_tower.max_tokens}"

    @torch.no_grad()
    def _text_rows(self, texts: list[str]) -> np.ndarray:
        if isinstance(self.text_tower, EmbedderTower):
            return self.text_tower.embed(texts)
        tokens = {key: value.to(self._device()) for key, value in self.text_tower.tokenize(texts).items()}
        return np.asarray(self.text_tower(tokens).float().cpu())

    @torch.no_grad()
    def _image_rows(self, images: list[Any]) -> np.ndarray:
        pixels = torch.stack([self.image_tower.pixels(open_image(image)) for image in images])
        return np.asarray(self.image_tower(pixels.to(self._device())).float().cpu())

    def _device(self) -> torch.device:
        return next(self.text_head.parameters()).device

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        has_text, has_image = features["has_text"], features["has_image"]
        if "input_values" in features:
            rows = features["input_values"].to(next(self.text_head.parameters()).dtype)
            text, image = rows.split([self.text_tower.dim, self.image_tower.dim], dim=1)
        else:
            text = self.text_tower({key: features[key] for key in ("input_ids", "attention_mask")})
            image = text.new_zeros(len(text), self.image_tower.dim)
            if bool(has_image.any()):
                image[has_image] = self.image_tower(features["pixel_values"])
        only_text, only_image, both = has_text & ~has_image, has_image & ~has_text, has_text & has_image
        vector = text.new_zeros(len(text), self.projection_dim)
        if bool(only_text.any()):
            vector[only_text] = self.text_head(text[only_text])
        if bool(only_image.any()):
            vector[only_image] = self.image_head(image[only_image])
        if bool(both.any()):
            words, picture = text[both], image[both]
            fused = self.fuse_head(torch.cat([words, picture], dim=1))
            vector[both] = self.text_head(words) + self.image_head(picture) + fused
        features["sentence_embedding"] = vector  # (B, projection_dim), normalised by the module that follows
        return features

    def head_weights(self) -> dict[str, Tensor]:
        """What training changed where the towers are frozen."""
        return {
            key: value.contiguous()
            for key, value in self.state_dict().items()
            if not (self.freeze_towers and key.startswith(("text_tower.", "image_tower.")))
        }

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Heads as safetensors beside a configuration that names the towers; trained towers are saved too."""
        folder = Path(output_path)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.head_weights(), folder / "composed.safetensors")
        config = self.get_config_dict() | {
            "text_tower": self.text_tower.name,
            "image_tower": self.image_tower.name,
        }
        (folder / self.config_file_name).write_text(json.dumps(config, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> Self:
        folder = Path(model_name_or_path) / subfolder
        config = json.loads((folder / cls.config_file_name).read_text(encoding="utf-8"))
        towers = load_text_tower(config.pop("text_tower")), load_image_tower(config.pop("image_tower"))
        model = cls(*towers, **config)
        missing, unexpected = model.load_state_dict(load_file(folder / "composed.safetensors"), strict=False)
        wrong = [key for key in missing if not (model.freeze_towers and "_tower." in key)] + list(unexpected)
        if wrong:
            raise ModelError(f"{folder}: weights do not fit the configuration, first at {wrong[0]!r}.")
        model.eval()
        return model


def _split(item: Any, prompt: str | None) -> tuple[str | None, Any]:
    if isinstance(item, str):
        return (prompt or "") + item, None
    if isinstance(item, Mapping):
        text = item.get("text")
        return (None if text is None else (prompt or "") + text), item.get("image")
    return None, item


def _key(kind: Kind, item: Any) -> Key:
    """Texts by value, files by path, size and time; images in memory by identity, which lasts for a batch."""
    if not isinstance(item, str | Path):
        return (kind, f"memory:{id(item)}", 0, 0)
    if kind == "text":
        return (kind, str(item), 0, 0)
    state = Path(item).stat()
    return (kind, str(item), state.st_size, state.st_mtime_ns)
