"""The work behind `qmd knowledge build` and `qmd draft train|test|bench`: plain functions, reports as values."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from qmd.draft.cost import CostTable
from qmd.draft.decoder import SpeculativeDecoder
from qmd.draft.knowledge import KnowledgeCacheManager
from qmd.draft.load import Qwen3Loader
from qmd.draft.model import Qwen3DraftModel
from qmd.draft.neural import NeuralProposer
from qmd.draft.proposers import Proposer, SuffixProposer
from qmd.draft.settings import DraftConfig, read_config
from qmd.draft.torch_target import TorchTarget
from qmd.draft.training import LAST, Report, Sample, acceptance, load_draft, render, train, write_samples
from qmd.draft.writer import Message, split_prompt
from qmd.errors import NotFound, UsageError

CONFIG_FILE = "config.json"
"""The configuration that a draft was trained with, in its folder; `qmd draft test` and `bench` read it."""

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Question:
    """A row of a questions file: YAML list of {question, passage?, answer?}, or one question a line."""

    question: str
    passage: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class BuildReport:
    entries: int
    size_bytes: int
    folder: str
    model: str


@dataclass(frozen=True, slots=True)
class TestReport:
    """Acceptance is the mean of sum(min(p, q)); `identical` says that speculation wrote what plain decoding writes."""

    questions: int
    acceptance_with_knowledge: float
    acceptance_without_knowledge: float
    gain: float
    identical: int
    answers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class BenchRow:
    method: str
    wall_s: float
    speedup: float
    tokens_per_step: float
    acceptance: float


def read_questions(path: Path | str) -> list[Question]:
    """Raises NotFound, or UsageError for a file of another form."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from error
    if path.suffix in (".yaml", ".yml", ".json"):
        import yaml

        try:
            rows = msgspec.convert(yaml.safe_load(text), list[str | dict[str, str]])
            return [Question(r) if isinstance(r, str) else Question(**r) for r in rows]
        except (yaml.YAMLError, msgspec.ValidationError, TypeError) as error:
            raise UsageError(
                f"{path}: expected a list of questions, or of {{question, passage, answer}}: {error}"
            ) from error
    return [Question(line.strip()) for line in text.splitlines() if line.strip()]


def _some(questions: Sequence[Question]) -> None:
    if not questions:
        raise UsageError("at least one question is needed.")


class Bench:
    """A loaded target with its tokenizer, and the knowledge kept in `folder`."""

    def __init__(
        self, config: DraftConfig | Mapping[str, Any] | str | Path | None, folder: Path | str,
        *, model: Any = None, tokenizer: Any = None, embedder: Any = None,
    ) -> None:  # fmt: skip
        self.config = read_config(config)
        loader = Qwen3Loader(self.config)
        self.model = model if model is not None else loader.load_target_model()
        self.tokenizer = tokenizer if tokenizer is not None else loader.load_tokenizer()
        self.folder = Path(folder)
        self.target = TorchTarget(self.model)
        shape = self.model.config
        cache_dim = self.config.knowledge_enhancement.cache_dim
        heads = next(h for h in range(shape.num_attention_heads, 0, -1) if cache_dim % h == 0)
        self.knowledge = KnowledgeCacheManager(
            shape.hidden_size, heads, cache_dim, folder=self.folder / "knowledge_cache", embedder=embedder
        )
        self.knowledge.tokenizer = self.tokenizer
        self.knowledge.attach(self.target)

    def build_knowledge(
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> BuildReport:
        """Store keys and values: of the passage or the answer where one is given, else of the target's own answer."""
        decoder = SpeculativeDecoder(None, self.target, self.tokenizer, cost=CostTable.flat())
        for done, q in enumerate(questions, start=1):
            text = q.passage or q.answer
            if not text:
                prompt = render(self.tokenizer, q.question)
                out = decoder.generate(prompt, self.config.training.max_new_tokens, temperature=0)[0].tolist()
                text = f"{q.question}\n{self.tokenizer.decode(out[len(prompt) :], skip_special_tokens=True)}"
            self.knowledge.build(self.target, self.tokenizer, [text])
            if progress is not None:
                progress("knowledge", done, len(questions))
        return self._built()

    def build_beginnings(
        self, prompts: Sequence[tuple[Sequence[Message], str, str]], *, progress: Progress | None = None
    ) -> BuildReport:
        """Store the beginnings of prompts that will come: (messages, the part to keep, the text it stands for)."""
        for done, (messages, keep, text) in enumerate(prompts, start=1):
            tokens, _ = split_prompt(self.tokenizer, messages, keep)
            self.knowledge.add(self.target, tokens, text)
            if progress is not None:
                progress("knowledge", done, len(prompts))
        return self._built()

    def _built(self) -> BuildReport:
        kept = self.knowledge
        return BuildReport(len(kept), kept.size_bytes, str(kept.folder), self.config.target_model)

    def draft(self, *, trained: bool = True) -> Qwen3DraftModel:
        """The draft model, with its best checkpoint where there is one."""
        made = Qwen3DraftModel(self.config, self.model, self.knowledge)
        best = sorted(
            self.folder.glob("best_draft_model_knowledge_epoch*.pth"), key=lambda p: p.stat().st_mtime_ns
        )
        if trained and not best:
            raise NotFound(f"no trained draft in {self.folder}. Run `qmd draft train CONFIG` first.")
        return load_draft(made, best[-1]) if trained else made

    def samples(self, questions: Sequence[Question], *, progress: Progress | None = None) -> list[Sample]:
        """The target's answers, kept in the folder; eight are written side by side."""
        pairs = [(q.question, q.passage) for q in questions]
        self.folder.mkdir(parents=True, exist_ok=True)
        length = self.config.training.max_new_tokens
        return write_samples(
            self.model, self.tokenizer, pairs, max_new_tokens=length, path=self.folder / "samples.jsonl",
            batch=8, progress=progress,
        )  # fmt: skip

    def train_draft(self, questions: Sequence[Question], *, progress: Progress | None = None) -> Report:
        """`qmd draft train`: the target writes its answers, the draft learns them; resumes where it stopped."""
        _some(questions)
        self._check_draft()
        samples = self.samples(questions, progress=progress)
        (self.folder / CONFIG_FILE).write_bytes(msgspec.json.encode(self.config))
        return train(self.draft(trained=False), samples, self.folder, progress=progress)

    def _check_draft(self) -> None:
        """Raises UsageError where the folder holds a draft of another target or shape: it could not go on from it."""
        file = self.folder / CONFIG_FILE
        if not (file.exists() and (self.folder / LAST).exists()):
            return
        kept = read_config(file)
        for part in ("target_model", "draft_model", "knowledge_enhancement"):
            had, asked = getattr(kept, part), getattr(self.config, part)
            if had != asked:
                raise UsageError(
                    f"the draft in {self.folder} was begun with {part} {had}, the configuration asks for {asked}. "
                    "Name another folder, or remove this one."
                )

    def test_draft(self, questions: Sequence[Question]) -> TestReport:
        """`qmd draft test`: acceptance with and without knowledge, and the answers that speculation writes."""
        _some(questions)
        draft = self.draft()
        pairs = [(q.question, q.passage) for q in questions]
        length = self.config.training.max_new_tokens
        samples = write_samples(self.target, self.tokenizer, pairs, max_new_tokens=length)
        on, off = acceptance(draft, samples, knowledge=True), acceptance(draft, samples, knowledge=False)
        fast = SpeculativeDecoder(
            [NeuralProposer(draft, self.target)], self.target, self.tokenizer, 4, cost=CostTable.flat()
        )
        same, answers = 0, []
        for sample in samples:
            out = fast.generate(sample.prompt, length, temperature=0)[0, len(sample.prompt) :].tolist()
            same += tuple(out) == sample.answer
            answers.append((sample.question, self.tokenizer.decode(out, skip_special_tokens=True)))
        return TestReport(len(samples), on, off, on / off - 1 if off else 0.0, same, tuple(answers))

    def compare(
        self, questions: Sequence[Question], *, repeats: int = 3, trained: bool = True
    ) -> list[BenchRow]:
        """`qmd draft bench`: plain decoding against each proposer, alternating; medians of whole runs."""
        _some(questions)
        table = CostTable.measure(self.target)
        ways: dict[str, list[Proposer]] = {"plain": [], "suffix": [SuffixProposer()]}
        if trained:
            neural = NeuralProposer(self.draft(), self.target)
            ways |= {"draft": [neural], "suffix, then draft": [SuffixProposer(), neural]}
        decoders = {
            n: SpeculativeDecoder(p, self.target, self.tokenizer, 8, cost=table) for n, p in ways.items()
        }
        prompts = [render(self.tokenizer, q.question, q.passage) for q in questions]
        times: dict[str, list[float]] = {n: [] for n in ways}
        seen: dict[str, tuple[float, float]] = {}
        for repeat in range(repeats):
            for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
                decoder, spent, steps, new, accepted, proposed = decoders[name], 0.0, 0, 0, 0, 0
                for prompt in prompts:
                    begin = time.perf_counter()
                    decoder.generate(prompt, self.config.training.max_new_tokens, temperature=0)
                    spent += time.perf_counter() - begin
                    s = decoder.stats
                    steps, new = steps + s.steps, new + s.new_tokens - 1
                    accepted, proposed = accepted + s.accepted, proposed + s.proposed
                times[name].append(spent)
                seen[name] = (new / max(1, steps), accepted / max(1, proposed))
        base = statistics.median(times["plain"])
        return [
            BenchRow(n, statistics.median(t), base / statistics.median(t), *seen[n]) for n, t in times.items()
        ]
