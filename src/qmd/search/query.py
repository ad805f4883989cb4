"""The query language: any string becomes a Query. Knows nothing of indexes.

    words "exact phrase" -word -"phrase" begin* path:notes/* tag:work title:plan lang:zh type:markdown
    after:2024-05 before:2025

or lines of it, each with what it is for: `lex:`, `vec:`, `hyde:`, `intent:`, `expand:`.

A field name is one only with a value behind it; a date must read as one; an unclosed quote is a plain character:
whatever does not parse as an operator is a word.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Literal, cast

from qmd.store.cjk import fold
from qmd.types import Filter

Kind = Literal["plain", "lex", "vec", "hyde"]

_PIECE = re.compile(
    r"""
    (?P<minus>-(?=[^\s\-]))?
    (?:
        (?P<field>path|tag|title|lang|type|before|after):(?:"(?P<quoted>[^"]+)"|(?P<value>[^\s"]+))(?=\s|$)
      | "(?P<phrase>[^"]+)"
      | (?P<word>[^\s"]+|")
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:[\u0300-\u036f\u3099\u309a]+[^\W_]*)*")
_LINE = re.compile(r"\s*(lex|vec|hyde|intent|expand):[ \t]*(.*)\Z", re.IGNORECASE | re.DOTALL)
LONGEST_VALUE = 2_000
"""Characters of a condition's value: SQLite compares no more than 50,000 bytes."""
_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?\Z")


@dataclass(frozen=True, slots=True)
class Term:
    """A word as typed, or several that stand together: `quoted`, or written as one (`a-b`, `x.y`).

    `prefix`: the last word may go on.
    """

    words: tuple[str, ...]
    quoted: bool = False
    prefix: bool = False

    @property
    def phrase(self) -> bool:
        return self.quoted or len(self.words) > 1

    @property
    def text(self) -> str:
        return " ".join(self.words) + ("*" if self.prefix else "")


@dataclass(frozen=True, slots=True)
class Query:
    """`text` is what was asked, `plain` what a model reads: no operators, fields or exclusions. `required`: phrases
    that must be there, of this part or another."""

    text: str
    plain: str
    terms: tuple[Term, ...]
    excluded: tuple[Term, ...]
    filter: Filter
    required: tuple[Term, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.terms)


def parse(text: str, given: Filter | None = None) -> Query:
    """Read a query. Never raises: every string, whatever its characters, is legal.

    given: conditions from outside (flags); a field in the text replaces the same condition, tags add up.
    """
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8").replace("\0", " "))
    terms: list[Term] = []
    excluded: list[Term] = []
    plain: list[str] = []
    kept = given or Filter()
    for piece in _PIECE.finditer(text):
        name, value = piece["field"], piece["quoted"] or piece["value"]
        if name and not piece["minus"]:
            narrowed = _narrow(kept, name.lower(), value)
            if narrowed is not None:
                kept = narrowed
                continue
        written = piece["phrase"] or piece["word"] or f"{name} {value}"
        words = tuple(_WORD.findall(fold(written)))
        if not words:
            continue
        prefix = piece["word"] is not None and written.endswith("*") and len(written) > 1
        term = Term(words, quoted=piece["phrase"] is not None, prefix=prefix)
        if piece["minus"]:
            excluded.append(term)
        else:
            terms.append(term)
            plain.append(written.removesuffix("*") if prefix else written)
    terms, excluded = list(dict.fromkeys(terms)), list(dict.fromkeys(excluded))
    required = tuple(term for term in terms if term.quoted)
    return Query(text, " ".join(plain), tuple(terms), tuple(excluded), kept, required)


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to look for. plain: by keyword and by meaning; lex: by keyword; vec: by meaning, as a question;
    hyde: by meaning, as a passage that might answer."""

    kind: Kind
    query: Query


@dataclass(frozen=True, slots=True)
class Asked:
    """A whole request: its parts, the first of them the most important, and what it is about (`intent`, which is not
    itself looked for). `expand`: expansion was asked for by an `expand:` line."""

    parts: tuple[Part, ...]
    intent: str | None = None
    expand: bool = False

    @property
    def filter(self) -> Filter:
        return self.parts[0].query.filter

    @property
    def typed(self) -> bool:
        return any(part.kind != "plain" for part in self.parts)

    @property
    def plain(self) -> str:
        """The question as a model reads it: the plain part, else the first vec, lex, hyde there is."""
        for kind in ("plain", "vec", "lex", "hyde"):
            for part in self.parts:
                if part.kind == kind and part.query.plain:
                    return part.query.plain
        return ""


def parse_request(text: str, given: Filter | None = None, intent: str | None = None) -> Asked:
    """Read a plain query, or lines that begin with `lex:`, `vec:`, `hyde:`, `intent:` or `expand:`. Never raises.

    The text is lines only if its first line begins so; then a line without a beginning is a plain query. Conditions of
    any line hold for all, and so do exclusions and phrases, but for those of `hyde:` lines, which are prose. Alone, an
    `intent:` line is the question.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or not _LINE.match(lines[0]):
        return Asked((Part("plain", parse(text, given)),), intent or None)
    kept = given or Filter()
    expand = False
    parts: list[Part] = []
    for line in lines:
        match = _LINE.match(line)
        kind, rest = (match[1].lower(), match[2].strip()) if match else ("plain", line.strip())
        if not rest:
            continue
        if kind == "intent":
            intent = intent or rest
            continue
        if kind == "expand":
            kind, expand = "plain", True
        query = parse(rest, kept)
        kept = query.filter
        parts.append(Part(cast("Kind", kind), query))
    if not parts:
        parts, intent = [Part("plain", parse(intent or "", kept))], None
    said = [part.query for part in parts if part.kind != "hyde"]
    excluded = tuple(dict.fromkeys(term for query in said for term in query.excluded))
    required = tuple(dict.fromkeys(term for query in said for term in query.required))
    held = [replace(p.query, filter=kept, excluded=excluded, required=required) for p in parts]
    parts = [Part(part.kind, query) for part, query in zip(parts, held, strict=True)]
    return Asked(tuple(parts), intent or None, expand)


def read_date(value: str) -> str | None:
    """`2024`, `2024-5`, `2024-05-31` as an ISO date, its first day; None where it is no date."""
    found = _DATE.match(value)
    if not found:
        return None
    year, month, day = (int(part) if part else 1 for part in found.groups())
    try:
        return datetime.date(year, month, day).isoformat()
    except ValueError:
        return None


def _narrow(kept: Filter, name: str, value: str) -> Filter | None:
    """The filter with one more condition; None where the value cannot be one."""
    if len(value) > LONGEST_VALUE:
        return None
    match name:
        case "tag":
            return (
                replace(kept, tags=tuple(dict.fromkeys((*kept.tags, value.lstrip("#")))))
                if value.strip("#")
                else None
            )
        case "path":
            return replace(kept, path=value)
        case "title":
            return replace(kept, title=value)
        case "lang":
            return replace(kept, lang=value.lower())
        case "type":
            return replace(kept, type=value.lower())
    date = read_date(value)
    if date is None:
        return None
    return replace(kept, after=date) if name == "after" else replace(kept, before=date)
