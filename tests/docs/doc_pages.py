"""Read Markdown pages: their blocks, links, anchors and set-up. Runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

REPO = Path(__file__).resolve().parents[2]
SETUP = re.compile(r"<!--\s*docs:\s*(.*?)\s*-->")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `line` is that of the fence, from 1."""

    lang: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Setup:
    """What a page asks for, in a comment such as `<!-- docs: needs=torch,mcp index=none timeout=120 -->`."""

    needs: tuple[str, ...] = ()
    index: str = "vault"
    timeout_s: int = 60


@dataclass(frozen=True, slots=True)
class Page:
    path: Path
    blocks: tuple[Block, ...]
    links: tuple[str, ...]
    anchors: frozenset[str]
    setup: Setup

    @property
    def name(self) -> str:
        return self.path.relative_to(REPO).as_posix()


def all_pages() -> list[Path]:
    """README*, the other pages at the root, and everything under docs/."""
    return sorted([*REPO.glob("*.md"), *REPO.glob("docs/**/*.md")])


@cache
def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    blocks, links, anchors = [], [], set()
    for at, token in enumerate(tokens):
        if token.type == "fence":
            words = token.info.split()
            line = token.map[0] + 1 if token.map else 0
            blocks.append(Block(words[0].lower() if words else "", token.content, line))
        elif token.type == "heading_open":
            anchors.add(slug(tokens[at + 1].content))
        elif token.type == "inline":
            links.extend(_targets(token))
        if token.type in {"html_block", "inline"}:
            links.extend(re.findall(r'(?:src|href)="([^"]+)"', token.content))
    return Page(path, tuple(blocks), tuple(links), frozenset(anchors), _setup(text))


def commands(block: Block) -> list[tuple[str, str]]:
    """The (command, shown output) pairs of a `console` block. A command ends with `\\` where it goes on."""
    pairs: list[tuple[str, str]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            pairs.append((line[2:], ""))
        elif pairs and pairs[-1][0].endswith("\\") and not pairs[-1][1]:
            pairs[-1] = (pairs[-1][0] + "\n" + line.removeprefix("> "), "")
        elif pairs:
            pairs[-1] = (pairs[-1][0], pairs[-1][1] + line + "\n")
        elif line.strip():
            raise ValueError(
                f"console block at line {block.line} starts without a command ('$ ...'): {line!r}"
            )
    return pairs


def slug(heading: str) -> str:
    """The anchor that the usual hosts make of a heading."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def broken_links(page: Page) -> list[str]:
    """Relative links of a page whose file or heading does not exist."""
    broken = []
    for link in page.links:
        if re.match(r"[a-z][a-z0-9+.-]*:", link) or link.startswith("//"):
            continue
        file, _, anchor = unquote(link).partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        missing = not target.exists() or REPO not in (target, *target.parents)
        if not missing and anchor and target.suffix == ".md":
            missing = anchor.lower() not in read_page(target).anchors
        if missing:
            broken.append(link)
    return broken


def _targets(token: Token) -> list[str]:
    found = []
    for child in token.children or []:
        if child.type == "link_open":
            found.append(str(child.attrs["href"]))
        elif child.type == "image":
            found.append(str(child.attrs["src"]))
    return found


def _setup(text: str) -> Setup:
    match = SETUP.search(text)
    if match is None:
        return Setup()
    values = dict(part.split("=", 1) for part in match[1].split())
    unknown = values.keys() - {"needs", "index", "timeout"}
    if unknown or values.get("index", "vault") not in {"vault", "none"}:
        raise ValueError(f"unknown set-up {match[0]}; known: needs=a,b index=vault|none timeout=SECONDS")
    return Setup(
        needs=tuple(n for n in values.get("needs", "").split(",") if n),
        index=values.get("index", "vault"),
        timeout_s=int(values.get("timeout", 60)),
    )
