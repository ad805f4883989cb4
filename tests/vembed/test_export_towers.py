"""CLIP and SigLIP as ONNX: text and pictures give the model's own vectors, whatever stands beside them in a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from PIL import Image

from qmd.llm import open_embedder
from qmd.vembed import Predictor, export_onnx
from qmd.vembed.config import TrainConfig
from qmd.vembed.export import embed_image
from qmd.vembed.run import train

TEXTS = ["a red circle", "blue", "a green triangle and a yellow square"]


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_text_s_vector_does_not_depend_on_its_neighbours(tiny: Callable[[str], str], family: str) -> None:
    predictor = Predictor(tiny(family))
    alone = np.concatenate([predictor.encode_text([text]) for text in TEXTS])
    np.testing.assert_allclose(predictor.encode_text(TEXTS), alone, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_trained_predictor_and_engine_agree(
    configure: Callable[..., TrainConfig], tmp_path: Path, family: str
) -> None:
    config = configure(family, "t2i", epochs=2, learning_rate="1e-3", warmup_ratio=0)
    train(config)
    report = export_onnx(config.output_dir, tmp_path / "onnx")
    assert report.fp32_difference <= 1e-4
    assert report.int8_cosine is not None
    assert report.int8_cosine >= 0.99
    predictor = Predictor(config.output_dir)
    engine = open_embedder(str(tmp_path / "onnx"), precision="fp32")
    np.testing.assert_allclose(engine.embed_documents(TEXTS), predictor.encode_text(TEXTS), atol=1e-4)
    wide, tall = Image.radial_gradient("L").resize((90, 40)), Image.linear_gradient("L").resize((31, 77))
    pictures = [image.convert("RGB") for image in (wide, tall)]
    found, wanted = embed_image(tmp_path / "onnx", pictures), predictor.encode_image(pictures)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3
