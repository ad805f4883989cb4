from __future__ import annotations

import pytest
import tokenizers
import transformers

from qmd.draft import (
    KnowledgeCacheManager,
    LayerSampler,
    Qwen3DraftModel,
    Qwen3Loader,
    SpeculativeDecoder,
)
from qmd.draft.jobs import Bench, Question, read_questions
from qmd.draft.training import write_samples
from qmd.draft.writer import LocalWriter, repeats_from
from qmd.errors import ModelError, NotFound, UsageError

CONFIG = {
    "draft_model": {"num_sampled_layers": 2},
    "knowledge_enhancement": {"cache_dim": 32},
    "training": {"num_epochs": 2, "learning_rate": 1e-3, "max_new_tokens": 8, "batch_size": 2},
}


class Letters:
    """A tokenizer of one letter a token."""

    eos_token_id = 96
    chat_template = None

    def __call__(self, text, **kwargs):
        from types import SimpleNamespace

        return SimpleNamespace(input_ids=[(ord(c) - 32) % 96 for c in text])

    def decode(self, ids, **kwargs):
        return "".join(chr(32 + int(i)) for i in ids)


QUESTIONS = [
    Question("How far is the moon?", answer="The moon is far."),
    Question("Who made the tea?"),
    Question("Where is the cat?", passage="The cat is on the mat."),
    Question("Why?"),
]


@pytest.fixture
def bench(qwen3, tmp_path):
    return Bench(CONFIG, tmp_path, model=qwen3, tokenizer=Letters())


def test_the_four_steps_of_the_specification(bench):
    built = bench.build_knowledge(QUESTIONS)
    assert built.entries == 4
    assert built.size_bytes > 0
    assert "mat" in bench.knowledge.retrieve("the cat on the mat", 1)[0][0].text
    with pytest.raises(NotFound, match="qmd draft train"):
        bench.draft()
    report = bench.train_draft(QUESTIONS)
    assert report.epochs == 2
    assert (bench.folder / report.best).exists()
    tested = bench.test_draft(QUESTIONS)
    assert tested.identical == tested.questions == 4
    assert 0 < tested.acceptance_with_knowledge <= 1
    rows = bench.compare(QUESTIONS[:2], repeats=1)
    assert [r.method for r in rows] == ["plain", "suffix", "draft", "suffix, then draft"]
    assert rows[0].speedup == 1
    assert all(r.tokens_per_step >= 1 for r in rows)


def test_answers_side_by_side_are_the_same_and_kept_by_their_prompt(bench, qwen3, tmp_path):
    pairs = [(q.question, q.passage) for q in QUESTIONS]
    kept = tmp_path / "samples.jsonl"
    alone = write_samples(bench.target, bench.tokenizer, pairs, max_new_tokens=12)
    told: list[tuple[int, int | None]] = []
    side = write_samples(
        qwen3, bench.tokenizer, pairs[:3], max_new_tokens=12, path=kept, batch=2,
        progress=lambda stage, done, total: told.append((done, total)),
    )  # fmt: skip
    assert side == alone[:3]
    assert told == [(2, 3), (3, 3)]
    # another order, one more: what is kept is not written again, and each answer stays with its question
    again = write_samples(qwen3, bench.tokenizer, pairs[::-1], max_new_tokens=12, path=kept, batch=2)
    assert again == alone[::-1]
    assert len(kept.read_text().splitlines()) == 4


def test_answers_of_another_length_and_a_cut_line_are_written_again(bench, qwen3, tmp_path):
    pairs, kept = [(q.question, q.passage) for q in QUESTIONS], tmp_path / "samples.jsonl"
    for length in (4, 12):
        made = write_samples(qwen3, bench.tokenizer, pairs, max_new_tokens=length, path=kept, batch=2)
        assert max(len(sample.answer) for sample in made) == length
    kept.write_text(kept.read_text()[:-20])
    for _ in range(2):
        assert write_samples(qwen3, bench.tokenizer, pairs, max_new_tokens=12, path=kept, batch=2) == made
    assert len(kept.read_text().splitlines()) == 9


def test_a_draft_of_another_shape_is_not_gone_on_with(bench, qwen3):
    bench.train_draft(QUESTIONS)
    settings = (bench.folder / "config.json").read_bytes()
    wider = CONFIG | {"draft_model": {"num_sampled_layers": 3}}
    with pytest.raises(UsageError, match="another folder"):
        Bench(wider, bench.folder, model=qwen3, tokenizer=Letters()).train_draft(QUESTIONS)
    assert (bench.folder / "config.json").read_bytes() == settings


def test_no_questions_are_said(bench):
    for work in (bench.train_draft, bench.test_draft, bench.compare):
        with pytest.raises(UsageError, match="at least one question"):
            work([])


def test_a_trained_draft_is_found_with_its_configuration(bench, qwen3, monkeypatch):
    from types import SimpleNamespace

    from qmd.serve.cli import commands_draft

    bench.train_draft(QUESTIONS)
    seen: list[object] = []
    monkeypatch.setattr("qmd.draft.jobs.Bench", lambda settings, folder, **_: seen.append(settings))
    monkeypatch.setattr("qmd.llm.open_embedder", lambda name: None)
    places, chosen = (
        SimpleNamespace(data_dir=bench.folder.parent),
        SimpleNamespace(models=SimpleNamespace(embedding="")),
    )
    session = SimpleNamespace(settings=lambda: (places, chosen))
    commands_draft._bench(session, None, None, bench.folder)
    assert seen == [bench.config]


def test_names_as_the_specification_uses_them(qwen3, tmp_path):
    qwen3.save_pretrained(tmp_path / "model")
    loader = Qwen3Loader({"target_model": {"name": str(tmp_path / "model")}})
    target = loader.load_target_model("cpu")
    assert Qwen3Loader(None).name == "Qwen/Qwen3-0.6B"
    with pytest.raises(ModelError, match="tokenizer"):
        loader.load_tokenizer()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    assert loader.load_tokenizer()("b").input_ids == [1]
    knowledge = KnowledgeCacheManager(hidden_size=64, num_heads=4, cache_dim=512)
    assert knowledge.kv_cache == {}
    draft = Qwen3DraftModel(
        {"draft_model": {"num_sampled_layers": 2, "sampling_strategy": "uniform"}}, target, knowledge
    )
    assert draft.sampled_layers == LayerSampler(4, 2).sample() == [0, 3]
    import torch

    ids = torch.tensor([[1, 2, 3]])
    assert draft(ids, retrieve_knowledge=True, query_text="a question")["logits"].shape == (1, 3, 97)
    decoder = SpeculativeDecoder(draft, target, Letters(), gamma=5)
    out = decoder.generate(ids, max_new_tokens=20, temperature=1.0, top_p=0.9)
    assert out.shape[0] == 1
    assert 3 < out.shape[1] <= 23


def test_questions_files(tmp_path):
    (tmp_path / "q.yaml").write_text("- one?\n- question: two?\n  answer: it is\n")
    assert read_questions(tmp_path / "q.yaml") == [Question("one?"), Question("two?", answer="it is")]
    (tmp_path / "q.txt").write_text("one?\n\ntwo?\n")
    assert [q.question for q in read_questions(tmp_path / "q.txt")] == ["one?", "two?"]
    (tmp_path / "bad.yaml").write_text("- {ask: x}\n")
    with pytest.raises(UsageError, match="expected a list"):
        read_questions(tmp_path / "bad.yaml")
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfone?\n")
    assert read_questions(tmp_path / "marked.txt") == [Question("one?")]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9?")
    with pytest.raises(UsageError, match="UTF-8"):
        read_questions(tmp_path / "latin.txt")
    with pytest.raises(NotFound):
        read_questions(tmp_path / "none.txt")


def test_a_writer_keeps_sources_and_streams(qwen3):
    writer = LocalWriter("tiny", model=qwen3, tokenizer=Letters())
    pieces: list[str] = []
    keep = "Sources: the cat is on the mat. "
    text = writer.write([("user", keep + "Where?")], keep=keep, max_new_tokens=12, stream=pieces.append)
    assert "".join(pieces) == text
    first = writer.stats
    again = writer.write([("user", keep + "Why then?")], keep=keep, max_new_tokens=12)
    assert isinstance(again, str)
    assert writer.stats.reused_tokens >= len(keep)
    assert first.prompt_tokens > len(keep)
    assert len(writer.knowledge) == 1


def test_repetition_is_noticed():
    assert repeats_from("The cat sat down. The dog ran off. The cat sat down. ") == 34
    assert repeats_from("Step 1: stir the pot.\nStep 2: stir the pot.\n") is not None
    assert repeats_from("One thing here. Another thing there. ") is None
    knees = "1. Knee\n2. Knee\n3. Knee\n"
    assert knees[: repeats_from(knees)].split() == ["1.", "Knee", "2."]
    assert repeats_from("Yes.\nNo.\nYes.\nNo.\n") is None


def test_beginnings_of_prompts_serve_the_writer(bench, qwen3):
    """What `qmd knowledge build` stores for a passage is where an answer from it, and from a second one, starts."""
    said = "Sources:\n\n[1] The moon\nThe moon is far away and has no tea at all, said the cat on the mat."
    built = bench.build_beginnings([([("user", f"{said}\n\nQuestion: ")], said, "the moon")])
    assert (built.entries, built.model) == (1, "Qwen/Qwen3-0.6B")
    assert bench.knowledge.retrieve("moon", 1)[0][0].text == "the moon"
    writer = LocalWriter("tiny", model=qwen3, tokenizer=Letters(), knowledge_folder=bench.knowledge.folder)
    keep = f"{said}\n\n[2] Tea\nTea is wet.\n\n"
    writer.write([("user", f"{keep}Question: how far?")], keep=keep, max_new_tokens=4)
    assert writer.stats.reused_tokens >= len(said) - 16


def test_knowledge_is_built_from_the_passages_that_answers_used(tmp_path, monkeypatch):
    from click.testing import CliRunner

    import qmd.index
    from qmd.config import Places
    from qmd.search.answer import ask
    from qmd.serve.cli import commands_draft
    from qmd.serve.cli.app import root

    class Parrot:
        name = "parrot"

        def write(self, messages, *, keep="", max_new_tokens=160, stream=None):
            return "Water them every second morning [1]."

    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "garden.md").write_text("# Tomatoes\n\nWater the tomatoes every second morning.\n")
    (notes / "bread.md").write_text("# Sourdough\n\nFeed the starter with rye flour at ten.\n")
    folders = ["--config-dir", str(tmp_path / "c"), "--data-dir", str(tmp_path / "d")]
    prompts = []

    class Taken:
        def build_beginnings(self, given):
            prompts.extend(given)
            from qmd.draft.jobs import BuildReport

            return BuildReport(len(given), 1000, "there", "tiny")

    monkeypatch.setattr(commands_draft, "_bench", lambda *_: Taken())
    places = Places(tmp_path / "c", tmp_path / "d")
    with qmd.index.open(places=places) as index:
        index.add(notes, name="notes", embed=False)
        unused = CliRunner().invoke(root, [*folders, "knowledge", "build"])
        assert isinstance(unused.exception, UsageError)
        assert "qmd ask" in str(unused.exception)
        for question in ("when do I water tomatoes", "water the tomatoes", "feed the starter with flour"):
            assert ask(index, question, writer=Parrot()).found
    built = CliRunner().invoke(root, [*folders, "knowledge", "build", "-n", "1"])
    assert built.exit_code == 0, built.output
    ((messages, keep, text),) = prompts
    assert "Water the tomatoes every second morning." in text
    assert messages[-1][1].startswith(keep)
    assert keep.startswith("Sources:\n\n[1] Tomatoes")
