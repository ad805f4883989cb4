"""The embedded default model: vectors, windows, bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmd.errors import ModelError
from qmd.llm import open_embedder
from qmd.llm.batches import run_batches
from qmd.llm.cut import doubt_of
from qmd.llm.protocols import DerivedEmbedder, Embedder


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return open_embedder("all-MiniLM-L6-v2")


def test_importing_the_room_imports_no_runtime() -> None:
    code = "import qmd.llm, sys; assert not {'onnxruntime', 'tokenizers', 'torch', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "src"})


def test_vectors_are_unit_rows_and_rank_by_meaning(minilm: Embedder) -> None:
    vectors = minilm.embed_documents(
        ["how to bake bread", "a recipe for sourdough loaves", "the stock market fell"]
    )
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_a_batch_gives_what_single_texts_give(minilm: Embedder) -> None:
    texts = ["one", "two words here", "word " * 200, "", "three little words again"]
    batch = minilm.embed_documents(texts)
    single = np.stack([minilm.embed_documents([t])[0] for t in texts])
    assert (batch * single).sum(axis=1).min() > 0.999


def test_batches_side_by_side_give_what_one_after_another_gives(minilm: Embedder) -> None:
    texts = [f"{word} " * (3 * n + 1) for n, word in enumerate(["bread", "river", "law", "engine"] * 6)]
    one: Any = open_embedder("all-MiniLM-L6-v2", threads=1)
    two: Any = open_embedder("all-MiniLM-L6-v2", threads=2)
    assert (one.workers, two.workers, two.session_threads) == (1, 2, 1)
    np.testing.assert_allclose(two.embed_documents(texts), one.embed_documents(texts), atol=1e-5)


def test_a_batch_that_fails_ends_the_run() -> None:
    done: list[int] = []

    def work(batch: list[int]) -> None:
        if batch == [3]:
            raise ModelError("no memory")
        done.extend(batch)

    with pytest.raises(ModelError, match="no memory"):
        run_batches([[n] for n in range(1000)], work, workers=2)
    assert len(done) < 1000
    run_batches([[1], [2]], done.extend, workers=1)
    assert done[-2:] == [1, 2]


def test_long_text_is_windowed_and_its_end_counts(minilm: Embedder) -> None:
    filler = "the weather was mild and the road was long " * 60
    plain, ending = minilm.embed_documents([filler, filler + "quantum chromodynamics of gluons " * 60])
    query = minilm.embed_query("gluons in quantum chromodynamics")
    assert query @ ending > query @ plain + 0.2
    assert minilm.count_tokens([filler])[0] > minilm.max_tokens


def test_any_text_gives_a_vector(minilm: Embedder) -> None:
    texts = ["", " ", "\x00\x01\x02", "😀" * 1000, "\udc80broken", "x" * 200_000, "中文字符 " * 300]
    vectors = minilm.embed_documents(texts)
    assert np.isfinite(vectors).all()
    assert minilm.embed_documents([]).shape == (0, 384)
    with pytest.raises(TypeError, match="sequence"):
        minilm.embed_documents("one string")


def test_a_folder_with_a_card_is_read_by_its_card(tiny_model: Any, tmp_path: Path) -> None:
    """The form in which `qmd train` exports: card.json with prefixes, sizes and pinned files."""
    import json
    import shutil
    from dataclasses import asdict

    from qmd.llm.files import file_sha256
    from qmd.types import ModelCard, ModelVariant

    folder = tmp_path / "trained"
    shutil.copytree(tiny_model("bert")[0], folder)
    variant = ModelVariant("fp32", ("model.onnx",), file_sha256(folder / "model.onnx"))
    card = ModelCard(
        "mine", "embedding", 32, 64, query_prefix="q: ", doc_prefix="d: ", variants=(variant,), dims=(32, 16)
    )
    (folder / "card.json").write_text(json.dumps(asdict(card) | {"trained": {"steps": 3}}))
    trained, plain = open_embedder(str(folder)), open_embedder(str(tiny_model("bert")[0]))
    assert (trained.card.name, trained.max_tokens) == ("mine", 64)
    np.testing.assert_allclose(
        trained.embed_query("bread"), plain.embed_documents(["q: bread"])[0], atol=1e-5
    )
    np.testing.assert_allclose(trained.embed_documents(["x"]), plain.embed_documents(["d: x"]), atol=1e-5)
    cut = open_embedder(str(folder), dim=16)
    wanted = trained.embed_query("bread")[:16]
    np.testing.assert_allclose(cut.embed_query("bread"), wanted / np.linalg.norm(wanted), atol=1e-6)
    assert cut.embed_documents([]).shape == (0, 16)
    assert isinstance(cut, Embedder)
    assert isinstance(cut, DerivedEmbedder)
    assert cut.base_fingerprint == trained.fingerprint != cut.fingerprint
    assert open_embedder(str(folder), dim=32).fingerprint == trained.fingerprint
    assert (doubt_of(trained.card, 16), doubt_of(trained.card, None)) == ("", "")
    assert "it was for 32, 16" in doubt_of(trained.card, 20)
    with pytest.raises(ModelError, match="gives vectors of 32 numbers, 33 were asked for"):
        open_embedder(str(folder), dim=33)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-9])
    with pytest.raises(ModelError, match="Export the model again"):
        open_embedder(str(folder))
    for none in ([], [{"precision": "fp32", "files": []}]):
        (folder / "card.json").write_text(json.dumps(asdict(card) | {"variants": none}))
        with pytest.raises(ModelError, match=r"card\.json names no graph. Export the model again"):
            open_embedder(str(folder))
    (folder / "card.json").write_text("{}")
    with pytest.raises(ModelError, match="no model card"):
        open_embedder(str(folder))
