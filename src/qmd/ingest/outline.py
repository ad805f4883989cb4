"""What a format parser hands to the chunker: structure over lines, and what it learned about the document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from qmd.types import Link


class Heading(NamedTuple):
    """A section starts at `line` (from 0) and runs to the next heading of the same or a lower level number."""

    line: int
    level: int
    title: str


class Atom(NamedTuple):
    """Lines `first` to `end` (from 0, end exclusive) that stay together where they fit: a fence, a table."""

    first: int
    end: int


@dataclass(slots=True)
class Outline:
    """`headings` and `atoms` rise by line; atoms do not overlap. `text` replaces the decoded file where the format
    is shown in another form than its source (HTML, notebooks, man pages).
    """

    headings: list[Heading] = field(default_factory=list)
    atoms: list[Atom] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    title: str | None = None
    date: str | None = None
    lang: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    text: str | None = None
