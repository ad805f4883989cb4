"""Markdown: CommonMark, GFM and Obsidian (wikilinks, embeds, nested tags), parsed by pulldown-cmark."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import Any
from urllib.parse import unquote

import pyromark

from qmd.ingest.frontmatter import as_words, iso_date, split_front_matter
from qmd.ingest.outline import Atom, Heading, Outline
from qmd.types import Link, LinkKind

_O = pyromark.Options
_OPTIONS = (
    _O.ENABLE_TABLES
    | _O.ENABLE_FOOTNOTES
    | _O.ENABLE_STRIKETHROUGH
    | _O.ENABLE_TASKLISTS
    | _O.ENABLE_WIKILINKS
    | _O.ENABLE_MATH
)
_TAG = re.compile(r"(?<![^\s(\[,;，。、（])#([^\W_][\w/-]*|_[\w/-]+)")
_CANDIDATE = re.compile(r"#\w")
_DEEP = re.compile(r"^(?:[ \t]*(?:>|[-+*][ \t]|\d{1,9}[.)][ \t])){80}|^[ \t]{1000}", re.M)
_MARKS = re.compile(r"(?<![\[(*_!`~$\s])[\[(*_!`~$\s]{4000,}")
MOST_MARKS = 4000
"""So many with nothing but space between them, and no person wrote them."""
_LEVELS = {"H1": 1, "H2": 2, "H3": 3, "H4": 4, "H5": 5, "H6": 6}
_ATX = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*)$", re.M)


def read_markdown(text: str) -> Outline:
    """Outline of a Markdown text."""
    fields, skip = split_front_matter(text)
    outline = Outline(fields=fields)
    if skip:
        _take_fields(outline, fields)
    body = text[skip:] if skip else text
    shift = text.count("\n", 0, skip)
    if _DEEP.search(body) or any(len("".join(m[0].split())) >= MOST_MARKS for m in _MARKS.finditer(body)):
        _read_plainly(outline, body, shift)
        return outline
    try:
        _read_events(outline, body, shift)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a Rust panic is no Exception and cannot be named
            raise
        outline.headings.clear()
        outline.atoms.clear()
        outline.links.clear()
        _read_plainly(outline, body, shift)
    return outline


def _take_fields(outline: Outline, fields: dict[str, Any]) -> None:
    lower = {k.lower(): v for k, v in fields.items()}
    title = lower.get("title")
    if isinstance(title, str | int | float) and str(title).strip():
        outline.title = str(title).strip()
    for key in ("tags", "tag", "keywords"):
        outline.tags += [t.lstrip("#") for t in as_words(lower.get(key)) if t.lstrip("#")]
    for key in ("aliases", "alias"):
        outline.aliases += as_words(lower.get(key), r"\s*,\s*")
    for key in ("date", "created", "published", "updated", "modified"):
        outline.date = outline.date or iso_date(lower.get(key))
    if isinstance(lower.get("lang"), str):
        outline.lang = str(lower["lang"])[:2].lower()


def _read_events(outline: Outline, body: str, shift: int) -> None:
    raw = body.encode("utf-8", "replace")
    breaks = _break_offsets(raw)
    code: list[tuple[int, int]] = []  # byte ranges that hold no tags
    heading: list[str] | None = None
    atom_end = -1
    events: Any = pyromark.events_with_range(body, options=_OPTIONS)
    for event, span in events:
        if type(event) is str:
            continue
        kind, value = next(iter(event.items()))
        if kind == "Text":
            if heading is not None:
                heading.append(value)
        elif kind == "Start":
            name = value if type(value) is str else next(iter(value))
            if name == "Heading":
                heading = []
            elif name == "CodeBlock" or name == "Table":
                start, end = span["start"], span["end"]
                if name == "CodeBlock":
                    code.append((start, end))
                if start >= atom_end:
                    first = bisect_right(breaks, start) + shift
                    last = bisect_right(breaks, max(start, end - 1)) + shift
                    if last > first and (not outline.atoms or first >= outline.atoms[-1].end):
                        outline.atoms.append(Atom(first, last + 1))
                        atom_end = end
            elif name == "Link" or name == "Image":
                code.append((span["start"], span["end"]))
                line = bisect_right(breaks, span["start"]) + shift + 1
                _add_link(outline, value[name], name == "Image", line)
        elif kind == "End":
            if type(value) is dict and "Heading" in value and heading is not None:
                title = " ".join("".join(heading).split())
                line = bisect_right(breaks, span["start"]) + shift
                outline.headings.append(Heading(line, _LEVELS.get(value["Heading"], 6), title))
                heading = None
        elif kind == "Code" or kind == "InlineMath" or kind == "DisplayMath":
            code.append((span["start"], span["end"]))
            if heading is not None:
                heading.append(value)
        elif kind == "Html" or kind == "InlineHtml":
            code.append((span["start"], span["end"]))
    if _CANDIDATE.search(body):
        _read_tags(outline, body, code)


def _break_offsets(raw: bytes) -> list[int]:
    """Byte offsets just behind every line end."""
    return [m.end() for m in re.finditer(b"\n", raw)]


def _add_link(outline: Outline, link: dict[str, Any], image: bool, line: int) -> None:
    target = str(link["dest_url"])
    wiki = "WikiLink" in str(link["link_type"])
    kind: LinkKind = "embed" if image else "wikilink" if wiki else "link"
    if not wiki:
        target = unquote(target) if "%" in target and "://" not in target else target
    target = target.rstrip("\\")
    path, mark, anchor = target.partition("#")
    outline.links.append(Link(path, kind, line, anchor if mark else None))


def _read_tags(outline: Outline, body: str, code: list[tuple[int, int]]) -> None:
    at = before = 0  # in bytes, in characters
    code.sort()
    begins = [c[0] for c in code]
    seen = set(outline.tags)
    for match in _TAG.finditer(body):
        at += len(body[before : match.start()].encode("utf-8", "replace"))
        before = match.start()
        tag = match[1].strip("/")
        if not tag or tag in seen or tag.replace("/", "").isdigit():
            continue
        k = bisect_right(begins, at) - 1
        if any(code[i][0] <= at < code[i][1] for i in range(max(0, k - 3), k + 1)):
            continue
        seen.add(tag)
        outline.tags.append(tag)


def _read_plainly(outline: Outline, body: str, shift: int) -> None:
    """Headings alone, for a text that no person wrote (thousands of nested marks)."""
    line, at = shift, 0
    for match in _ATX.finditer(body):
        line += body.count("\n", at, match.start())
        at = match.start()
        outline.headings.append(Heading(line, len(match[1]), match[2].rstrip(" \t#")[:200]))
