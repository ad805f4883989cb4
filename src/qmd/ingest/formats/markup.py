"""Org, reStructuredText, plain text: line formats whose structure shows in the first characters of a line."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict

from qmd.ingest.frontmatter import as_words, iso_date
from qmd.ingest.outline import Atom, Heading, Outline
from qmd.types import Link

MAX_TITLE = 200
_UNDERLINE = re.compile(r"\n([=\-`:'\"~^_*+#<>.])\1{2,}[ \t]*(?=\n|\Z)")
_REST_BLOCK = re.compile(
    r"^([ ]*)\.\. (?:code-block|code|sourcecode|highlight|literalinclude|parsed-literal|math|"
    r"table|list-table|csv-table)::"
    r"[^\n]*\n(?:[ \t]*\n|\1[ \t]+[^\n]*\n)*",
    re.M,
)
_REST_GRID = re.compile(r"^[ \t]*\+[-=+]{3,}\+[ \t]*\n(?:[ \t]*[+|][^\n]*\n)+", re.M)
_REST_LINK = re.compile(
    r"`[^`<>\n]{0,300}<([^`<>\s]{1,500})>`__?|:(?:doc|ref|download):`(?:[^`<>\n]*<)?([^`<>\n]{1,300})>?`"
)
_REST_FIELD = re.compile(r"^:([A-Za-z][\w -]{0,40}):[ \t]+(\S[^\n]*)$", re.M)
_MARKUP = re.compile(r"[`*|]|:[\w:]+:(?=`)")


class _Lines:
    """Line numbers of rising offsets, counted along the way."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.line = text, 0, 0

    def of(self, offset: int) -> int:
        self.line += self.text.count("\n", self.at, offset)
        self.at = offset
        return self.line


def read_rest(text: str) -> Outline:
    """Outline of a reStructuredText; no directive is executed."""
    outline = Outline(headings=underlined(text))
    if ".. " in text:
        lines = _Lines(text)
        for match in _REST_BLOCK.finditer(text):
            first = lines.of(match.start())
            outline.atoms.append(
                Atom(
                    first, first + text.count("\n", match.start(), match.start() + len(match[0].rstrip())) + 1
                )
            )
    if "+-" in text:
        lines = _Lines(text)
        for match in _REST_GRID.finditer(text):
            first = lines.of(match.start())
            outline.atoms.append(Atom(first, first + match[0].count("\n")))
        outline.atoms = disjoint(outline.atoms)
    if "`" in text:
        lines = _Lines(text)
        for match in _REST_LINK.finditer(text):
            target, mark, anchor = (match[1] or match[2]).partition("#")
            outline.links.append(Link(target, "link", lines.of(match.start()) + 1, anchor if mark else None))
    head = text[:2000]
    if ":" in head:
        for name, value in _REST_FIELD.findall(head):
            if name.lower() == "date":
                outline.date = outline.date or iso_date(value)
            elif name.lower() in ("tags", "keywords"):
                outline.tags += as_words(value, r"\s*,\s*")
    if outline.headings:
        outline.title = outline.headings[0].title
    return outline


def disjoint(atoms: list[Atom]) -> list[Atom]:
    """Sorted, without those that overlap an earlier one."""
    kept: list[Atom] = []
    for atom in sorted(atoms):
        if not kept or atom.first >= kept[-1].end:
            kept.append(atom)
    return kept


def underlined(text: str) -> list[Heading]:
    """Sections marked by a line of punctuation under (and perhaps over) their title; levels by order of appearance."""
    headings: list[Heading] = []
    levels: dict[str, int] = {}
    lines = _Lines(text)
    for match in _UNDERLINE.finditer(text):
        begin = match.start() + 1
        if begin < 2:
            continue
        before = text.rfind("\n", 0, begin - 1) + 1
        if begin - before > MAX_TITLE:
            continue
        title = text[before : begin - 1].strip()
        if not title or len(match[0]) - 1 < 0.6 * len(title) or title[0] == title[-1] == match[1]:
            continue
        style = match[1]
        over = text.rfind("\n", 0, max(0, before - 1)) + 1
        first = before
        if before and text[over : over + 3] == style * 3:
            style, first = style * 2, over
        elif text[before].isspace():
            continue
        level = levels.setdefault(style, len(levels) + 1)
        headings.append(
            Heading(lines.of(first) if first >= lines.at else lines.line, level, _MARKUP.sub("", title))
        )
    return headings


def read_plain(text: str) -> Outline:
    """Outline of a text without markup; underlined lines are taken for headings."""
    return Outline(headings=underlined(text))


_ORG_HEADING = re.compile(r"^(\*+)[ \t]+([^\n]*)$", re.M)
_ORG_STATE = re.compile(
    r"^(?:TODO|DONE|NEXT|WAITING|CANCELED|CANCELLED|HOLD|STARTED)[ \t]+(?=\S)|\[#[A-Z]\][ \t]*"
)
_ORG_TAGS = re.compile(r"[ \t]+:([\w@#%:]+):[ \t]*$")
_ORG_BLOCK = re.compile(r"^[ \t]*#\+BEGIN_(\w+)[^\n]*\n", re.M | re.I)
_ORG_END = re.compile(r"^[ \t]*#\+END_(\w+)[ \t]*$", re.M | re.I)
_ORG_TABLE = re.compile(r"^[ \t]*\|[^\n]*\n(?:[ \t]*\|[^\n]*\n)+", re.M)
_ORG_KEY = re.compile(r"^#\+(\w+):[ \t]*(\S[^\n]*)$", re.M)
_ORG_LINK = re.compile(r"\[\[([^\[\]\n]{1,1000})\](?:\[[^\[\]\n]{0,1000}\])?\]")


def read_org(text: str) -> Outline:
    """Outline of an org file: headlines, keywords, tags, blocks, tables, links."""
    outline = Outline()
    lines = _Lines(text)
    for match in _ORG_HEADING.finditer(text):
        title = match[2].strip()
        tags = _ORG_TAGS.search(" " + title[-300:])
        if tags:
            outline.tags += [t for t in tags[1].split(":") if t]
            title = title[: title.rfind(":" + tags[1] + ":")].strip()
        title = _ORG_STATE.sub("", title).strip()
        outline.headings.append(Heading(lines.of(match.start()), min(len(match[1]), 32), title[:MAX_TITLE]))
    atoms: list[Atom] = []
    ends: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for match in _ORG_END.finditer(text):
        ends[match[1].lower()].append(match.span())
    lines, at = _Lines(text), 0
    while block := _ORG_BLOCK.search(text, at):
        own = ends.get(block[1].lower(), [])
        k = bisect_left(own, block.end(), key=lambda span: span[0])
        at = own[k][1] if k < len(own) else block.end()
        if k < len(own):
            first = lines.of(block.start())
            atoms.append(Atom(first, first + text.count("\n", block.start(), at) + 1))
    lines = _Lines(text)
    for match in _ORG_TABLE.finditer(text):
        first = lines.of(match.start())
        atoms.append(Atom(first, first + match[0].count("\n")))
    outline.atoms = disjoint(atoms)
    keys: dict[str, str] = {}
    for key, value in _ORG_KEY.findall(text[:8000]):
        keys.setdefault(key.lower(), value.rstrip(" \t"))
    outline.fields = dict(keys)
    outline.title = keys.get("title")
    outline.date = iso_date(keys.get("date"))
    outline.tags += as_words(keys.get("filetags"), r"[:\s]+")
    lines = _Lines(text)
    for match in _ORG_LINK.finditer(text):
        target, mark, anchor = match[1].removeprefix("file:").partition("::")
        outline.links.append(Link(target, "link", lines.of(match.start()) + 1, anchor if mark else None))
    return outline
