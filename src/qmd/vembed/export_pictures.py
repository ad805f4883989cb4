"""From a composed model over one of QMD's own embedders to the folder that `qmd.llm.image_text` opens.

The embedder is named, not copied: what is written are the image tower with its head, and the heads over the text, with
int8 weights, a scale for each channel, computing in float. The towers are compared with the model before they count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qmd.errors import ModelError
from qmd.llm.files import file_sha256
from qmd.llm.image_text import SETTINGS, Settings, open_image_text
from qmd.types import ModelCard, ModelVariant
from qmd.vembed.export import CARD, INT8_COSINE, ExportReport, quantise_weights, training_record, write_graph

PROBES = ("a red circle", "grinning face with big eyes", "house with garden")


def export_image_text(
    model: Any,
    checkpoint: str | Path,
    folder: Path,
    *,
    name: str | None = None,
    evidence: Sequence[float] = (),
    license: str = "",
) -> ExportReport:
    """Write `model` (composed, its text tower an embedder) to `folder`. Raises ModelError where the files differ."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    backbone = model[0]
    tower, text = backbone.image_tower, backbone.text_tower
    folder.mkdir(parents=True, exist_ok=True)

    class ImageGraph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.head = tower, backbone.image_head

        def forward(self, pixel_values: Any) -> Any:
            features = self.tower(pixel_values)
            raw = self.head(features)
            return F.normalize(raw, dim=-1), features, raw

    class TextGraph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = backbone.text_head

        def forward(self, text_features: Any) -> Any:
            raw = self.head(text_features)
            return F.normalize(raw, dim=-1), raw

    class BothGraph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = backbone.fuse_head

        def forward(self, text_features: Any, image_features: Any) -> Any:
            return self.head(torch.cat([text_features, image_features], dim=1))

    rows = {0: "batch"}
    pixels = torch.zeros(2, 3, tower.size, tower.size)
    words, seen = torch.zeros(2, text.dim), torch.zeros(2, tower.dim)
    graphs: dict[str, tuple[Any, tuple[Any, ...], dict[str, dict[int, str]]]] = {
        "image.onnx": (
            ImageGraph(),
            (pixels,),
            {"pixel_values": rows, "sentence_embedding": rows, "features": rows, "raw": rows},
        ),
        "text_head.onnx": (
            TextGraph(),
            (words,),
            {"text_features": rows, "sentence_embedding": rows, "raw": rows},
        ),
        "both_head.onnx": (
            BothGraph(),
            (words, seen),
            {"text_features": rows, "image_features": rows, "raw": rows},
        ),
    }
    for file, (graph, example, axes) in graphs.items():
        whole = folder / f"{file}.fp32"
        write_graph(graph.eval(), example, whole, axes, inputs=len(example))
        quantise_weights(whole, folder / file)
        whole.unlink()
    embedder = text.embedder
    settings = Settings(
        size=tower.size,
        mean=tower.mean,
        std=tower.std,
        text_model=text.name.removeprefix("embedder:"),
        text_fingerprint=embedder.fingerprint,
        languages=tuple(embedder.card.languages),
        sha256={file: file_sha256(folder / file) for file in graphs},
        evidence=tuple(evidence),
    )
    (folder / SETTINGS).write_text(json.dumps(asdict(settings), indent=1), encoding="utf-8")
    record = training_record(checkpoint)
    dims = record.get("config", {}).get("mrl_dims", ()) if record.get("config", {}).get("use_mrl") else ()
    card = ModelCard(
        name=name or Path(checkpoint).name,
        role="image",
        dim=backbone.projection_dim,
        dims=tuple(dims),
        max_tokens=embedder.max_tokens,
        license=license,
        languages=tuple(embedder.card.languages),
        variants=(ModelVariant("int8", ("image.onnx",), (settings.sha256 or {})["image.onnx"]),),
    )
    described = asdict(card) | {"trained": record}
    (folder / CARD).write_text(json.dumps(described, indent=1, ensure_ascii=False), encoding="utf-8")
    cosine = _least_cosine(model, folder, embedder)
    if not cosine >= INT8_COSINE:
        raise ModelError(
            f"{folder}: its vectors have cosine {cosine:.3f} to the model's; int8 weights do not fit it."
        )
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx"))}
    return ExportReport(str(folder), card, sizes, 0.0, cosine)


def _least_cosine(model: Any, folder: Path, embedder: Any) -> float:
    """Of drawn pictures and of texts, between the files' vectors and the model's."""
    from PIL import Image, ImageDraw

    pictures = []
    for number, colour in enumerate(("red", "navy", "gold", "seagreen")):
        picture = Image.new("RGB", (160, 160), "white")
        shapes = ImageDraw.Draw(picture)
        shapes.ellipse((20, 10 + 10 * number, 140, 130), fill=colour)
        shapes.rectangle((40 + 9 * number, 60, 70 + 9 * number, 150), fill="black")
        pictures.append(picture)
    opened = open_image_text(str(folder), open_text=lambda _: embedder)
    options = {"show_progress_bar": False, "normalize_embeddings": True}
    seen = (opened.embed_images(pictures) * model.encode([{"image": p} for p in pictures], **options)).sum(
        axis=1
    )
    words = np.stack([opened.embed_query(text) for text in PROBES])
    read = (words * model.encode([{"text": text} for text in PROBES], **options)).sum(axis=1)
    return float(min(seen.min(), read.min()))
