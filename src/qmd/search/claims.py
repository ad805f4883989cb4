"""Sentences of an answer held against its sources: what counts as a word, a claim, a citation, a quote."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SUPPORT = 0.6
"""Share of a claim's content words that its source must hold."""

_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a about an and are as at be by can do does for from has have how i if in is it its of on or should
    so than that the their them then there these they this to up was what when where which who why will
    with you your we my me our not no but also into one use used using much many often
    """,
    )
)
# words about the answer itself
_FRAME = frozenset({"answer", "note", "question", "sourc", "text", "accord"})
_MARKER = re.compile(r"^\s*(?:\d{1,3}[.)]\s|[-*+]\s)\s*(?:\[[ xX]?\]\s*)?")
"""A list item's beginning, which says nothing."""
_AMOUNT = re.compile(
    r"(?i)\bhow (?:long|many|much|often|old|far|tall|deep|high|big|large)\b|\bwhen\b"
    r"|\bwhat (?:time|year|date|temperature)\b"
    "|多少|多久|多长|多大|几|いくら|いくつ|いつ|どのくらい|どれくらい|何時|何分|何度|何人|何年|何日"
)
_HEADING = re.compile(r"(?m)^#[#+]* .*\n?|^#\+\w.*\n?")
_LINK = re.compile(r"\[\[[^\]]*\]\]")
_RUN = re.compile(r"[\u3005\u3040-\u30ff\u3400-\u9fff]+")
_KANA = re.compile(r"[\u3040-\u30ff]")
_JAPANESE = re.compile(r"[\u3005\u3400-\u9fff]+|[\u30a0-\u30ff]+")
"""What carries the meaning of Japanese: runs of Han, runs of katakana."""
_JAPANESE_FRAME = re.compile("何[分時度人年日回個本枚]?")
_CHINESE_FRAME = re.compile(
    "为什么|什么|怎么样|怎么|怎样|如何|哪些|哪里|哪儿|哪个|哪|多少|多久|多长|多大|几个|为何|需要|可以|应该|能不能|是不是|有没有|"
    "有哪|告诉|介绍|意思|一下|大约|大概|请问|我们|你们|他们|的|了|吗|呢|吧|是|我|你"
)


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


def find_quote(question: str, sources: Sequence[Source], *, chars: int = 0) -> Claim | None:
    """The line or sentence of the sources, headings and lists of links apart, that holds most of the question's words,
    rare ones before those of every line; the first one if none holds any. Asked for an amount or a time, one with a
    number goes before. chars: what follows in the source is added up to this length."""
    asked = content_words(question)
    rows = []
    for source in sources:
        about = asked & held_words(source.title)  # what the note is about, each of its lines is about
        for sentence, _ in _sentences(_unwrapped(_HEADING.sub("\n", source.text))):
            said = _LINK.sub("", sentence)
            links = 2 * len(re.findall(r"\w", said)) < len(re.findall(r"\w", sentence))  # a list of them
            if sentence != source.title and not links:
                rows.append((source, sentence, about, (asked & held_words(said)) - about))
    lines = Counter(word for *_, words in rows for word in words)
    amount = _AMOUNT.search(question) is not None

    def worth(row: tuple[Source, str, set[str], set[str]]) -> float:
        source, sentence, about, words = row
        number = 0.4 * (amount and re.search(r"\d", sentence) is not None)
        rare = sum(1 / math.sqrt(lines[w]) for w in words)
        return len(about) + rare + number - 0.5 * source.number  # search put the first one first

    if not rows:
        return None
    best = max(range(len(rows)), key=lambda i: worth(rows[i]))  # the first of equal ones
    source, quote, *_ = rows[best]
    quote = _MARKER.sub("", quote)
    for other, sentence, *_ in rows[best + 1 :]:
        if other is not source or len(quote) + len(sentence) >= chars:
            break
        quote += sentence if _RUN.search(quote[-2:]) else f" {sentence}"
    return Claim(_shorten(re.sub(r" {2,}", " ", quote)), (source.number,), True, True)


def check_claims(text: str, sources: Sequence[Source]) -> tuple[Claim, ...]:
    """Split into sentences and hold each against the passages it cites (all of them, if it cites none). What is said
    twice counts once; a line that ends with a colon belongs to the next."""
    held = {s.number: held_words(f"{s.title} {s.text}") for s in sources}
    claims: list[Claim] = []
    said: set[str] = set()
    lead, lead_marks = "", list[int]()
    parts = _sentences(text)
    for at, (part, marks) in enumerate(parts, start=1):
        if part.endswith((":", "：")) and at < len(parts):
            lead, lead_marks = f"{lead}{part} ", lead_marks + marks
            continue
        sentence, marks = lead + part, lead_marks + marks
        lead, lead_marks = "", []
        words = content_words(_MARKER.sub("", sentence))
        same = re.sub(r"[\W_]+", "", _MARKER.sub("", sentence)).lower()
        if not words or same in said:
            continue
        said.add(same)
        cited = tuple(dict.fromkeys(n for n in marks if n in held))
        supported = bool(cited) and share(words, set().union(*(held[n] for n in cited))) >= SUPPORT
        added = False
        if not supported:
            best = max(held, key=lambda n: (share(words, held[n]), -n), default=None)
            if best is not None and share(words, held[best]) >= SUPPORT:
                cited, supported, added = (best,), True, True
        claims.append(Claim(sentence, cited, supported, added))
    return tuple(claims)


def says_something(claims: Sequence[Claim], told: set[str]) -> bool:
    """Whether a supported claim says more than `told`, the words of the question and of the titles: one that only says
    these again is true and no answer."""
    return any(
        c.supported and len(words := content_words(c.text)) >= 3 and words - told - _FRAME for c in claims
    )


def content_words(text: str) -> set[str]:
    """The words that carry the meaning, roughly stemmed. Of Chinese the pairs of characters between its question and
    form words, of Japanese the pairs within its Han and katakana; pairs of all where nothing else remains."""
    words = _latin_words(text)
    for piece in content_runs(text):
        words.update(_pairs(piece))
    return words


def content_runs(text: str) -> list[str]:
    """The runs of Chinese or Japanese that carry the meaning, in order."""
    runs: list[str] = _RUN.findall(text)
    if any(_KANA.search(run) for run in runs):
        pieces = [piece for run in runs for piece in _JAPANESE.findall(_JAPANESE_FRAME.sub("の", run))]
    else:
        pieces = [piece for run in runs for piece in _CHINESE_FRAME.split(run) if piece]
    return pieces or runs


def search_text(question: str) -> str:
    """The question with its Chinese and Japanese reduced to what carries the meaning: the forms of a question stand in
    every tale and in no note."""
    return _RUN.sub(lambda run: f" {' '.join(content_runs(run.group()))} ", question).strip()


def held_words(text: str) -> set[str]:
    """What a passage holds: its words, and every character and pair of characters of its Chinese and Japanese."""
    words = _latin_words(text)
    for run in _RUN.findall(text):
        words.update(run)
        words.update(_pairs(run))
    return words


def share(words: set[str], held: set[str]) -> float:
    """The part of `words` that `held` has; 0 for no words."""
    return len(words & held) / len(words) if words else 0.0


def _latin_words(text: str) -> set[str]:
    return {
        re.sub(r"(?:ing|ed|es|s|e)$", "", w) if len(w) > 4 else w
        for w in re.findall(r"[^\W_]+", _RUN.sub(" ", text).lower())
        if w not in _STOP_WORDS
    }


def _pairs(run: str) -> Iterator[str]:
    return (run[i : i + 2] for i in range(max(1, len(run) - 1)))


def _sentences(text: str) -> list[tuple[str, list[int]]]:
    """Sentences without their citation marks, and the marks; a mark after the full stop belongs before it."""
    text = re.sub(r"([.!?。！？])\s*((?:\[\d+\]\s*)+)", lambda m: f" {m[2].strip()}{m[1]} ", text)
    found = []
    for part in re.split(r"(?<=[^\d\s][.!?])\s+|(?<=[。！？])|\n+", text):
        marks = [int(n) for n in re.findall(r"\[(\d{1,3})\]", part)]
        plain = re.sub(r"\s*\[\d{1,3}\]\s*", " ", part)
        plain = re.sub(r"\s+([.!?。！？])", r"\1", plain).strip()
        if not plain.strip(" .!?*-") or plain.startswith("```"):
            continue
        if not re.fullmatch(r"\d{1,2}\.", plain):  # the number of a list's item
            found.append((plain, marks))
    return found


def _unwrapped(text: str) -> str:
    """Lines of one paragraph joined; list items, headings, quotes and tables stay lines."""
    text = re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u3000-\u9fff])", "", text)
    return re.sub(r"(?<=[^\n])\n(?![\n\-*#>|\d])", " ", text)


def _shorten(sentence: str, size: int = 400) -> str:
    """At most `size` characters, cut at a space where there is one."""
    if len(sentence) <= size:
        return sentence
    kept = sentence[: size - 1]
    return (kept.rsplit(" ", 1)[0] if " " in kept[size // 2 :] else kept) + "…"
