"""Rerankers: lists from pairs, runs that learn, resume bit for bit, and scores that are the same everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

import torch

from qmd.errors import ConfigError, ModelError
from qmd.llm import open_reranker
from qmd.vembed.config import TrainConfig, load_train_config
from qmd.vembed.data import DataError, Item, Pair
from qmd.vembed.evaluation.lists import evaluate_lists, score_with
from qmd.vembed.rerank.export import export_reranker
from qmd.vembed.rerank.lists import CandidateList, candidate_lists, training_rows
from qmd.vembed.rerank.model import build_reranker, load_reranker
from qmd.vembed.run import train

Configure = Callable[..., TrainConfig]


@pytest.fixture
def reranking(
    tiny: Callable[[str], str], pairs_of: Callable[[str], Path], tmp_path: Path
) -> Callable[..., TrainConfig]:
    """`reranking(family, key=value...)`: sixteen queries with a negative each, told apart by its first word."""
    rows = map(json.loads, pairs_of("t2t").read_text().splitlines())
    easy = tmp_path / "easy.jsonl"
    easy.write_text("".join(json.dumps(row | {"negative": f"make it {row['query']}"}) + "\n" for row in rows))

    def get(family: str, **options: object) -> TrainConfig:
        base = {
            "task": "rerank",
            "model_name_or_path": tiny(family),
            "data_path": easy,
            "val_data_path": easy,
            "output_dir": tmp_path / "out",
            "batch_size": 8,
            "num_negatives": 1,
            "learning_rate": "3e-3",
            "logging_steps": 1,
            "torch_dtype": "float32",
            "max_length": 512 if family == "causal" else 64,
        }
        return load_train_config(overrides=[f"{key}={value}" for key, value in (base | options).items()])

    return get


def pair(query: str, positive: str, *negatives: str, line: int = 1) -> Pair:
    return Pair(Item(query), Item(positive), tuple(map(Item, negatives)), "t2t", line)


# ---- lists
def test_equal_queries_are_one_list_and_no_text_is_on_both_sides() -> None:
    lists = candidate_lists([pair("q", "a", "b", "c"), pair("q", "b", "d", "d"), pair("r", "e", line=3)])
    assert lists == [CandidateList("q", ("a", "b"), ("c", "d"), 1), CandidateList("r", ("e",), (), 3)]


def test_rows_have_the_same_number_of_negatives_and_never_a_positive_among_them() -> None:
    lists = candidate_lists(
        [pair("q", "a", "x"), pair("q", "b"), pair("r", "c", "y", "z", "w"), pair("s", "d")]
    )
    rows = training_rows(lists, negatives=2, seed=3)
    right = {row.query: {*row.positives} for row in lists}
    assert [(query, texts[0]) for query, texts, _ in rows] == [("q", "a"), ("q", "b"), ("r", "c"), ("s", "d")]
    for query, texts, labels in rows:
        assert labels == [1, 0, 0]
        assert len({*texts}) == 3
        assert not right[query] & {*texts[1:]}
    assert "x" in rows[0][1]
    assert {*rows[2][1][1:]} < {"y", "z", "w"}
    assert rows == training_rows(lists, negatives=2, seed=3)


def test_too_few_texts_for_the_negatives_is_said() -> None:
    with pytest.raises(DataError, match="num_negatives"):
        training_rows(candidate_lists([pair("q", "a"), pair("r", "b")]), negatives=2, seed=0)


def test_images_are_refused() -> None:
    picture = Pair(Item("q"), Item(image=Path("a.png")), (), "t2i", 7)
    with pytest.raises(DataError, match="line 7"):
        candidate_lists([picture])


def test_figures_of_a_list_are_those_of_its_ranks() -> None:
    lists = [CandidateList("q", ("a",), ("b", "c"), 1), CandidateList("r", ("a",), ("b", "c"), 2)]
    by_text = {"a": 2.0, "b": 3.0, "c": 1.0}
    row = evaluate_lists(lambda _, texts: [by_text[text] for text in texts], lists, name="x")
    assert row.mrr.value == pytest.approx(0.5)
    assert row.ndcg.value == pytest.approx(1 / np.log2(3))
    assert row.ndcg.low <= row.ndcg.value <= row.ndcg.high
    even = evaluate_lists(lambda _, texts: [0.0] * len(texts), lists, name="ties")
    assert even.mrr.value == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="this query has none"):
        evaluate_lists(lambda _, texts: [0.0], [CandidateList("q", ("a",), (), 4)], name="x")


# ---- options
@pytest.mark.parametrize(
    "given,complaint",
    [
        ({"loss_type": "infonce"}, "does not fit task 'rerank'"),
        ({"retrieval_mode": "t2i"}, "t2t"),
        ({"use_mrl": "true"}, "use_mrl"),
        ({"use_gradient_cache": "true"}, "use_gradient_cache"),
        ({"encoder_mode": "clip"}, "encoder_mode"),
        ({"num_negatives": 0}, "num_negatives"),
        ({"task": "embed", "loss_type": "infonce", "score_head": "tokens"}, "score_head"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    reranking: Callable[..., TrainConfig], given: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        reranking("text", **given)


def test_a_reranker_loss_is_no_embedding_loss() -> None:
    with pytest.raises(ConfigError, match="does not fit task 'embed'"):
        load_train_config(
            overrides=["model_name_or_path=m", "data_path=d", "output_dir=o", "loss_type=listwise"]
        )


# ---- runs
STEADY = {"scheduler_type": "constant", "batch_size": 4, "epochs": 5}


@pytest.mark.parametrize(
    "family,loss,options",
    [
        ("text", "listwise", {}),
        ("text", "lambda", {}),
        ("text", "binary", {}),
        ("text", "listwise", {"score_head": "tokens"}),
        ("causal", "listwise", {}),
        ("causal", "listwise", {"use_lora": "true", "learning_rate": "1e-2"}),
    ],
)
def test_every_loss_and_form_learns_and_reads_back(
    reranking: Callable[..., TrainConfig], family: str, loss: str, options: dict[str, object]
) -> None:
    config = reranking(family, loss_type=loss, eval_strategy="no", save_steps=1000, **STEADY, **options)
    report = train(config)
    history = json.loads((Path(config.output_dir) / "curve.json").read_text())
    curve = [row["loss"] for row in history if "loss" in row]
    assert np.mean(curve[-3:]) < 0.8 * curve[0]
    before, after = report.rows
    assert after.ndcg.value > before.ndcg.value
    score = score_with(load_reranker(config.output_dir))
    again = evaluate_lists(score, candidate_lists(pairs_in(config)), name="read back")
    assert again.ndcg.value == pytest.approx(report.metrics["ndcg@10"])
    assert "nDCG@10" in (Path(config.output_dir) / "evaluation.md").read_text()


def pairs_in(config: TrainConfig) -> tuple[Pair, ...]:
    from qmd.vembed.data import read_pairs

    return read_pairs(config.data_path, retrieval_mode="t2t").pairs


@pytest.mark.parametrize("head", ["first", "tokens"])
def test_resume_continues_bit_for_bit(
    reranking: Callable[..., TrainConfig], tmp_path: Path, head: str
) -> None:
    whole = reranking("text", epochs=2, save_steps=2, eval_strategy="no", score_head=head)
    train(whole)
    stopped = msgspec.structs.replace(whole, output_dir=str(tmp_path / "again"))
    train(stopped)
    for file in sorted((tmp_path / "again" / "checkpoints" / "checkpoint-4").rglob("*"), reverse=True):
        file.unlink()
    (tmp_path / "again" / "checkpoints" / "checkpoint-4").rmdir()
    (tmp_path / "again" / "model.safetensors").unlink()
    assert train(stopped, resume=True).steps == 4
    files = [path.name for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(files) == (2 if head == "tokens" else 1)
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_head_that_compares_tokens_knows_something_before_it_is_taught(
    reranking: Callable[..., TrainConfig], tiny: Callable[[str], str]
) -> None:
    model = build_reranker(reranking("text", score_head="tokens"))
    same, other = model.predict([("a red circle", "a red circle"), ("a red circle", "the square is blue")])
    assert same > other
    with pytest.raises(ModelError, match="for encoders"):
        build_reranker(reranking("causal", score_head="tokens"))


def test_the_head_learns_faster_than_the_model(reranking: Callable[..., TrainConfig]) -> None:
    config = reranking("text", score_head="tokens", freeze_layers=2, epochs=1, warmup_ratio=0)
    assert not build_reranker(config)[0].head.weigh.weight.any()
    train(config)
    assert load_reranker(config.output_dir)[0].head.weigh.weight.abs().max() > config.learning_rate


def test_frozen_layers_stay_as_they_were(reranking: Callable[..., TrainConfig]) -> None:
    config = reranking("text", epochs=1, warmup_ratio=0, freeze_layers=1, val_data_path="null")
    start = build_reranker(config)[0].model.state_dict()
    train(config)
    after = load_reranker(config.output_dir)[0].model.state_dict()
    moved = {key for key in start if not torch.equal(start[key], after[key])}
    assert not any(key.startswith(("bert.embeddings", "bert.encoder.layer.0.")) for key in moved)
    assert any(key.startswith("bert.encoder.layer.1.") for key in moved)
    with pytest.raises(ModelError, match="freeze_layers is 9"):
        build_reranker(reranking("text", freeze_layers=9))


# ---- export
@pytest.mark.parametrize("family,head", [("text", "first"), ("text", "tokens"), ("causal", "first")])
def test_one_score_everywhere(
    reranking: Callable[..., TrainConfig], tmp_path: Path, family: str, head: str
) -> None:
    config = reranking(family, epochs=6, val_data_path="null", score_head=head)
    train(config)
    query, texts = (
        "a red circle",
        ["the circle is red", "the square is blue", "the is", "a yellow circle is black"],
    )
    wanted = load_reranker(config.output_dir).predict(
        [(query, text) for text in texts], activation_fn=torch.nn.Sigmoid()
    )
    report = export_reranker(
        config.output_dir, tmp_path / "onnx", name="mine", license="MIT", languages=["en"]
    )
    assert report.fp32_difference <= 1e-4
    full, small = (open_reranker(str(tmp_path / "onnx"), precision=p) for p in ("fp32", "int8"))
    np.testing.assert_allclose(full.score(query, texts), wanted, atol=1e-4)
    np.testing.assert_allclose(small.score(query, texts), wanted, atol=0.1)
    assert full.fingerprint != small.fingerprint
    assert full.card.languages == ("en",)
    assert report.files["model_int8.onnx"] < report.files["model.onnx"]
    # A pair's score does not depend on its neighbours in the batch.
    np.testing.assert_allclose(
        [small.score(query, [text])[0] for text in texts],
        open_reranker(str(tmp_path / "onnx"), precision="int8").score(query, texts),
        atol=1e-5,
    )
    assert (
        len(json.loads((tmp_path / "onnx" / "card.json").read_text())["trained"]["data"]["train"]["sha256"])
        == 64
    )


def test_a_changed_file_or_another_role_is_refused(
    reranking: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    from qmd.llm import open_embedder

    config = reranking("text", epochs=1, warmup_ratio=0, val_data_path="null")
    train(config)
    export_reranker(config.output_dir, tmp_path / "onnx", int8=False)
    with pytest.raises(ModelError, match="not for embedding"):
        open_embedder(str(tmp_path / "onnx"))
    graph = tmp_path / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="damaged or was changed"):
        open_reranker(str(tmp_path / "onnx"))


# ---- the whole way
def test_the_example_mines_teaches_exports_and_measures(tiny: Callable[[str], str], tmp_path: Path) -> None:
    colours, shapes = ("red", "blue", "green", "black", "yellow"), ("circle", "square", "triangle")
    rows = [
        {
            "query": f"what is {colour} and a {shape}",
            "positive": f"the {shape} is {colour}. " * 9,
            "title": "",
        }
        for colour in colours
        for shape in shapes
    ]
    for name, part in (("taught", rows[:9]), ("kept", rows[9:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    words = [
        tmp_path / "out", tmp_path / "taught.jsonl", tmp_path / "kept.jsonl", "--held-out", "kept", "--license", "MIT",
        f"model_name_or_path={tiny('text')}", "batch_size=4", "num_negatives=2", "freeze_layers=0", "eval_strategy=no",
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    example = root / "examples" / "train_reranker.py"
    done = subprocess.run(
        [sys.executable, str(example), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": str(root / "src")},
    )
    assert done.returncode == 0, done.stderr
    assert "held out: " in done.stdout
    assert json.loads((tmp_path / "out" / "onnx" / "card.json").read_text())["license"] == "MIT"
