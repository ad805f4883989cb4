"""The prepared graph: same vectors, cached, and a damaged cache costs nothing but time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmd.llm import open_embedder, open_reranker
from qmd.llm.bert_graph import read_bert, write_bert
from qmd.llm.catalog import CATALOG
from qmd.llm.embedder import OnnxEmbedder
from qmd.llm.files import find_packaged
from qmd.llm.prepare import calibration_texts, load_prepared, prepared_path
from qmd.llm.session import open_session
from qmd.llm.tokens import TextTokenizer
from qmd.types import ModelCard, ModelVariant

TEXTS = (
    "short",
    "a longer sentence about permissions of files",
    "The river rose after three days of rain, and the bridge was closed. " * 25,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("qmd.llm.prepare.calibration_texts", lambda: calibration_texts()[:12])
    return tmp_path


def test_the_float_rewrite_gives_the_vectors_of_the_source() -> None:
    files = find_packaged(CATALOG["all-MiniLM-L6-v2"])
    source = OnnxEmbedder.open(files, prepare=False)
    weights = read_bert(files.graph, heads=12)
    assert weights is not None
    assert (weights.layers, weights.hidden) == (6, 384)
    graph = write_bert(weights, products="float", pooling="mean")
    rewritten = OnnxEmbedder(files, lambda: open_session(graph), TextTokenizer.from_file(files.tokenizer))
    np.testing.assert_allclose(rewritten.embed_documents(TEXTS), source.embed_documents(TEXTS), atol=1e-4)


def test_wrong_heads_give_other_vectors() -> None:
    files = find_packaged(CATALOG["all-MiniLM-L6-v2"])
    weights = read_bert(files.graph, heads=6)
    assert weights is not None
    rewritten = OnnxEmbedder(
        files,
        lambda: open_session(write_bert(weights, products="float", pooling="mean")),
        TextTokenizer.from_file(files.tokenizer),
    )
    source = OnnxEmbedder.open(files, prepare=False)
    assert (rewritten.embed_documents(TEXTS) * source.embed_documents(TEXTS)).sum(axis=1).mean() < 0.99


def test_preparing_keeps_the_vectors_and_is_found_again(cache: Path) -> None:
    files = find_packaged(CATALOG["all-MiniLM-L6-v2"])
    embedder = OnnxEmbedder.open(files)
    before = embedder.embed_documents(TEXTS)
    assert load_prepared(files) is None
    record = embedder.prepare()
    assert record is not None
    assert record.mean_cosine >= 0.99
    again = OnnxEmbedder.open(files)
    assert again.fingerprint == embedder.fingerprint
    assert (again.embed_documents(TEXTS) * before).sum(axis=1).min() > 0.97

    path = prepared_path(files)
    path.write_bytes(path.read_bytes()[:1000])
    assert load_prepared(files) is None
    assert not path.exists()
    assert (OnnxEmbedder.open(files).embed_documents(TEXTS) * before).sum(axis=1).min() > 0.9999


def test_two_processes_prepare_at_once(cache: Path, tiny_model: Any) -> None:
    code = (
        "import sys; from qmd.llm import open_embedder; e = open_embedder(sys.argv[1], threads=1); "
        "r = e.prepare(); assert r is not None; print(e.fingerprint)"
    )
    folder = str(tiny_model("bert")[0])
    environment = os.environ | {"PYTHONPATH": "src", "QMD_CACHE_DIR": str(cache)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, folder], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(said) == 1
    assert open_embedder(folder).embed_query("bread").shape == (32,)
    assert not list((cache / "prepared").rglob("*.onnx?*"))  # no temporary file is left


def test_preparing_without_a_place_to_write_still_embeds(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = cache / "file"
    blocker.write_text("not a folder")
    monkeypatch.setenv("QMD_CACHE_DIR", str(blocker))
    embedder = OnnxEmbedder.open(find_packaged(CATALOG["all-MiniLM-L6-v2"]))
    assert embedder.prepare() is not None
    assert embedder.embed_query("still here").shape == (384,)


def test_a_cross_encoder_is_prepared_and_keeps_its_scores(
    cache: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qmd.llm.prepare_reranker import MEAN_DIFFERENCE
    from qmd.llm.reranker import ClassifierReranker

    folder, _ = tiny_model("bert-seq-cls")
    reranker = open_reranker(str(folder))
    assert isinstance(reranker, ClassifierReranker)
    before = reranker.score("file permissions", TEXTS[:2])
    for only in ("float", "signed"):
        monkeypatch.setattr("qmd.llm.prepare_reranker.CANDIDATES", (only,))
        monkeypatch.setattr(
            "qmd.llm.prepare_reranker.MEAN_DIFFERENCE", {only: 0.05 if only == "signed" else 1e-4}
        )
        record = reranker.prepare()
        assert record is not None
        assert record.products in (only, "source")
        assert record.mean_cosine >= 1 - max(MEAN_DIFFERENCE[only], 0.05)
        reranker._scored.clear()
        np.testing.assert_allclose(reranker.score("file permissions", TEXTS[:2]), before, atol=0.1)
    weights = read_bert(folder / "model.onnx", heads=2)
    assert weights is not None
    assert weights.classifies
    fused = open_session(write_bert(weights, products="float", pooling="classify"))
    reranker.adopt(fused, "float")
    reranker._scored.clear()
    np.testing.assert_allclose(reranker.score("file permissions", TEXTS[:2]), before, atol=1e-4)
    again = open_reranker(str(folder))
    np.testing.assert_allclose(again.score("file permissions", TEXTS[:2]), before, atol=0.1)


def test_a_first_token_pooling_computes_the_last_layer_for_it_alone(tiny_model: Any) -> None:
    folder, _ = tiny_model("bert")
    weights = read_bert(folder / "model.onnx", heads=2)
    assert weights is not None
    ids = np.array([[1, 9, 10, 11, 2], [1, 12, 2, 0, 0]])
    mask = (ids != 0).astype(np.int64)
    got = open_session(write_bert(weights, products="float", pooling="cls")).run(
        ["pooled"], {"input_ids": ids, "attention_mask": mask}
    )[0]
    hidden = open_session(folder / "model.onnx").run(None, {"input_ids": ids, "attention_mask": mask})[0]
    np.testing.assert_allclose(got, hidden[:, 0], atol=1e-4)


def test_a_last_token_pooling_stays_with_its_file(tiny_model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "last"
    shutil.copytree(tiny_model("bert")[0], folder)
    variants = (ModelVariant("fp32", ("model.onnx",)),)
    card = ModelCard("last", "embedding", 32, 64, pooling="last_token", variants=variants)
    (folder / "card.json").write_text(json.dumps(asdict(card)))
    model: Any = open_embedder(str(folder))
    before = model.embed_query("bread")
    assert model.prepare() is None
    np.testing.assert_array_equal(model.embed_query("bread"), before)
