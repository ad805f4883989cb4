"""Hits in every output format. The order and the names of the fields are the ones agents know from the
original.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qmd.serve.cli.escape import code_span, csv_cell, csv_text, numbered
from qmd.serve.cli.records import plain, to_csv, to_json, to_jsonl, to_xml
from qmd.serve.cli.screen import Style, clean, clean_line, link, size
from qmd.types import Hit, Hits

_STALE = {"changed": "Stale: the file changed since it was indexed", "gone": "Stale: the file is gone"}
COLUMNS = ("docid", "score", "file", "title", "context", "line", "snippet")


def hash_mark(docid: str) -> str:
    """`#abc123`, whichever way the id came."""
    return docid if docid.startswith("#") else f"#{docid}"


@dataclass(frozen=True, slots=True)
class View:
    """How hits are shown.

    `names` replaces `file` (`--full-path`); `links` maps it to a URI with `{line}` in it; `starts` maps
    (file, line) to the line on which the snippet starts, where that is not the hit's own.
    """

    line_numbers: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    starts: Mapping[tuple[str, int], int] = field(default_factory=dict)

    def name(self, hit: Hit) -> str:
        return self.names.get(hit.file, hit.file)

    def text(self, hit: Hit, paint: Callable[[str], str] = str) -> str:
        """Body or snippet, painted, and numbered from the line on which it starts."""
        raw = hit.snippet or "" if hit.body is None else hit.body
        if not self.line_numbers or not raw:
            return paint(raw)
        first = 1 if hit.body is not None else self.starts.get((hit.file, hit.line), hit.line)
        return numbered(paint(raw.removesuffix("\n")), first)


def hit_record(
    hit: Hit, view: View, degraded: Sequence[str] = (), *, nothing_relevant: bool = False
) -> dict[str, Any]:
    """The JSON of one hit. Keys without a value are left out; `degraded` and `nothing_relevant` stand in every hit."""
    record: dict[str, Any] = {
        "docid": hash_mark(hit.docid),
        "score": round(float(hit.score), 4),
        "file": view.name(hit),
        "line": hit.line,
        "title": hit.title,
    }
    if hit.context:
        record["context"] = hit.context
    record["body" if hit.body is not None else "snippet"] = view.text(hit)
    record["collection"] = hit.collection
    if hit.image is not None:
        record["image"] = plain(hit.image)
    if hit.quote is not None:
        citation: dict[str, Any] = {"line": hit.line, "end_line": hit.end_line, "quote": hit.quote}
        record["citation"] = (
            {**citation, "heading_path": list(hit.heading_path)} if hit.heading_path else citation
        )
    if hit.stale:
        record["stale"] = hit.stale
    if hit.duplicates:
        record["duplicates"] = list(hit.duplicates)
    if nothing_relevant:
        record["nothing_relevant"] = True
    if degraded:
        record["degraded"] = list(degraded)
    if hit.explain is not None:
        record["explain"] = plain(hit.explain)
    return record


def format_hits(hits: Hits, format: str, view: View) -> str:
    """All formats but cli."""
    records = [hit_record(h, view, hits.degraded, nothing_relevant=hits.nothing_relevant) for h in hits]
    if format == "json":
        return to_json(records)
    if format == "jsonl":
        return to_jsonl(records)
    if format == "csv":
        columns = [*COLUMNS[:-1], "body"] if any("body" in r for r in records) else list(COLUMNS)
        return to_csv(records, columns)
    if format == "xml":
        named = [{("name" if k == "file" else k): v for k, v in r.items()} for r in records]
        return to_xml("results", "file", named, text=("body", "snippet"))
    if format == "files":
        return "".join(_file_line(r) for r in records)
    assert format == "md", format
    return "\n".join(_markdown(r) for r in records)


def _file_line(record: Mapping[str, Any]) -> str:
    context = f",{csv_text(' '.join(record['context'].split()))}" if record.get("context") else ""
    return f"{record['docid']},{record['score']},{csv_cell(record['file'])}{context}\n"


def _markdown(record: Mapping[str, Any]) -> str:
    title = " ".join(str(record["title"] or record["file"]).split())
    lines = [
        "---",
        f"# {title}",
        "",
        f"**file:** {code_span(str(record['file']))}",
        f"**line:** {record['line']}",
        f"**docid:** {code_span(str(record['docid']))}",
        f"**score:** {record['score']}",
    ]
    if record.get("context"):
        lines.append(f"**context:** {' '.join(str(record['context']).split())}")
    if record.get("image"):
        lines.append(f"**image:** {image_line(record['image'])}")
    if record.get("stale"):
        lines.append(f"**stale:** {record['stale']}")
    if record.get("duplicates"):
        lines.append(f"**duplicates:** {', '.join(map(code_span, record['duplicates']))}")
    if record.get("degraded"):
        lines.append(f"**degraded:** {'; '.join(record['degraded'])}")
    if record.get("explain"):
        lines.append(f"**explain:** {code_span(_explanation(record['explain']))}")
    text = str(record.get("body", record.get("snippet", "")))
    return "\n".join([*lines, "", text, ""])


def _explanation(explain: Mapping[str, Any]) -> str:
    def value(v: Any) -> str:
        if isinstance(v, float):
            return f"{v:.4g}"
        if isinstance(v, Mapping):
            return "(" + _explanation(v) + ")"
        if isinstance(v, (list, tuple)):
            return "[" + ", ".join(map(value, v)) + "]"
        return str(v)

    return " ".join(f"{k}={value(v)}" for k, v in explain.items())


def image_line(image: Mapping[str, Any]) -> str:
    """`PNG, 128 x 128, 2.3 kB`."""
    pixels = f"{image['width']} x {image['height']}, " if "width" in image else ""
    return f"{image.get('format', 'image')}, {pixels}{size(float(image.get('size_bytes', 0)))}"


def query_words(query: str) -> re.Pattern[str] | None:
    """What to mark in a snippet: the words of the query, without the ones it excludes and without field
    names.
    """
    wanted = re.sub(r'(?:^|\s)-(?:"[^"]*"?|\S+)', " ", query)
    wanted = re.sub(r"(?:^|(?<=\s))(?:path|tag|title|lang|type|after|before):\S+", " ", wanted)
    words = sorted(
        {w for w in re.findall(r"\w+", wanted) if len(w) > 1 or not w.isascii()}, key=len, reverse=True
    )
    if not words:
        return None
    return re.compile("|".join(rf"\b{re.escape(w)}" if w.isascii() else re.escape(w) for w in words), re.I)


def _painted(marks: Sequence[tuple[int, int]], words: re.Pattern[str] | None, paint: Style, text: str) -> str:
    """Cleaned, with the matches bright: where the search marked them, else where words of the query stand."""
    if not paint.colour:
        return clean(text)
    if not marks:
        shown = clean(text)
        return shown if words is None else words.sub(lambda m: paint.found(m.group()), shown)
    pieces, at = [], 0
    for start, end in marks:
        pieces += [clean(text[at:start]), paint.found(clean(text[start:end]))]
        at = end
    return "".join([*pieces, clean(text[at:])])


def show_hits(hits: Hits, query: str, paint: Style, view: View) -> str:
    """Hits for a person. Document text is cleaned of control characters; nothing is wrapped or cut."""
    words = query_words(query)
    blocks = []
    for hit in hits:
        place = clean_line(view.name(hit))
        if hit.image is None:  # a picture has no lines
            place += f":{hit.line}"
        if hit.file in view.links:
            place = link(place, view.links[hit.file].replace("{line}", str(hit.line)))
        lines = [f"{paint.place(place)}  {paint.dim(hash_mark(hit.docid))}"]
        if hit.title:
            lines.append(paint.bold(f"Title: {clean_line(hit.title)}"))
        if hit.heading_path and list(hit.heading_path) != [hit.title]:
            lines.append(paint.dim(f"Under: {' > '.join(map(clean_line, hit.heading_path))}"))
        if hit.image is not None:
            lines.append(f"Picture: {clean_line(image_line(hit.image))}")
        if hit.context:
            lines.append(paint.dim(f"Context: {clean_line(hit.context)}"))
        lines.append(f"Score: {paint.bold(f'{hit.score:.4g}')}")
        if hit.stale:
            lines.append(paint.warn(_STALE[hit.stale]))
        if hit.duplicates:
            lines.append(paint.dim(f"Also in: {', '.join(map(clean_line, hit.duplicates))}"))
        if hit.explain is not None:
            lines.append(paint.dim(f"Explain: {clean_line(_explanation(hit.explain))}"))
        text = view.text(hit, partial(_painted, hit.marks, words, paint)).rstrip("\n")
        blocks.append("\n".join([*lines, "", text]))
    return "\n\n\n".join(blocks) + "\n" if blocks else ""
