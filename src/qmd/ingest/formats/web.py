"""HTML, shown as its readable text, and notebooks, shown as Markdown. Line numbers are those of the shown text."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from selectolax.lexbor import LexborHTMLParser

from qmd.ingest.formats.markdown import read_markdown
from qmd.ingest.frontmatter import clean, iso_date
from qmd.ingest.outline import Atom, Heading, Outline
from qmd.types import Link

MAX_OUTPUT_CHARS = 2000
MAX_NESTING = 5000
_ELEMENT = re.compile(r"<(/?)([A-Za-z][\w-]{0,40})")
_NOT_NESTING = frozenset(
    [
        "area",
        "base",
        "br",
        "col",
        "embed",
        "hr",
        "img",
        "input",
        "link",
        "meta",
        "source",
        "track",
        "wbr",
        "p",
        "li",
        "dt",
        "dd",
        "td",
        "th",
        "tr",
        "option",
        "body",
        "html",
        "head",
    ]
)
_REMOVED = ["script", "style", "noscript", "template", "svg", "iframe", "object", "head"]
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "br",
        "dd",
        "details",
        "dialog",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "html",
        "li",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "tfoot",
        "thead",
        "tr",
        "ul",
    ]
)
_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
_SPACE = re.compile(r"[ \t\n\r\f]+")


def read_html(text: str) -> Outline:
    """Outline of a page whose `text` is what a reader sees, a line a block; preformatted text keeps its lines.

    Raises ValueError where elements nest more than MAX_NESTING deep.
    """
    if _too_deep(text):
        raise ValueError(f"nested more than {MAX_NESTING:,} deep")
    outline = Outline()
    tree = LexborHTMLParser(text)
    title = tree.css_first("title")
    if title is not None:
        outline.title = clean(" ".join(title.text().split())) or None
    html = tree.css_first("html")
    if html is not None and html.attributes.get("lang"):
        outline.lang = str(html.attributes["lang"])[:2].lower()
    for meta in tree.css("meta"):
        name = str(meta.attributes.get("name") or meta.attributes.get("property") or "").lower()
        value = clean(str(meta.attributes.get("content") or ""))[:1000]
        if name in ("date", "article:published_time", "dcterms.date", "last-modified"):
            outline.date = outline.date or iso_date(value)
        elif name == "keywords":
            outline.tags = [t.strip() for t in value.split(",") if t.strip()]
    tree.strip_tags(_REMOVED)
    page = _Page(outline)
    body = tree.body
    if body is not None:
        page.read(body)
    outline.text = clean(page.finish())
    return outline


def _too_deep(text: str) -> bool:
    """Whether elements nest so deeply that the parser, quadratic in depth, would take seconds."""
    if text.count("<") <= MAX_NESTING:
        return False
    depth = 0
    for match in _ELEMENT.finditer(text):
        if match[1]:
            depth = max(0, depth - 1)
        elif match[2].lower() not in _NOT_NESTING:
            depth += 1
            if depth > MAX_NESTING:
                return True
    return False


class _Page:
    """Collects shown text while the tree is walked without recursion."""

    def __init__(self, outline: Outline) -> None:
        self.outline = outline
        self.lines: list[str] = []
        self.words: list[str] = []

    def read(self, root: Any) -> None:
        heading: tuple[int, int] | None = None
        pre_first = -1
        node, depth = root, 0
        entering = True
        while node is not None:
            tag = node.tag
            if entering:
                if tag == "-text":
                    raw = node.text_content or ""
                    if pre_first >= 0:
                        self._verbatim(raw)
                    else:
                        self.words.append(raw)
                elif tag in _BLOCKS:
                    self._flush()
                    if tag in _HEADINGS:
                        heading = (len(self.lines), _HEADINGS[tag])
                    elif tag == "pre" and pre_first < 0:
                        pre_first = len(self.lines)
                    elif tag == "li":
                        self.words.append("- ")
                elif tag in ("td", "th"):
                    self.words.append(" | " if any(w.strip() for w in self.words) else " ")
                elif tag == "a":
                    self._link(node)
                elif tag == "img":
                    self.words.append(" " + str(node.attributes.get("alt") or "") + " ")
                child = node.child
                if child is not None and tag != "-text":
                    node, depth = child, depth + 1
                    continue
            if tag in _BLOCKS:
                self._flush()
                if tag in _HEADINGS and heading is not None:
                    first, level = heading
                    words = " ".join(" ".join(self.lines[first:]).split())
                    if words:
                        self.outline.headings.append(Heading(first, level, words[:300]))
                    heading = None
                    self._gap()
                elif tag == "pre" and pre_first >= 0:
                    if len(self.lines) > pre_first:
                        self.outline.atoms.append(Atom(pre_first, len(self.lines)))
                    pre_first = -1
                    self._gap()
                elif tag in ("p", "table", "ul", "ol", "dl", "blockquote", "section", "div"):
                    self._gap()
            if depth == 0:
                break
            following = node.next
            if following is not None:
                node, entering = following, True
            else:
                node, depth, entering = node.parent, depth - 1, False
        self._flush()

    def _link(self, node: Any) -> None:
        href = node.attributes.get("href")
        if href:
            target, mark, anchor = clean(str(href))[:2000].partition("#")
            if "%" in target and "://" not in target:
                target = unquote(target)
            self.outline.links.append(Link(target, "link", len(self.lines) + 1, anchor if mark else None))

    def _verbatim(self, raw: str) -> None:
        first, *rest = raw.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self.words.append(first)
        for line in rest:
            self.lines.append("".join(self.words))
            self.words = [line]

    def _flush(self) -> None:
        if self.words:
            line = _SPACE.sub(" ", "".join(self.words)).strip()
            self.words = []
            if line:
                self.lines.append(line)

    def _gap(self) -> None:
        if self.lines and self.lines[-1]:
            self.lines.append("")

    def finish(self) -> str:
        return "\n".join(self.lines).rstrip("\n") + "\n" if self.lines else ""


def read_notebook(text: str) -> Outline:
    """Outline of a Jupyter notebook, shown as Markdown: code cells and their text output as fences.

    Raises ValueError where it is no notebook, RecursionError where it is nested too deeply.
    """
    tree = json.loads(text)
    if not isinstance(tree, dict) or not isinstance(tree.get("cells"), list):
        raise ValueError("not a notebook: no list of cells")
    metadata = tree.get("metadata")
    language = "python"
    if isinstance(metadata, dict):
        for key in ("language_info", "kernelspec"):
            info = metadata.get(key)
            name = (
                info.get("name" if key == "language_info" else "language") if isinstance(info, dict) else None
            )
            if isinstance(name, str) and re.fullmatch(r"[\w+#-]{1,30}", name):
                language = name
                break
    parts: list[str] = []
    for cell in tree["cells"]:
        if not isinstance(cell, dict):
            continue
        source = _joined(cell.get("source"))
        kind = cell.get("cell_type")
        if kind == "code":
            if source.strip():
                parts.append(_fence(source, language))
            outputs = cell.get("outputs")
            for output in outputs if isinstance(outputs, list) else ():
                shown = _output(output)
                if shown.strip():
                    parts.append(_fence(shown[:MAX_OUTPUT_CHARS], "output"))
        elif source.strip():
            parts.append(source.rstrip("\n"))
    shown = clean("\n\n".join(parts) + "\n" if parts else "").replace("\r\n", "\n").replace("\r", "\n")
    outline = read_markdown(shown)
    outline.text = shown
    return outline


def _joined(value: object) -> str:
    if isinstance(value, list):
        return "".join(v for v in value if isinstance(v, str))
    return value if isinstance(value, str) else ""


def _output(output: object) -> str:
    if not isinstance(output, dict):
        return ""
    data = output.get("data")
    if isinstance(data, dict):
        return _joined(data.get("text/plain"))
    return _joined(output.get("text"))


def _fence(source: str, language: str) -> str:
    longest = max((len(m) for m in re.findall(r"`{3,}", source)), default=2)
    mark = "`" * (longest + 1)
    return f"{mark}{language}\n{source.rstrip(chr(10))}\n{mark}"
