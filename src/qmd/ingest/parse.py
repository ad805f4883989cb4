"""One file's bytes become a Document: decode, choose the format, outline, cut. Never raises on content."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial

from qmd.ingest.chunk import cut
from qmd.ingest.formats.man import looks_like_roff, read_man
from qmd.ingest.formats.markdown import read_markdown
from qmd.ingest.formats.markup import read_org, read_plain, read_rest
from qmd.ingest.formats.source import read_code, read_data
from qmd.ingest.frontmatter import clean, iso_date
from qmd.ingest.language import detect_language
from qmd.ingest.outline import Outline
from qmd.ingest.read import CannotRead, decode
from qmd.ingest.walk import PICTURES, Skipped
from qmd.types import Document

Reader = Callable[[str], Outline]


def _html(text: str) -> Outline:
    from qmd.ingest.formats.web import read_html

    return read_html(text)


def _notebook(text: str) -> Outline:
    from qmd.ingest.formats.web import read_notebook

    return read_notebook(text)


FORMATS: dict[str, tuple[str, Reader]] = {}
"""File name ending, without the dot -> (Document.type, reader)."""

for _type, _endings, _reader in (
    ("markdown", "md markdown mdown mkd mdx qmd rmd", read_markdown),
    ("text", "txt text log csv tsv tex adoc asciidoc", read_plain),
    ("rst", "rst rest", read_rest),
    ("org", "org", read_org),
    ("html", "html htm xhtml", _html),
    ("notebook", "ipynb", _notebook),
    ("json", "json jsonl ndjson geojson", partial(read_data, kind="json")),
    ("yaml", "yaml yml", partial(read_data, kind="yaml")),
    ("toml", "toml", partial(read_data, kind="toml")),
    ("ini", "ini cfg conf", partial(read_data, kind="ini")),
):
    for _ending in _endings.split():
        FORMATS[_ending] = (_type, _reader)
for _language, _endings in (
    ("python", "py pyi pyx"),
    ("javascript", "js mjs cjs jsx"),
    ("typescript", "ts tsx mts"),
    ("c", "c h cc cpp cxx hpp hh m mm cu"),
    ("java", "java kt kts scala groovy"),
    ("csharp", "cs fs"),
    ("go", "go"),
    ("rust", "rs"),
    ("swift", "swift"),
    ("php", "php"),
    ("ruby", "rb"),
    ("elixir", "ex exs"),
    ("shell", "sh bash zsh fish"),
    ("lua", "lua"),
    ("perl", "pl pm"),
    ("sql", "sql"),
    ("lisp", "el lisp lsp"),
    ("clojure", "clj cljs"),
    ("scheme", "scm rkt"),
    ("css", "css"),
    ("scss", "scss less sass"),
):
    for _ending in _endings.split():
        FORMATS[_ending] = ("code", partial(read_code, language=_language))

_MAN_ENDING = re.compile(r"(?:[1-9n][a-z0-9]{0,8}|man|mdoc|roff)\Z")


def parse(path: str, data: bytes, *, chunk_tokens: int, chunk_overlap: float = 0.0) -> Document | Skipped:
    """Read one file's bytes.

    path: chooses the format and gives title and date where the content names none. chunk_tokens: limit of a chunk;
    chunk_overlap: share of it that is repeated. Returns Skipped, with the reason, for what is no text.
    """
    if path.rpartition(".")[2].lower() in PICTURES:
        from qmd.ingest.formats.picture import read_picture

        return read_picture(path, data)
    try:
        text, encoding = decode(data)
    except CannotRead as error:
        return Skipped(path, str(error))
    if not text or text.isspace():
        return Skipped(path, "empty")
    name = path.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    kind, reader = FORMATS.get(ending.lower(), ("", read_plain)) if dot else ("", read_plain)
    if not kind:
        man = (not dot or _MAN_ENDING.match(ending)) and looks_like_roff(text)
        kind, reader = ("man", read_man) if man else ("text", read_plain)
    note = None
    try:
        outline = reader(text)
    except Exception as error:  # noqa: BLE001  whatever a reader stumbles over, the words can be found
        note = f"read as plain text: {type(error).__name__}: {str(error)[:200]}"
        outline = read_plain(text)
    shown = text if outline.text is None else outline.text
    if not shown or shown.isspace():
        return Skipped(path, "no readable text")
    fields = dict(outline.fields)
    if encoding != "utf-8":
        fields["encoding"] = encoding
    if note:
        fields["note"] = note
    title = outline.title or ""
    if not title and outline.headings and kind in ("markdown", "org", "rst", "html", "notebook", "text"):
        title = next(
            (h.title for h in outline.headings if h.title and h.level == 1), outline.headings[0].title
        )
    title = clean(" ".join(title.split()))[:300] or _readable(stem if dot and stem else name)
    return Document(
        text=shown,
        title=title,
        type=kind,
        lang=outline.lang or detect_language(shown),
        chunks=cut(shown, outline, chunk_tokens, chunk_overlap),
        tags=_distinct(outline.tags),
        aliases=_distinct(outline.aliases),
        links=tuple(outline.links),
        date=outline.date or iso_date(name),
        fields=fields,
    )


def _readable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace").replace("\n", " ")


def _distinct(words: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(w for w in (clean(w).strip()[:200] for w in words) if w)) if words else ()
