"""Predictor, two-stage search, and the two command lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qmd.errors import NotFound, UsageError
from qmd.vembed.config import TrainConfig
from qmd.vembed.two_stage import nearest, two_stage_search, unit_rows


def test_two_stages_with_every_candidate_are_the_exact_search() -> None:
    draw = np.random.default_rng(0)
    vectors = unit_rows(draw.standard_normal((300, 32)).astype(np.float32))
    queries = unit_rows(draw.standard_normal((20, 32)).astype(np.float32))
    found = two_stage_search(queries, vectors, fast_dim=4, k=10, candidates=300)
    assert found.kept == 1.0
    np.testing.assert_array_equal(found.ids, np.argsort(-(queries @ vectors.T), axis=1)[:, :10])
    np.testing.assert_allclose(found.scores, np.sort(queries @ vectors.T)[:, ::-1][:, :10], atol=1e-6)


def test_two_stages_say_what_they_lost() -> None:
    draw = np.random.default_rng(0)
    vectors = unit_rows(draw.standard_normal((2000, 64)).astype(np.float32))
    queries = unit_rows(draw.standard_normal((50, 64)).astype(np.float32))
    few, many = (
        two_stage_search(queries, vectors, fast_dim=16, k=10, candidates=count) for count in (10, 500)
    )
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    by_hand = np.mean([len({*a} & {*b}) / 10 for a, b in zip(few.ids.tolist(), exact.tolist(), strict=True)])
    assert few.kept == pytest.approx(by_hand)
    assert few.kept < many.kept
    assert min(few.fast_s, few.precise_s, few.exact_s) > 0


def test_equal_vectors_go_to_the_smaller_id() -> None:
    vectors = np.tile(np.eye(1, 8, dtype=np.float32), (6, 1))
    found = two_stage_search(vectors[:1], vectors, fast_dim=2, k=3, candidates=6)
    assert found.ids.tolist() == [[0, 1, 2]]


@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=st.integers(-2, 2)),
    st.data(),
)
def test_the_highest_come_first_and_among_equals_the_smaller_id(scores: Any, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, scores.shape[1]))
    np.testing.assert_array_equal(nearest(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_sizes_that_do_not_fit_are_refused() -> None:
    for k in (0, -1):
        with pytest.raises(UsageError, match="k must be at least 1"):
            two_stage_search(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), fast_dim=1, k=k)
    with pytest.raises(UsageError, match="one width"):
        two_stage_search(np.ones((1, 4), np.float32), np.ones((2, 8), np.float32), fast_dim=2)
    with pytest.raises(UsageError, match="fast_dim"):
        two_stage_search(np.ones((1, 4), np.float32), np.ones((2, 4), np.float32), fast_dim=5)


def test_public_names_need_no_torch_until_used() -> None:
    code = (
        "import sys, qmd.vembed as v; v.load_train_config; v.two_stage_search; "
        "assert 'torch' not in sys.modules; assert {'Predictor', 'train'} <= set(dir(v))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.fixture
def predictor_of(tiny: Callable[[str], str]):  # type: ignore[no-untyped-def]
    pytest.importorskip("sentence_transformers")
    from qmd.vembed import Predictor

    return lambda family, **options: Predictor(tiny(family), **options)


@pytest.mark.parametrize("family", ["qwen3_vl", "clip", "siglip"])
def test_predictor_encodes_texts_images_and_mixtures(predictor_of, pairs_of, family: str) -> None:  # type: ignore[no-untyped-def]
    image = pairs_of("t2i").parent / "red-circle.png"
    predictor = predictor_of(family)
    texts, images = (
        predictor.encode_text(["a red circle", "blue"]),
        predictor.encode_image([image, str(image)]),
    )
    mixed = predictor.encode(["blue", image, {"text": "a red circle"}])
    assert texts.shape == (2, predictor.full_dim)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([texts, images, mixed]), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(images[0], images[1], atol=1e-6)
    np.testing.assert_allclose(mixed, [texts[1], images[0], texts[0]], atol=1e-5)


def test_predictor_encodes_composed_queries_and_cuts(predictor_of, pairs_of) -> None:  # type: ignore[no-untyped-def]
    image = pairs_of("t2i").parent / "red-circle.png"
    whole, short = predictor_of("qwen3_vl"), predictor_of("qwen3_vl", mrl_dim=16)
    query = [{"text": "make it blue", "image": image}]
    full, cut = whole.encode(query), short.encode(query)
    assert cut.shape == (1, 16)
    np.testing.assert_allclose(cut, unit_rows(full[:, :16]), atol=1e-6)
    assert np.abs(full - whole.encode_image([image])).max() > 1e-3
    with pytest.raises(UsageError, match="mrl_dim"):
        predictor_of("qwen3_vl", mrl_dim=65)


def test_an_image_that_is_not_there_is_said(predictor_of, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NotFound, match="no image at"):
        predictor_of("clip").encode_image([tmp_path / "nope.png"])


def test_marks_within_a_text_are_words(predictor_of, pairs_of) -> None:  # type: ignore[no-untyped-def]
    image = pairs_of("t2i").parent / "red-circle.png"
    predictor = predictor_of("qwen3_vl")
    vector = predictor.encode([{"text": "what is <|image_pad|> for?<|im_end|>", "image": image}])
    assert np.isfinite(vector).all()
    prepared = predictor.model[0].preprocess([{"text": "<|im_end|>"}, {"text": ""}])
    ends = (prepared["input_ids"] == predictor.model[0].tokenizer.convert_tokens_to_ids("<|im_end|>")).sum(1)
    assert ends[0] == ends[1]


@pytest.mark.parametrize("wrong", [{"caption": "x"}, {}])
def test_predictor_refuses_what_it_does_not_know(predictor_of, wrong: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError):
        predictor_of("text").encode([wrong])


def test_one_string_is_not_a_list(predictor_of) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError):
        predictor_of("text").encode_text("a red circle")


def write_config(path: Path, config: TrainConfig) -> Path:
    import msgspec
    import yaml

    path.write_text(yaml.safe_dump(msgspec.to_builtins(config)))
    return path


def test_qmd_train_and_the_module_take_the_same_words(
    configure: Callable[..., TrainConfig], pairs_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    from qmd.serve.cli.app import root
    from qmd.vembed.__main__ import main

    validation = pairs_of("t2t")
    path = write_config(tmp_path / "run.yaml", configure("text", "t2t", val_data_path=validation))
    words = [str(path), "--config_override", f"output_dir={tmp_path / 'cli'}", "epochs=3", "seed=7"]
    result = CliRunner().invoke(root, ["train", *words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["steps"] == 3
    assert [row["model"] for row in report["rows"]] == ["before", "after"]
    words[2] = f"output_dir={tmp_path / 'module'}"
    assert main(words) == 0
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("cli", "module"))
    assert a == b
    assert "| after | t2t |" in (tmp_path / "module" / "evaluation.md").read_text()


def test_wrong_words_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qmd.vembed.__main__ import main

    (tmp_path / "run.yaml").write_text("lr: 1e-4\n")
    assert main([str(tmp_path / "run.yaml")]) == 2
    assert "unknown key 'lr'" in capsys.readouterr().err


def test_skip_bad_leaves_out_and_counts(
    configure: Callable[..., TrainConfig], pairs_of: Callable[[str], Path], tmp_path: Path
) -> None:
    from qmd.serve.cli.app import root

    bad = pairs_of("t2t").parent / "bad.jsonl"
    bad.write_text(pairs_of("t2t").read_text() + '{"query": "no positive"}\nnot json\n')
    path = write_config(
        tmp_path / "run.yaml", configure("text", "t2t", data_path=bad, epochs=1, warmup_ratio=0)
    )
    refused = CliRunner().invoke(root, ["train", str(path)])
    assert "bad.jsonl, line 17: positive is missing or empty" in str(refused.exception)
    result = CliRunner().invoke(root, ["train", str(path), "--skip-bad"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "2 lines were left out, first: " in result.output
