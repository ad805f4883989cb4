"""A model that puts pictures and texts into one space, on ONNX Runtime. Knows pixels and words; nothing of documents.

A folder holds `card.json`, `image.json` and `image.onnx` (pixels -> unit vectors), and its text side in one of two
forms: `model.onnx` with `tokenizer.json`, a text encoder of its own; or `text_head.onnx`, a head over the vectors of an
embedder that QMD has anyway (`image.json` names it), so that nothing is shipped or loaded twice. With `both_head.onnx`
a picture and a text together make one question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qmd.errors import ModelError, NotFound
from qmd.llm.catalog import CATALOG
from qmd.llm.files import local_path, verify_file
from qmd.llm.pixels import Fit, fitted_pixels
from qmd.llm.protocols import Embedder, Vectors
from qmd.llm.session import open_session
from qmd.types import ModelCard

if TYPE_CHECKING:
    import onnxruntime

SETTINGS = "image.json"
BATCH_PICTURES = 8
OpenText = Callable[[str], Embedder]


@dataclass(frozen=True, slots=True)
class Settings:
    """`image.json`: how pixels are prepared; the embedder that the text side stands on (empty: its own); the digests of
    the graphs; and `evidence`, how cosines of this model become probabilities (see `search.pictures`)."""

    size: int
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    fit: Fit = "pad"
    resample: int = 3
    text_model: str = ""
    text_fingerprint: str = ""
    languages: tuple[str, ...] = ()
    sha256: dict[str, str] | None = None
    evidence: tuple[float, ...] = ()

    @property
    def recipe(self) -> list[object]:
        """How pixels are prepared, as part of a fingerprint."""
        square: list[object] = [self.size, self.mean, self.std]
        return square if self.fit == "pad" else [*square, self.fit, self.resample]

    def pixels(self, image: Any) -> Vectors:
        """(3, size, size) of an RGB PIL image."""
        from qmd.llm.pictures import square_pixels

        if isinstance(self.mean, tuple) and isinstance(self.std, tuple) and self.fit != "pad":
            return fitted_pixels(image, self.fit, self.size, self.mean, self.std, resample=self.resample)
        if isinstance(self.mean, tuple) or isinstance(self.std, tuple) or self.fit != "pad":
            raise ModelError(
                f"image.json: fit {self.fit!r} does not go with mean {self.mean}. Export the model again."
            )
        return square_pixels(image, self.size, self.mean, self.std)


class ImageTextModel:
    """Opened by `open_image_text`. Graphs are loaded when first needed: a question needs no image tower."""

    def __init__(
        self,
        folder: Path,
        card: ModelCard,
        settings: Settings,
        open_text: OpenText,
        threads: int | None = None,
    ) -> None:
        self.folder = folder
        self.card = card
        self.dim = card.dim
        self.settings = settings
        self.base_fingerprint = settings.text_fingerprint or None
        self._open_text = open_text
        self._threads = threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        identity = {
            "format": 1,
            "files": dict(sorted((settings.sha256 or {}).items())),
            "pixels": settings.recipe,
            "text": settings.text_fingerprint,
            "dim": card.dim,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.fingerprint = f"{card.name}:{card.dim}:{digest[:16]}"

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that questions may be in; empty: not known."""
        return self.settings.languages or self.card.languages

    @property
    def mixes(self) -> bool:
        """Whether a picture and a text together can be a question."""
        return (self.folder / "both_head.onnx").is_file()

    @property
    def runs_on(self) -> str:
        return str(self._session("image.onnx").get_providers()[0])

    @cached_property
    def text(self) -> Embedder:
        """The embedder of the text side. Raises ModelError where it is not the one that the heads were trained on."""
        if not self.settings.text_model:
            from qmd.llm.open import open_embedder

            return open_embedder(str(self.folder), threads=self._threads)
        embedder = self._open_text(self.settings.text_model)
        if embedder.fingerprint != self.settings.text_fingerprint:
            raise ModelError(
                f"{self.card.name} was trained over another version of {self.settings.text_model}. Export it again, or "
                "choose another with `qmd models use NAME --role image`."
            )
        return embedder

    def embed_images(self, pictures: Sequence[Any]) -> Vectors:
        """(n, d) unit rows of paths, bytes or PIL images. Raises BadPicture, MissingExtra without Pillow."""
        from qmd.llm.pictures import open_image

        return self.embed_pixels([self.pixels(open_image(picture)) for picture in pictures])

    def pixels(self, image: Any) -> Vectors:
        """(3, size, size) of an RGB PIL image."""
        return self.settings.pixels(image)

    def embed_pixels(self, pixels: Sequence[Vectors]) -> Vectors:
        """(n, d) unit rows of n prepared pictures."""
        out = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), BATCH_PICTURES):
            rows = self._run("image.onnx", np.stack(pixels[start : start + BATCH_PICTURES]))[0]
            out[start : start + len(rows)] = rows
        return out

    def embed_query(self, text: str) -> Vectors:
        """(d,) unit vector of a question in words."""
        if not self.settings.text_model:
            return self.text.embed_query(text)
        return self.embed_features(self.text.embed_query(text))

    def embed_features(self, vector: Vectors) -> Vectors:
        """(d,) from the text embedder's own vector of a question (`base_fingerprint` says whose)."""
        row: Vectors = self._run("text_head.onnx", vector[None])[0][0]
        return row

    def embed_both(self, text: str, picture: Any) -> Vectors:
        """(d,) unit vector of "this picture, but as the text says". Raises ModelError where the model cannot."""
        from qmd.llm.pictures import open_image

        if not self.mixes:
            raise ModelError(f"{self.card.name} takes a picture or a text, not both together.")
        features = self.text.embed_query(text)[None]
        _, image_features, image_raw = self._run("image.onnx", self.pixels(open_image(picture))[None])
        _, text_raw = self._run("text_head.onnx", features)
        fused = self._run("both_head.onnx", features, image_features)[0]
        vector: Vectors = (image_raw + text_raw + fused)[0]
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def _run(self, graph: str, *inputs: Any) -> list[Any]:
        session = self._session(graph)
        names = [one.name for one in session.get_inputs()]
        given = [np.ascontiguousarray(value, np.float32) for value in inputs]
        return list(session.run(None, dict(zip(names, given, strict=True))))

    def _session(self, graph: str) -> onnxruntime.InferenceSession:
        if graph not in self._sessions:
            path = self.folder / graph
            pinned = (self.settings.sha256 or {}).get(graph)
            if pinned is not None:
                verify_file(path, pinned, "Export the model again, or reinstall it.")
            self._sessions[graph] = open_session(path, threads=self._threads)
        return self._sessions[graph]


def open_image_text(
    name: str, *, open_text: OpenText | None = None, threads: int | None = None
) -> ImageTextModel:
    """The image-text model of a catalog name or a folder that `qmd train` exported.

    open_text: gives the embedder of a name, where one is open already. Raises NotFound, ModelError.
    """
    from qmd.llm.open import open_embedder

    folder = find_folder(name)
    settings = read_settings(folder)
    card = _read_card(folder)
    if name in CATALOG:
        card = replace(card, name=name)
    return ImageTextModel(folder, card, settings, open_text or open_embedder, threads)


def check_image_text(name: str) -> str:
    """Compare every graph of a model with its digest; loads none. Raises NotFound, ModelError."""
    from qmd.llm.pictures import has_pillow

    folder = find_folder(name)
    for graph, sha256 in (read_settings(folder).sha256 or {}).items():
        verify_file(folder / graph, sha256, "Export the model again, or reinstall it.")
    extra = "" if has_pillow() else "; pictures are left out: `pip install 'qmd-python[images]'`"
    return f"here, verified{extra}"


def find_folder(name: str) -> Path:
    """Where an image-text model lies. Raises NotFound, ModelError for a model of another kind."""
    card = CATALOG.get(name)
    if card is not None:
        if card.role != "image":
            raise ModelError(f"{name} is a model for {card.role}, not for images and texts together.")
        return Path(str(package_files(card.package) / card.variants[0].files[0])).parent
    folder = local_path(name)
    if not folder.is_dir():
        known = ", ".join(row.name for row in CATALOG.values() if row.role == "image")
        raise NotFound(f"no image-text model is named {name!r}. Known: {known}, or a folder of `qmd train`.")
    return folder.absolute()


def read_settings(folder: Path) -> Settings:
    """Raises ModelError where a folder has no image side."""
    import msgspec

    try:
        return msgspec.json.decode((folder / SETTINGS).read_bytes(), type=Settings)
    except OSError as error:
        raise ModelError(
            f"{folder} has no image side: composed models, CLIP and SigLIP are exported with one."
        ) from error
    except msgspec.DecodeError as error:
        raise ModelError(f"{folder / SETTINGS} cannot be read ({error}). Export the model again.") from error


def _read_card(folder: Path) -> ModelCard:
    from qmd.llm.open import CARD_NAME, read_card

    return read_card(folder / CARD_NAME)
