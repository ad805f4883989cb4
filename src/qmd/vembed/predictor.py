"""Use a trained model: texts, images and mixtures of both become unit vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmd.errors import MissingExtra, NotFound, UsageError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]


class Predictor:
    """A trained model ready to encode. `mrl_dim` cuts every vector to its first components and renormalises."""

    model: SentenceTransformer

    def __init__(
        self,
        checkpoint: str | Path,
        mrl_dim: int | None = None,
        *,
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        """`checkpoint` is a trained folder, or a model's name. Raises ModelError, UsageError for a wrong `mrl_dim`."""
        try:
            import sentence_transformers  # noqa: F401
        except ImportError as error:
            raise MissingExtra("encoding with a trained model", "train") from error
        from qmd.vembed.model.assemble import open_model

        self.model = open_model(checkpoint)
        if device is not None:
            self.model.to(device)
        self.model.eval()
        self.full_dim = int(self.model.get_embedding_dimension() or 0)
        if mrl_dim is not None and not 1 <= mrl_dim <= self.full_dim:
            raise UsageError(f"mrl_dim must be between 1 and the model's {self.full_dim}, not {mrl_dim}.")
        self.dim = mrl_dim or self.full_dim
        self.batch_size = batch_size

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """(n, dim) unit rows; the cosine of two rows is their dot product."""
        if isinstance(texts, str):
            raise UsageError("encode_text takes a list of texts, not one string.")
        return self.encode([{"text": text} for text in texts])

    def encode_image(self, images: Sequence[str | Path | Any]) -> Vectors:
        """(n, dim) unit rows of image files (paths) or PIL images."""
        if isinstance(images, str | Path):
            raise UsageError("encode_image takes a list of images, not one path.")
        return self.encode([{"image": image} for image in images])

    def encode(self, items: Sequence[str | Path | Mapping[str, Any] | Any]) -> Vectors:
        """(n, dim) unit rows of a mixture: strings are texts, paths and PIL images are images, mappings hold `text`
        and/or `image` (an image path may be a string there)."""
        from qmd.vembed.run import encoder_input

        own = type(self.model[0]).__module__.startswith("qmd.")
        kinds: dict[tuple[bool, bool], list[int]] = {}
        cells = [_cell(item) for item in items]
        for index, cell in enumerate(cells):
            if isinstance(cell["image"], str | Path) and not Path(cell["image"]).is_file():
                raise NotFound(f"no image at {cell['image']}.")
            kinds.setdefault((cell["text"] is None, cell["image"] is None), []).append(index)
        vectors = np.empty((len(cells), self.dim), dtype=np.float32)
        for indices in kinds.values():
            rows = self.model.encode(
                [encoder_input(cells[i], own) for i in indices],
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            rows = np.asarray(rows, dtype=np.float32)[:, : self.dim]
            vectors[indices] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return vectors


def _cell(item: Any) -> dict[str, Any]:
    if isinstance(item, str):
        return {"text": item, "image": None}
    if isinstance(item, Mapping):
        if unknown := set(item) - {"text", "image"}:
            raise UsageError(f"an input may hold text and image, not {min(unknown)!r}.")
        cell = {"text": item.get("text"), "image": item.get("image")}
        if cell["text"] is None and cell["image"] is None:
            raise UsageError("an input needs a text, an image, or both.")
        return cell
    return {"text": None, "image": item}
