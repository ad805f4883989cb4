"""Heads in closed form: canonical correlation against its definition, the m2i head, and the way out to files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from qmd.errors import ConfigError, ModelError  # noqa: E402
from qmd.vembed import TrainConfig, load_train_config, train  # noqa: E402
from qmd.vembed.closed_form import fit_heads  # noqa: E402
from qmd.vembed.data import Item, Pair  # noqa: E402
from qmd.vembed.model.composed import LinearHead  # noqa: E402


class Backbone:
    """Two tables of features with heads over them."""

    def __init__(self, texts: np.ndarray, images: np.ndarray, dim: int) -> None:
        self.texts, self.images, self.projection_dim = texts, images, dim
        d, e = texts.shape[1], images.shape[1]
        self.text_head, self.image_head = LinearHead(d, dim, (0, 0)), LinearHead(e, dim, (0, 0))
        self.fuse_head = LinearHead(d + e, dim, (0, 0))

    @property
    def feature_rows(self) -> Any:
        return lambda items: self.texts[[int(i) for i in items]], lambda items: self.images[
            [int(str(i)) for i in items]
        ]


def config(**options: float) -> Any:
    return SimpleNamespace(
        **{
            "ridge_image": 0.0,
            "ridge_text": 0.0,
            "ridge_both": 1e-9,
            "correlation_power": 0.0,
            "change_weight": 0.0,
        }
        | options
    )


def test_both_sides_agree_where_they_hold_the_same_signal() -> None:
    """x = A s and y = B s of one hidden s: every correlation is 1, and the heads give the same vectors."""
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(300, 6))
    texts, images = hidden @ draw.normal(size=(6, 9)), hidden @ draw.normal(size=(6, 14))
    backbone = Backbone(texts + 3.0, images - 2.0, 6)
    pairs = [Pair(Item(str(i)), Item(image=Path(str(i))), (), "t2i", i) for i in range(300)]
    small = config(ridge_image=1e-9, ridge_text=1e-9)
    assert fit_heads(backbone, pairs, small) == pytest.approx(1.0, abs=1e-4)
    left, right = (
        backbone.text_head.apply_rows(backbone.texts),
        backbone.image_head.apply_rows(backbone.images),
    )
    np.testing.assert_allclose(left, right, atol=1e-3)
    np.testing.assert_allclose(np.cov(left.T) * 6, np.eye(6) * np.cov(left.T)[0, 0] * 6, atol=2e-2)


def test_directions_come_best_first_and_a_cut_vector_is_a_good_one() -> None:
    draw = np.random.default_rng(1)
    hidden = draw.normal(size=(4000, 3))
    noise = np.array([0.1, 1.0, 3.0])
    texts = hidden + noise * draw.normal(size=hidden.shape)
    images = hidden + noise * draw.normal(size=hidden.shape)
    backbone = Backbone(texts, images, 3)
    pairs = [Pair(Item(image=Path(str(i))), Item(str(i)), (), "i2t", i) for i in range(len(texts))]
    fit_heads(backbone, pairs, config())
    left, right = backbone.text_head.apply_rows(texts), backbone.image_head.apply_rows(images)
    found = [np.corrcoef(left[:, k], right[:, k])[0, 1] for k in range(3)]
    expected = 1 / (1 + noise**2)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_picture_and_a_text_together_mean_the_changed_picture() -> None:
    """Pictures are a shape and a tone; "tone k" asks for the same shape in another tone."""
    draw = np.random.default_rng(2)
    shapes, tones = draw.normal(size=(40, 8)), draw.normal(size=(3, 8))
    images = np.concatenate([shapes, *(shapes + tone for tone in tones)])  # 40 plain, then 40 of each tone
    texts = np.concatenate([shapes @ draw.normal(size=(8, 10)), np.zeros((3, 10))])
    texts[40:, :3] = 5 * np.eye(3)
    backbone = Backbone(texts, images, 6)
    pairs = [Pair(Item(str(i)), Item(image=Path(str(i))), (), "t2i", 1) for i in range(40)]
    pairs += [
        Pair(Item(str(40 + k), Path(str(i))), Item(image=Path(str(40 + 40 * k + i))), (), "m2i", 1)
        for k in range(3)
        for i in range(30)
    ]
    fit_heads(backbone, pairs, config(ridge_image=0.1, ridge_text=0.1, ridge_both=1e-5))
    rows = backbone.image_head.apply_rows(images)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    right = 0
    for k in range(3):
        for i in range(30, 40):  # shapes that taught nothing
            joint = np.concatenate([texts[40 + k], images[i]])[None]
            asked = (
                backbone.text_head.apply_rows(texts[40 + k][None])
                + backbone.image_head.apply_rows(images[i][None])
                + backbone.fuse_head.apply_rows(joint)
            )
            right += int(np.argmax(rows @ asked[0]) == 40 + 40 * k + i)
    assert right >= 27


def test_what_no_name_mentions_is_kept_where_texts_ask_for_it() -> None:
    """Tones stand apart from all that names say: only `change_weight` keeps their directions among the few."""
    draw = np.random.default_rng(3)
    shapes, tones = draw.normal(size=(60, 20)), 0.5 * np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    given = [np.concatenate([shapes, 0.05 * draw.normal(size=(60, 2))], axis=1)]
    changed = [np.concatenate([shapes, np.tile(tone, (60, 1))], axis=1) for tone in tones]
    images = np.concatenate(given + changed)
    texts = np.zeros((63, 24))
    texts[:60, :20] = shapes @ draw.normal(size=(20, 20))
    texts[60:, 20:23] = 5 * np.eye(3)
    pairs = [Pair(Item(str(i)), Item(image=Path(str(i))), (), "t2i", 1) for i in range(60)]
    pairs += [
        Pair(Item(str(60 + k), Path(str(i))), Item(image=Path(str(60 + 60 * k + i))), (), "m2i", 1)
        for k in range(3)
        for i in range(45)
    ]
    right = {}
    for weight in (0.0, 0.5):
        backbone = Backbone(texts, images, 16)
        options = {"ridge_image": 0.1, "ridge_text": 0.1, "ridge_both": 1e-5}
        fit_heads(backbone, pairs, config(**options, change_weight=weight))
        rows = backbone.image_head.apply_rows(images)
        asked = [(k, i) for k in range(3) for i in range(45, 60)]  # shapes that no tone was taught with
        found = 0
        for k, i in asked:
            one, seen = texts[60 + k][None], images[i][None]
            query = backbone.text_head.apply_rows(one) + backbone.image_head.apply_rows(seen)
            query += backbone.fuse_head.apply_rows(np.concatenate([one, seen], axis=1))
            unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            found += int(np.argmax(unit @ query[0]) == 60 + 60 * k + i)
        right[weight] = found / len(asked)
    assert right[0.5] > 0.8
    assert right[0.0] < 0.5


def test_what_cannot_be_solved_is_refused(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match="freeze_towers"):
        configure("composed", "t2i", loss_type="cca")
    with pytest.raises(ModelError, match="t2i or i2t"):
        fit_heads(Backbone(np.ones((2, 2)), np.ones((2, 2)), 2), [], config())


def test_a_run_over_qmds_own_embedder_is_exported_and_searched(
    tiny: Callable[[str], str], pairs_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """train -> export -> `open_image_text`: the files give the trained model's vectors, and find the shapes."""
    from qmd.llm.image_text import check_image_text, open_image_text
    from qmd.vembed import Predictor, export_onnx

    data = pairs_of("t2i")
    options = {
        "encoder_mode": "composed",
        "model_name_or_path": "embedder:all-MiniLM-L6-v2",
        "image_model_name_or_path": tiny("image"),
        "freeze_towers": True,
        "loss_type": "cca",
        "projection_dim": 8,
        "data_path": data,
        "output_dir": tmp_path / "model",
        "feature_cache": tmp_path / "features.safetensors",
    }
    report = train(load_train_config(overrides=[f"{key}={value}" for key, value in options.items()]))
    assert report.steps == 0
    exported = export_onnx(tmp_path / "model", tmp_path / "files", name="shapes")
    assert exported.int8_cosine is not None
    assert exported.int8_cosine >= 0.99
    assert check_image_text(str(tmp_path / "files")).startswith("here, verified")
    opened, predictor = open_image_text(str(tmp_path / "files")), Predictor(tmp_path / "model")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    pictures = [data.parent / row["positive"] for row in rows]
    np.testing.assert_allclose(
        (opened.embed_images(pictures) * predictor.encode_image(pictures)).sum(axis=1), 1.0, atol=0.01
    )
    both = {"text": rows[0]["query"], "image": str(pictures[1])}
    mixed = opened.embed_both(both["text"], pictures[1])
    assert float(mixed @ predictor.encode([both])[0]) > 0.98
    words = opened.embed_query(rows[0]["query"])
    assert float(words @ predictor.encode_text([rows[0]["query"]])[0]) > 0.99
    base = opened.text.embed_query(rows[0]["query"])
    np.testing.assert_allclose(opened.embed_features(base), words, atol=1e-6)

    (tmp_path / "files" / "image.onnx").write_bytes(b"changed")
    with pytest.raises(ModelError, match="damaged or was changed"):
        open_image_text(str(tmp_path / "files")).embed_images(pictures[:1])
