"""Tiny random models of real architectures: ONNX through QMD against transformers, to 1e-4."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qmd.errors import ModelError, UsageError
from qmd.llm import open_embedder, open_generator, open_reranker
from qmd.llm.reranker import CausalReranker, ClassifierReranker
from qmd.search.rerank import LLMReranker

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
Build = Callable[[str], tuple[Path, Any]]
TEXTS = ["how to change file permissions", "bread", "the weather of the river and the bridge"]


@pytest.mark.parametrize("kind", ["bert", "bert-one-row", "xlm-r", "modernbert", "jina-bert"])
def test_pooled_vectors_equal_transformers(kind: str, tiny_model: Build) -> None:
    folder, model = tiny_model(kind)
    embedder = open_embedder(str(folder))
    got = embedder.embed_documents(TEXTS)
    for text, vector in zip(TEXTS, got, strict=True):
        ids = torch.tensor([embedder._tokenizer._tokenizer.encode(text).ids])  # type: ignore[attr-defined]
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0]
        wanted = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        np.testing.assert_allclose(vector, wanted, atol=1e-4)


def test_a_decoder_that_embeds_starts_without_a_cache_and_is_read_at_its_last_token(
    tiny_model: Build,
) -> None:
    """Qwen3-Embedding as the hub has it: hidden states, and keys and values that nobody goes on with."""
    folder, model = tiny_model("qwen3-embedding")
    embedder: Any = open_embedder(str(folder))
    assert "past_key_values.0.key" in embedder._session()[1].inputs
    got = embedder.embed_documents([*TEXTS, ""])
    assert np.isfinite(got).all()
    for text, vector in zip(TEXTS, got, strict=False):
        ids = torch.tensor([embedder._tokenizer._tokenizer.encode(text).ids])
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0, -1]
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(hidden, dim=0).numpy(), atol=1e-4)


def test_a_graph_that_pools_by_itself_is_taken_at_its_word(tiny_model: Build) -> None:
    folder, model = tiny_model("bert-pooled")
    embedder: Any = open_embedder(str(folder))
    record = embedder.prepare()
    assert record is not None
    assert record.products == "source"  # no rewritten form gives these vectors: the source stays in use
    got = embedder.embed_documents(TEXTS)
    for text, vector in zip(TEXTS, got, strict=True):
        ids = torch.tensor([embedder._tokenizer._tokenizer.encode(text).ids])
        with torch.no_grad():
            first = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0, 0]
        wanted = torch.nn.functional.normalize(3 - first.flip(0), dim=0).numpy()
        np.testing.assert_allclose(vector, wanted, atol=1e-4)


def test_a_network_that_only_looks_like_bert_is_left_as_it_is(tiny_model: Build) -> None:
    from qmd.llm.bert_graph import read_bert

    embedder: Any = open_embedder(str(tiny_model("jina-bert")[0]))
    assert read_bert(tiny_model("jina-bert")[0] / "model.onnx") is None
    assert embedder.prepare() is None
    padded = embedder.embed_documents([*TEXTS, "bread " * 40])
    np.testing.assert_allclose(padded[:3], embedder.embed_documents(TEXTS), atol=1e-4)


@pytest.mark.soak
def test_a_hundred_thousand_texts_and_strange_ones(tiny_model: Build) -> None:
    embedder = open_embedder(str(tiny_model("bert")[0]))
    strange = ["", "\x00\x01\xff", "😀" * 50, "\udc80", "x" * 20_000]
    vectors = embedder.embed_documents([*strange, *(f"n{i}" for i in range(100_000))])
    assert vectors.shape == (100_005, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(vectors[-1], embedder.embed_documents(["n99999"])[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "xlm-r"])
def test_the_fused_float_graph_keeps_every_architecture_it_knows(kind: str, tiny_model: Build) -> None:
    from qmd.llm.bert_graph import read_bert, write_bert
    from qmd.llm.files import describe_folder
    from qmd.llm.open import find_card
    from qmd.llm.session import open_session

    folder, _ = tiny_model(kind)
    card = find_card(str(folder))
    files = describe_folder(card, card.variants[0], folder, "0" * 64)
    weights = read_bert(files.graph, heads=files.heads, first_position=files.first_position)
    assert weights is not None
    fused = open_session(write_bert(weights, products="float", pooling="mean"))
    embedder: Any = open_embedder(str(folder))
    wanted = embedder.embed_documents(TEXTS)
    embedder.adopt(fused)
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), wanted, atol=1e-4)


def test_a_classifier_scores_pairs_as_transformers_does(tiny_model: Build) -> None:
    folder, model = tiny_model("bert-seq-cls")
    reranker = open_reranker(str(folder))
    reranker.card = reranker.card.__class__(name="x", role="reranker", max_tokens=128)
    scores = reranker.score("file permissions", TEXTS)
    tokenizer = reranker._tokenizer._tokenizer  # type: ignore[attr-defined]
    for text, score in zip(TEXTS, scores, strict=True):
        e = tokenizer.encode("file permissions", text)
        ids, types = torch.tensor([e.ids]), torch.tensor([e.type_ids])
        with torch.no_grad():
            logit = model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=types)[0][0, 0]
        assert score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-4)


@pytest.mark.parametrize("kind", ["qwen3-causal", "qwen3-no-cache"])
def test_a_causal_model_given_as_reranker_judges_by_yes_and_no(kind: str, tiny_model: Build) -> None:
    folder, model = tiny_model(kind)
    reranker = open_reranker(str(folder))
    assert isinstance(reranker, CausalReranker)
    scores = reranker.score("file permissions", TEXTS)
    tokenizer = reranker._tokenizer._tokenizer
    for text, score in zip(TEXTS, scores, strict=True):
        head, bodies, tail, _ = reranker._parts("file permissions", [text])
        ids = torch.tensor([[*head, *bodies[0], *tail]])
        with torch.no_grad():
            last = model(input_ids=ids).logits[0, -1]
        pair = last[[tokenizer.token_to_id("no"), tokenizer.token_to_id("yes")]]
        assert score == pytest.approx(float(torch.softmax(pair, 0)[1]), abs=1e-4)


@pytest.mark.parametrize("kind", ["qwen3-seq-cls", "qwen3-seq-cls-last-column"])
def test_qwen3_as_classifier_uses_the_template_and_equals_transformers(kind: str, tiny_model: Build) -> None:
    folder, model = tiny_model(kind)
    reranker = open_reranker(str(folder))
    assert isinstance(reranker, ClassifierReranker)
    scores = reranker.score("file permissions", TEXTS)
    head, bodies, tail, _ = reranker._parts("file permissions", TEXTS)
    for body, score in zip(bodies, scores, strict=True):
        ids = torch.tensor([[*head, *body, *tail]])
        with torch.no_grad():
            logit = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0, 0]
        assert score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-4)


def test_the_shared_head_runs_once_and_logits_bound_a_batch(
    tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny_model("qwen3-causal")[0])
    whole: Any = open_reranker(folder)
    texts = [f"{text} {number}" for number in range(4) for text in TEXTS]
    wanted = whole.score("file permissions", texts)
    width = whole._signature.outputs["logits"][-1]
    monkeypatch.setattr("qmd.llm.reranker.LOGITS_BYTES", 4 * width * 60)
    parts: Any = open_reranker(folder)
    shapes: list[tuple[int, int]] = []
    step = parts._model.step

    def noted(ids: Any, *rest: Any, **how: Any) -> Any:
        shapes.append(ids.shape)
        return step(ids, *rest, **how)

    parts._model.step = noted
    np.testing.assert_allclose(parts.score("file permissions", texts), wanted, atol=1e-4)
    head, *batches = shapes
    assert head[0] == 1
    assert len(batches) > 2
    assert all(rows == 1 or rows * tokens <= 60 for rows, tokens in batches)
    assert sum(rows for rows, _ in batches) == len(texts)
    shapes.clear()
    parts.score("file permissions", ["another text"])
    assert len(shapes) == 1  # the head is still held


def test_the_last_logits_alone_are_asked_for_where_they_can_be(tiny_model: Build, tmp_path: Path) -> None:
    import shutil
    import sys

    from qmd.llm.decoder import KEEP

    tiny: Any = sys.modules[tiny_model.__module__].tiny  # type: ignore[attr-defined]
    folder, model = tiny_model("qwen3-causal")
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(folder / name, tmp_path / name)
    tiny.export_causal(model, tmp_path, keep=True)
    ours: Any = open_reranker(str(tmp_path))
    assert KEEP in ours._model.signature.inputs
    shapes: list[tuple[int, ...]] = []
    step = ours._model.step

    def noted(*given: Any, **how: Any) -> Any:
        logits, cache = step(*given, **how)
        shapes.append(logits.shape[:2])
        return logits, cache

    ours._model.step = noted
    got = ours.score("file permissions", TEXTS)
    np.testing.assert_allclose(got, open_reranker(str(folder)).score("file permissions", TEXTS), atol=1e-5)
    assert shapes[0] == (1, 1)
    assert shapes[1][1] < max(map(len, ours._tokenizer.content_ids(TEXTS)))


@pytest.mark.parametrize("kind", ["bert-seq-cls", "qwen3-causal", "qwen3-seq-cls"])
def test_any_text_gets_a_probability(kind: str, tiny_model: Build) -> None:
    reranker = open_reranker(str(tiny_model(kind)[0]))
    strange = ["", " ", "\x00\x01\xff", "😀" * 300, "\udc80broken", "x" * 20_000, "中文 " * 100]
    for query in ("bread", "", "😀", "\udc80"):
        scores = reranker.score(query, strange)
        assert scores.shape == (len(strange),)
        assert ((scores >= 0) & (scores <= 1)).all()
    assert reranker.score("bread", []).shape == (0,)
    with pytest.raises(ModelError, match="the query alone fills"):
        reranker.score("bread " * 20_000, ["x"])


def test_pairs_are_told_apart_to_the_letter(tiny_model: Build) -> None:
    reranker: Any = open_reranker(str(tiny_model("bert-seq-cls")[0]))
    pairs = [("bread\0river", "weather"), ("bread", "river\0weather"), ("bread", "\udc80"), ("bread", "?")]
    for query, text in pairs:
        reranker.score(query, [text])
    assert len(reranker._scored) == len(pairs)


@pytest.mark.parametrize(("logits", "said"), [([[np.nan]], "no numbers"), ([[0.1, 0.2, 0.7]], "3 kinds")])
def test_scores_that_mean_nothing_are_refused(
    logits: Any, said: str, tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def run(self, *_: Any) -> Any:
            return [np.array(logits, np.float32)]

    reranker: Any = open_reranker(str(tiny_model("bert-seq-cls")[0]))
    monkeypatch.setattr(reranker, "session", Session())
    with pytest.raises(ModelError, match=said):
        reranker.score("bread", ["river"])


def test_any_prompt_can_be_written_from(tiny_model: Build) -> None:
    generator = open_generator(str(tiny_model("qwen3-causal")[0]))
    for prompt in ("", "\x00\x01", "😀" * 40, "\udc80"):
        assert "".join(generator.generate(prompt, max_new_tokens=4)) is not None
    with pytest.raises(UsageError, match="Shorten the prompt"):
        generator.generate("bread " * 20_000)
    nan, inf = float("nan"), float("inf")
    for wrong in (
        {"top_p": 0.0},
        {"top_p": nan},
        {"temperature": -1.0},
        {"temperature": nan},
        {"temperature": inf},
    ):
        with pytest.raises(UsageError, match="must lie"):
            generator.generate("x", **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="seed must be >= 0"):
        generator.generate("x", seed=-1)
    generator.card = replace(generator.card, template="")
    with pytest.raises(UsageError, match="the prompt is empty"):
        generator.generate("")


def test_scored_pairs_are_not_run_again(tiny_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker: Any = open_reranker(str(tiny_model("qwen3-causal")[0]))
    first = reranker.score("bread", TEXTS)
    monkeypatch.setattr(reranker, "_forward", lambda *_: pytest.fail("ran again"))
    np.testing.assert_array_equal(reranker.score("bread", TEXTS[::-1]), first[::-1])


def test_greedy_tokens_equal_transformers_and_streams_stop(tiny_model: Build) -> None:
    folder, model = tiny_model("qwen3-causal")
    generator: Any = open_generator(str(folder))
    prompt = generator._tokenizer.content_ids(["how to change the file " * 40])[0]
    got = list(generator.generate_ids(prompt, max_new_tokens=12))
    ids = torch.tensor([prompt])
    with torch.no_grad():
        full = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
    wanted = full[0, len(prompt) :].tolist()
    assert got == wanted[: len(got)]
    assert len(got) == 12 or wanted[len(got)] in generator._ends

    text = "".join(generator.generate("bread", max_new_tokens=20))
    assert "".join(generator.generate("bread", max_new_tokens=20)) == text
    cut = text[3:6]
    assert "".join(generator.generate("bread", max_new_tokens=20, stop=[cut])) == text[: text.index(cut)]
    one, two, other = (
        "".join(generator.generate("bread", max_new_tokens=20, temperature=1.0, top_p=0.9, seed=s))
        for s in (1, 1, 2)
    )
    assert one == two != other


def test_a_text_that_another_one_overtook_says_so(tiny_model: Build) -> None:
    generator = open_generator(str(tiny_model("qwen3-causal")[0]))
    alone = "".join(generator.generate("bread", max_new_tokens=12))
    first, second = (generator.generate(text, max_new_tokens=12) for text in ("weather", "bread"))
    next(first)
    assert "".join(second) == alone
    with pytest.raises(UsageError, match="began another"):
        list(first)


def test_a_grammar_holds_the_text(tiny_model: Build) -> None:
    pytest.importorskip("llguidance")
    generator = open_generator(str(tiny_model("qwen3-causal")[0]))
    grammar = 'start: ("lex: " | "vec: ") /[a-c]{3,6}/ "\\n"'
    text = "".join(generator.generate("bread", max_new_tokens=40, grammar=grammar, temperature=1.0, seed=3))
    assert text[:5] in {"lex: ", "vec: "}
    assert text.endswith("\n")
    assert set(text[5:-1]) <= set("abc")
    with pytest.raises(UsageError, match="grammar"):
        list(generator.generate("bread", grammar="start: ((("))


def test_wrong_kind_of_model_is_refused_with_the_remedy(tiny_model: Build) -> None:
    with pytest.raises(ModelError, match="as embedding a model is needed that gives vectors"):
        open_embedder(str(tiny_model("qwen3-causal")[0]))
    with pytest.raises(ModelError, match="gives vectors; as generation"):
        open_generator(str(tiny_model("bert")[0]))
    with pytest.raises(ModelError, match="as reranker a model is needed that scores pairs or writes text"):
        open_reranker(str(tiny_model("bert")[0]))


def test_llm_reranker_as_the_specification_writes_it(tiny_model: Build) -> None:
    folder = str(tiny_model("qwen3-causal")[0])
    reranker = LLMReranker(folder, folder)
    documents = [{"content": t, "title": "T", "id": i} for i, t in enumerate(TEXTS)]
    ranked = reranker.rerank("bread", documents, top_k=2)
    assert len(ranked) == 2
    assert ranked[0]["score"] >= ranked[1]["score"]
    assert {"content", "title", "id", "score"} == set(ranked[0])
    assert "score" not in documents[0]
    assert reranker.rerank("bread", []) == []
    with pytest.raises(UsageError, match="content"):
        reranker.rerank("bread", [{"title": "no text"}])


def bare_graph(folder: Path, *, ids: str = "input_ids", kind: int = onnx.TensorProto.INT32) -> None:
    """A graph that looks words up and asks for nothing but their ids."""
    table = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", ids], ["last_hidden_state"])],
        "bare",
        [helper.make_tensor_value_info(ids, kind, ["rows", "length"])],
        [helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["rows", "length", 32])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")


def test_a_graph_may_want_narrow_ids_and_no_mask(tmp_path: Path, tiny_model: Build) -> None:
    shutil.copy(tiny_model("bert")[0] / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": null, "dim": 32, "max_position_embeddings": 64}')
    bare_graph(tmp_path)
    vectors = open_embedder(str(tmp_path)).embed_documents(TEXTS)
    assert vectors.shape == (3, 32)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("config", "ids", "told"),
    [
        ('{"hidden_size": 64}', "input_ids", "gives vectors of 32"),
        ("{}", "input_ids", "gives vectors of 32"),
        ('{"hidden_size": 32, "max_position_embeddings": 2}', "input_ids", "reads 2 tokens"),
        ('{"hidden_size": 32}', "words", "the graph takes words"),
    ],
)
def test_what_does_not_fit_a_graph_is_named(
    config: str, ids: str, told: str, tmp_path: Path, tiny_model: Build
) -> None:
    shutil.copy(tiny_model("bert")[0] / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text(config)
    bare_graph(tmp_path, ids=ids)
    with pytest.raises(ModelError, match=told):
        open_embedder(str(tmp_path))
