"""Drafting in the engine's own loop: the same text, fewer steps, no torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qmd.draft.cost import CostTable
from qmd.draft.decoder import SpeculativeDecoder
from qmd.draft.engine import EngineDrafter, attach_drafter, measured_cost
from qmd.draft.onnx_target import OnnxTarget
from qmd.errors import ModelError
from qmd.llm import open_generator
from qmd.llm.causal_graph import CausalShape, write_causal
from qmd.search.engine_writer import EngineWriter

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "llm" / "tiny.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

PROMPT = [8 + i % 7 for i in range(21)] + [31, 32, 33, 34, 8, 9, 10]
GRAMMAR = 'start: ("a" | "b" | "c"){6,12} "."'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An int8 graph of random weights, as `qmd.llm` writes it from a GGUF file."""
    folder = tmp_path_factory.mktemp("int8")
    vocabulary = tiny.write_tokenizer(folder, pair=False)
    shape = CausalShape(2, 64, 4, 2, 16, 128, vocabulary, 512, 10000.0, 1e-5)
    sizes = {
        "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64), "ffn_gate": (128, 64),
        "ffn_up": (128, 64), "ffn_down": (64, 128), "token_embd": (vocabulary, 64),
    }  # fmt: skip
    random = np.random.default_rng(4)
    made: dict[str, np.ndarray] = {}

    def weights(name):
        part = name.split(".")[-2]
        if "norm" in part:
            return None if part in ("attn_q_norm", "attn_k_norm") else np.ones(64, np.float32)
        if name.endswith("bias") or part not in sizes:
            return None
        return made.setdefault(name, random.normal(0, 0.25, sizes[part]).astype(np.float32))

    (folder / "model.onnx").write_bytes(write_causal(shape, weights, precision="int8"))
    config = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "eos_token_id": 4,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("QMD_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def generator(folder):
    return open_generator(str(folder), threads=1)


class Sometimes:
    """Offers what the text will be, wrong at every fifth place; keeps what it was told."""

    def __init__(self, text, limit=6):
        self.text, self.limit, self.at, self.told = list(text), limit, 0, []

    def start(self, prompt):
        self.at, self.told = 0, []

    def offer(self, limit):
        there = range(self.at, min(len(self.text), self.at + min(limit, self.limit)))
        return [9 if i % 5 == 4 else self.text[i] for i in there]

    def wrote(self, tokens, offered, stood):
        assert list(tokens[:stood]) == list(offered[:stood])
        self.at += len(tokens)
        self.told += tokens


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.9, "seed": 3},
        {"temperature": 1.2, "top_p": 0.8, "seed": 4},
        {"grammar": GRAMMAR},
    ],
)
def test_the_text_is_the_one_written_without_drafting(generator, how):
    plain = list(generator.generate_ids(PROMPT, max_new_tokens=48, **how))
    assert plain
    drafter = Sometimes(plain)
    generator.drafter = drafter
    steps = 0
    feed_each = generator._feed_each

    def counted(tokens):
        nonlocal steps
        steps += 1
        return feed_each(tokens)

    generator._feed_each = counted
    assert list(generator.generate_ids(PROMPT, max_new_tokens=48, **how)) == plain == drafter.told
    assert steps < 0.7 * len(plain)


def test_what_an_interrupted_text_left_behind_does_no_harm(generator):
    plain = list(generator.generate_ids(PROMPT, max_new_tokens=24))
    generator.drafter = Sometimes(plain)
    for stop in (1, 2, 5, 7):
        writing = generator.generate_ids(PROMPT, max_new_tokens=24)
        assert [next(writing) for _ in range(stop)] == plain[:stop]
        writing.close()
        assert list(generator.generate_ids(PROMPT, max_new_tokens=24)) == plain


def test_suffix_drafting_copies_and_counts(generator):
    plain = list(generator.generate_ids(PROMPT, max_new_tokens=120))
    drafter = EngineDrafter(CostTable(0.01, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)))
    generator.drafter = drafter
    for _ in range(2):  # the second time the first answer is known
        assert list(generator.generate_ids(PROMPT, max_new_tokens=120)) == plain
    s = drafter.stats
    assert s.new_tokens == len(plain)
    assert s.accepted_by_origin["answer"] > 0.6 * len(plain)
    assert s.steps < 0.6 * len(plain)
    assert s.tokens_per_step > 1.5
    assert s.accepted <= s.proposed


def test_the_graph_is_a_target_of_the_decoder_too(generator):
    target = OnnxTarget(
        generator.model, vocab_size=generator.model.vocab_size, max_context=512, fingerprint="int8"
    )
    plain = SpeculativeDecoder([], target, eos_token_ids=[])
    fast = SpeculativeDecoder(None, target, gamma=16, cost=CostTable.flat(), eos_token_ids=[])
    expected = plain.generate(PROMPT, 60, temperature=0)
    assert fast.generate(PROMPT, 60, temperature=0).tolist() == expected.tolist()
    assert fast.stats.proposed > 0


def test_several_texts_are_kept_and_the_one_with_the_same_start_goes_on(generator):
    fed = []
    feed = generator._feed
    generator._feed = lambda tokens: (fed.append(len(tokens)), feed(tokens))[1]
    passages = [[10 + (i * k) % 80 for i in range(100)] for k in (3, 7, 11, 13)]
    fresh = open_generator(generator.card.repo, threads=1)

    def ask(passage, question):
        fed.clear()
        written = list(generator.generate_ids([*passage, *question], max_new_tokens=4))
        fresh._kept.clear()
        assert written == list(fresh.generate_ids([*passage, *question], max_new_tokens=4))
        return fed[0]

    for passage in passages[:3]:
        assert ask(passage, [1, 2, 3]) > 50
    assert [ask(p, [5, 6]) for p in passages[:3]] == [2, 2, 2]  # only the question is read
    assert ask(passages[3], [1]) > 50  # takes the place of the one used longest ago
    assert ask(passages[2], [5, 7]) == 1
    assert ask(passages[0], [5, 7]) > 50


def test_nothing_is_offered_where_it_would_not_pay(generator):
    drafter = EngineDrafter(CostTable(0.01, (1.0, 2.0, 3.0, 4.0)))
    generator.drafter = drafter
    list(generator.generate_ids(PROMPT, max_new_tokens=40))
    assert drafter.stats.proposed == 0


def test_costs_are_measured_once_for_a_machine(generator, monkeypatch, tmp_path):
    monkeypatch.setenv("QMD_CACHE_DIR", str(tmp_path))
    first = measured_cost(generator)
    assert first.step_s > 0
    assert list(first.relative) == sorted(first.relative)
    monkeypatch.setattr(CostTable, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert measured_cost(generator) == first
    (kept,) = (tmp_path / "drafting").iterdir()
    kept.write_text("{")
    monkeypatch.setattr(CostTable, "measure", lambda *_, **__: CostTable.flat(3))
    assert measured_cost(generator) == CostTable.flat(3)


def test_who_drafts_and_who_does_not(generator, tmp_path):
    assert isinstance(attach_drafter(generator), EngineDrafter)
    assert attach_drafter(object()) is None
    tiny.export("qwen3-no-cache", tmp_path)
    alone = open_generator(str(tmp_path), threads=1)
    assert attach_drafter(alone) is None
    with pytest.raises(ModelError, match="Export the model with its cache"):
        measured_cost(alone)


def test_the_writer_of_answers_drafts(folder):
    writer = EngineWriter(str(folder))
    pieces: list[str] = []
    text = writer.write([("user", "change file permissions")], max_new_tokens=40, stream=pieces.append)
    assert text.startswith("".join(pieces)) or "".join(pieces).startswith(text)
    assert writer.stats is not None
    assert writer.stats.new_tokens > 0
    assert EngineWriter("fake", generator=object()).stats is None


def test_no_torch_is_needed():
    code = "import qmd.draft.engine, qmd.search.engine_writer, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path("src").absolute())})
