"""Export: training, Predictor, ONNX and the engine give the same vector."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from qmd.errors import ModelError, UsageError
from qmd.llm import open_embedder
from qmd.vembed import Predictor, export_onnx, open_exported, train
from qmd.vembed.config import TrainConfig
from qmd.vembed.export import embed_image, read_card, training_record
from qmd.vembed.rerank.export import export_reranker

TEXTS = [
    "a red circle",
    "the square is blue",
    "a much longer text about a yellow square and a black circle",
    "a",
]


@pytest.mark.parametrize("family,mode", [("text", "t2t"), ("composed", "t2i")])
def test_one_vector_everywhere(
    configure: Callable[..., TrainConfig], tmp_path: Path, family: str, mode: str
) -> None:
    config = configure(
        family, mode, epochs=2, warmup_ratio=0, use_mrl="true", mrl_dims="[48,16]", projection_dim=48
    )
    train(config)
    wanted = Predictor(config.output_dir).encode_text(TEXTS)
    report = export_onnx(config.output_dir, tmp_path / "onnx", name="mine")
    assert report.fp32_difference <= 1e-4
    full, small = (open_exported(tmp_path / "onnx", precision=p) for p in ("fp32", "int8"))
    named = open_embedder(str(tmp_path / "onnx"))  # as `qmd models use FOLDER` does: the card decides
    assert named.fingerprint == small.fingerprint
    assert np.allclose(named.embed_documents(["a cat"]), small.embed_documents(["a cat"]), atol=1e-5)
    assert full.card.name == "mine"
    assert full.card.dims == (48, 16)
    np.testing.assert_allclose(full.embed_documents(TEXTS), wanted, atol=1e-4)
    np.testing.assert_allclose(full.embed_query(TEXTS[0]), wanted[0], atol=1e-4)
    assert (small.embed_documents(TEXTS) * wanted).sum(axis=1).min() > 0.99
    assert full.fingerprint != small.fingerprint
    assert report.files["model_int8.onnx"] < report.files["model.onnx"]
    record = json.loads((tmp_path / "onnx" / "card.json").read_text())["trained"]
    assert len(record["data"]["train"]["sha256"]) == 64
    assert record["config"]["output_dir"] == "out"


def test_the_image_side_needs_no_torch(
    configure: Callable[..., TrainConfig], pairs_of: Callable[[str], Path], tmp_path: Path
) -> None:
    config = configure("composed", "t2i", epochs=1, warmup_ratio=0)
    train(config)
    export_onnx(config.output_dir, tmp_path / "onnx", int8=False)
    images = [pairs_of("t2i").parent / f"{name}.png" for name in ("red-circle", "blue-square")]
    wanted = Predictor(config.output_dir).encode_image(images)
    np.testing.assert_allclose(embed_image(tmp_path / "onnx", images), wanted, atol=1e-4)
    with pytest.raises(ModelError, match="without int8"):
        open_exported(tmp_path / "onnx", precision="int8")


@pytest.mark.parametrize("export", [export_onnx, export_reranker])
def test_a_model_is_not_exported_over_itself(tmp_path: Path, export: Callable[..., object]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="folder of its own"):
        export(tmp_path, tmp_path / "x" / "..")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_changed_file_is_refused(tiny: Callable[[str], str], tmp_path: Path) -> None:
    export_onnx(tiny("text"), tmp_path, int8=False)
    graph = tmp_path / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="not the file"):
        open_exported(tmp_path)


def test_what_is_no_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model card"):
        read_card(tmp_path)
    (tmp_path / "training.json").write_text("{nope")
    with pytest.raises(ModelError, match="not the record"):
        training_record(tmp_path)


@pytest.mark.parametrize("family", ["causal", "qwen3_vl"])
def test_families_without_an_onnx_form_are_refused(
    tiny: Callable[[str], str], tmp_path: Path, family: str
) -> None:
    with pytest.raises(ModelError):
        export_onnx(tiny(family), tmp_path)


def test_a_text_only_export_embeds_no_images(tiny: Callable[[str], str], tmp_path: Path) -> None:
    export_onnx(tiny("text"), tmp_path, int8=False)
    with pytest.raises(ModelError, match="no image side"):
        embed_image(tmp_path, [])
