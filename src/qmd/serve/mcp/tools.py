"""What each tool does: ask the index, write the answer as text and as structured content. Knows no protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from qmd.errors import NotFound, UsageError
from qmd.serve.cli.escape import numbered
from qmd.serve.cli.format_hits import hash_mark, image_line
from qmd.serve.mcp.marking import NOTICE, marked, new_mark, safe, safe_line, safe_tree, uri_of
from qmd.serve.vault import linker

if TYPE_CHECKING:
    from qmd.reports import DocumentText, Status
    from qmd.search.answer import Answer as Written
    from qmd.serve.mcp.near import AnyIndex
    from qmd.types import Hit, Hits

_STALE = {"changed": "changed", "gone": "was deleted"}
ANSWER_CHARS = 1_000_000
"""Most text in one answer of `multi_get`; what would go beyond it is named instead."""


MOST_DOCUMENTS = 1_000
"""As many documents does one answer of `multi_get` show or name."""
IMAGE_BYTES = 5 << 20
"""Largest picture that `get` sends."""


class Cancelled(Exception):
    """The client no longer wants the answer."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a running call may say and ask. `progress(done, total, message)`; `cancelled()` is true once the client
    has left."""

    progress: Callable[[float, float | None, str], None] = lambda done, total, message: None
    cancelled: Callable[[], bool] = lambda: False

    def check(self) -> None:
        if self.cancelled():
            raise Cancelled


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool gives: content blocks for a model, the same as structured content."""

    content: list[dict[str, Any]]
    structured: dict[str, Any]

    def result(self) -> dict[str, Any]:
        return {"content": self.content, "structuredContent": self.structured, "isError": False}


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


# ---- query


def query(index: AnyIndex, asked: Mapping[str, Any], call: Call) -> Answer:
    """Typed sub-queries are lines of the query language, so that every stage of a search sees them.

    Raises UsageError where not exactly one of `query` and `searches` is there.
    """
    searches = asked["searches"] or ()
    text = asked["query"] or ""
    if bool(text.strip()) == bool(searches):
        reason = "not both" if searches else "neither was given"
        raise UsageError(
            f"query: give either 'query' (plain text) or 'searches' (typed sub-queries); {reason}."
        )
    call.progress(0, 1, "searching")
    lines = [f"{kind}: {' '.join(words.split())}" for kind, words in searches]
    options = {name: asked[name] for name in ("limit", "full", "explain")} | _conditions(asked)
    options |= {n: asked[n] for n in ("intent", "candidate_limit", "budget_ms") if asked[n] is not None}
    if not asked["rerank"]:
        options["rerank"] = False
    hits = index.query("\n".join(lines) or text, **options)
    if searches:
        text = next((words for kind, words in searches if kind == "lex"), searches[0][1])
    call.progress(1, 1, "found")
    named = {hit.collection for hit in hits}
    link = linker(index.store.roots() if named else {}, named)
    records = [_result(hit, link(hit.collection, hit.path)) for hit in hits]
    told = {"results": records, "degraded": list(hits.degraded), "untrusted": True}
    if hits.nothing_relevant:
        told["nothing_relevant"] = True
    structured = safe_tree(told)
    return Answer([text_block(_results_text(hits, structured["results"], text))], structured)


def _conditions(asked: Mapping[str, Any]) -> dict[str, Any]:
    said = {
        "collections": asked["collections"] or (),
        "path": asked["path"],
        "tags": asked["tags"] or (),
        "title": asked["title"],
        "type": asked["type"],
        "lang": asked["lang"],
        "after": asked["after"],
        "before": asked["before"],
        "min_score": asked.get("min_score") or None,
    }
    return {name: value for name, value in said.items() if value not in (None, ())}


def _result(hit: Hit, link: str | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "docid": hash_mark(hit.docid),
        "file": safe_line(f"{hit.collection}/{hit.path}"),
        "uri": uri_of(hit.collection, hit.path),
        "title": safe_line(hit.title),
        "score": round(float(hit.score), 4),
        "line": hit.line,
        "end_line": hit.end_line,
        "heading": [safe_line(h) for h in hit.heading_path],
    }
    if hit.context:
        record["context"] = hit.context
    if hit.body is not None:
        record["body"] = hit.body
    elif hit.snippet is not None:
        record["snippet"] = numbered(hit.snippet.removesuffix("\n"), hit.line)
    if link is not None:
        record["link"] = link
    if hit.quote:
        record["quote"] = hit.quote
    if hit.stale:
        record["stale"] = hit.stale
    if hit.duplicates:
        record["duplicates"] = list(hit.duplicates)
    if hit.image is not None:
        record["image"] = dict(hit.image)
    if hit.explain is not None:
        record["explain"] = hit.explain
    return record


def _results_text(hits: Hits, records: Sequence[Mapping[str, Any]], text: str) -> str:
    asked = safe_line(text)
    asked = asked if len(asked) <= 80 else f"{asked[:80]}..."
    lines = [f'{len(records)} result{"" if len(records) == 1 else "s"} for "{asked}".']
    lines += [f"Note: {safe_line(reason)}" for reason in hits.degraded]
    if not records:
        lines.append("Nothing found. Try other words, or `status` to see what is indexed.")
        return "\n".join(lines)
    lines[0] += f" {NOTICE}"
    if hits.nothing_relevant:
        lines.append("Nothing here seems to answer this: the results are only the nearest there is.")
    mark = new_mark()
    for record in records:
        place = f"{record['file']}:{record['line']}"
        lines.append(f"\n{place}  {record['docid']}  score {record['score']:.4g}  {record['title']}")
        if record.get("image"):
            lines.append(
                f"A picture ({image_line(record['image'])}): `get` shows it, {record['uri']} names it"
            )
        if record.get("stale"):
            lines.append(f"Stale: the file {_STALE[record['stale']]} since it was indexed")
        if record.get("context"):
            lines.append(f"Context: {safe_line(record['context'])}")
        shown = record.get("body", record.get("snippet"))
        if shown:
            lines.append(marked(str(shown), mark, source=place))
    return "\n".join(lines)


# ---- get, multi_get


def get(index: AnyIndex, asked: Mapping[str, Any], call: Call) -> Answer:
    """Raises NotFound, naming the nearest documents."""
    document = index.get(asked["file"], from_line=asked["from_line"], max_lines=asked["max_lines"])
    record, cut = _document(document, line_numbers=asked["line_numbers"], max_bytes=asked["max_bytes"])
    blocks = _document_blocks(record, new_mark(), cut=cut, notice=True, line_numbers=asked["line_numbers"])
    picture = image_block(index, document)
    if picture is not None:
        blocks.append(picture)
    return Answer(blocks, record)


def image_block(index: AnyIndex, document: DocumentText) -> dict[str, Any] | None:
    """The picture itself, as the protocol's image content; None for a text, and for one too large to send."""
    from base64 import b64encode

    from qmd.index import Index
    from qmd.ingest.walk import PICTURES
    from qmd.serve.service.images import read_image

    if document.path.rpartition(".")[2].lower() not in PICTURES:
        return None
    try:
        data, kind = read_image(index if isinstance(index, Index) else index.own, document.docid)
    except NotFound:  # gone since, or no picture after all
        return None
    if len(data) > IMAGE_BYTES:
        return None
    return {"type": "image", "data": b64encode(data).decode("ascii"), "mimeType": kind}


def multi_get(index: AnyIndex, asked: Mapping[str, Any], call: Call) -> Answer:
    """Raises NotFound where nothing matches at all."""
    from qmd.reports import NotShown

    found = index.each(asked["pattern"], max_lines=asked["max_lines"], max_bytes=asked["max_bytes"])
    documents: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    content: list[dict[str, Any]] = []
    mark, size = new_mark(), 0
    for item in islice(found, MOST_DOCUMENTS):
        call.check()
        if isinstance(item, NotShown):
            left_out.append(safe_tree({"file": safe_line(item.file), "reason": item.reason}))
            continue
        if size + len(item.text) > ANSWER_CHARS:
            left_out.append(
                safe_tree({"file": safe_line(item.file), "reason": "the answer is full; read it with `get`"})
            )
            continue
        size += len(item.text)
        record, cut = _document(item, line_numbers=asked["line_numbers"], max_bytes=None)
        documents.append(record)
        content += _document_blocks(
            record, mark, cut=cut, notice=not content, line_numbers=asked["line_numbers"]
        )
    if not documents and not left_out:
        raise NotFound(f"no document matches {asked['pattern']!r}. `status` shows the collections.")
    if left_out:
        named = "\n".join(f"Not shown: {row['file']}: {row['reason']}" for row in left_out)
        content.insert(0, text_block(named))
    if not documents:
        raise NotFound(content[0]["text"])
    return Answer(content, {"documents": documents, "not_shown": left_out, "untrusted": True})


def _document(
    document: DocumentText, *, line_numbers: bool, max_bytes: int | None
) -> tuple[dict[str, Any], bool]:
    """(the record of a document, whether its last line is cut). To fit into `max_bytes` it ends at a line; within one
    where the first alone is longer."""
    lines = safe(document.text).split("\n")
    end, cut = document.end_line, False
    if max_bytes is not None and len(document.text) * 4 > max_bytes:
        size = 0
        for at, line in enumerate(lines):
            size += len(line.encode()) + 1
            if size > max_bytes + 1:
                cut = at == 0
                lines = [line.encode()[:max_bytes].decode(errors="ignore")] if cut else lines[:at]
                end = document.line + len(lines) - 1
                break
    text = "\n".join(lines)
    record = {
        "docid": hash_mark(document.docid),
        "file": safe_line(f"{document.collection}/{document.path}"),
        "uri": uri_of(document.collection, document.path),
        "title": safe_line(document.title),
        "line": document.line,
        "end_line": end,
        "lines": document.lines,
        "text": numbered(text, document.line) if line_numbers else text,
        "untrusted": True,
    }
    if document.context:
        record["context"] = safe(document.context)
    return record, cut


def _document_blocks(
    record: Mapping[str, Any], mark: str, *, cut: bool, notice: bool, line_numbers: bool
) -> list[dict[str, Any]]:
    """A line that says what it is, and the text as an embedded resource, which names its source by itself."""
    head = f"{record['file']}  {record['docid']}  lines {record['line']}-{record['end_line']} of {record['lines']}"
    if record.get("context"):
        head += f"\nContext: {safe_line(record['context'])}"
    if cut:
        head += f"\nLine {record['line']} goes on: a larger maxBytes shows more of it"
    if record["end_line"] < record["lines"]:
        head += f'\nMore follows: get file="{record["docid"]}" fromLine={record["end_line"] + 1}'
    if notice:
        head = f"{NOTICE}\n{head}"
    text = record["text"]
    if line_numbers:  # without them the bare text was asked for, to be copied
        text = f"<document-{mark}>\n{text}\n</document-{mark}>"
    resource = {"uri": record["uri"], "mimeType": mime_type(record["file"]), "text": text}
    return [text_block(head), {"type": "resource", "resource": resource}]


def mime_type(path: str) -> str:
    """text/markdown for Markdown, text/plain for all else: what is stored is the text that was read."""
    return "text/markdown" if path.lower().endswith((".md", ".markdown", ".mdx")) else "text/plain"


# ---- status, ask


def status(
    index: AnyIndex, asked: Mapping[str, Any], call: Call, count: Callable[[], Status] | None = None
) -> Answer:
    """`count`: in place of `Index.status`, where somebody has counted already."""
    now = (count or index.status)()
    contexts = {(c.collection, c.path): c.text for c in now.contexts}
    newest = index.store.documents.newest()
    collections = []
    for row in now.collections:
        one: dict[str, Any] = {
            "name": row.name,
            "path": row.root,
            "pattern": ",".join(row.patterns) or None,
            "documents": row.documents,
            "lastUpdated": _time(newest[row.name] / 1e9) if row.name in newest else None,
            "searched": row.include,
            "missing": row.missing,
        }
        if (row.name, "") in contexts:
            one["context"] = contexts[row.name, ""]
        collections.append(one)
    structured = safe_tree(
        {
            "totalDocuments": now.documents,
            "needsEmbedding": now.pending,
            "hasVectorIndex": any(v.done for v in now.vectors),
            "collections": collections,
            "chunks": now.chunks,
            "model": now.model,
            "languages": dict(now.languages),
            "contexts": [{"collection": c.collection, "path": c.path, "text": c.text} for c in now.contexts],
            "size_bytes": now.size_bytes,
        }
    )
    lines = [
        f"{now.documents} documents in {_plural(len(now.collections), 'collection')}, {now.chunks} passages.",
        f"Vectors: {'yes' if structured['hasVectorIndex'] else 'none yet; run `qmd embed`'}"
        + (f", {now.pending} passages still without" if now.pending else ""),
    ]
    for one in structured["collections"]:
        about = f": {safe_line(one['context'])}" if one.get("context") else ""
        gone = " (its folder is gone)" if one["missing"] else ""
        lines.append(f"- {one['name']}, {one['documents']} documents{gone}{about}")
    return Answer([text_block("\n".join(lines))], structured)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ask(answer: Callable[..., Written], asked: Mapping[str, Any], call: Call) -> Answer:
    """`answer` is called as `Index.ask` is. Raises ModelError, MissingExtra where no model can answer."""
    if not asked["question"].strip():
        raise UsageError("ask: the question is empty.")
    limit = asked["max_new_tokens"]
    call.progress(0, limit, "searching and opening the model")
    written = 0

    def stream(piece: str) -> None:
        nonlocal written
        call.check()
        written = min(written + 1, limit)
        call.progress(written, limit, safe_line(piece))

    found = answer(
        asked["question"],
        limit=asked["limit"],
        max_new_tokens=limit,
        stream=stream,
        **{k: v for k, v in _conditions(asked).items() if k != "min_score"},
    )
    shown = found.cited or found.sources
    structured = safe_tree(
        {
            "answer": found.marked(),
            "found": found.found,
            "model": found.model,
            "sources": [
                {
                    "number": s.number,
                    "file": safe_line(s.file),
                    "line": s.line,
                    "end_line": s.end_line,
                    "title": safe_line(s.title),
                }
                for s in shown
            ],
            "claims": [
                {"text": c.text, "supported": c.supported, "cited": list(c.cited)} for c in found.claims
            ],
            "degraded": list(found.degraded),
        }
    )
    lines = [NOTICE, marked(found.marked(), new_mark(), source=f"written by {found.model or 'no model'}")]
    if not found.found:
        lines = [safe(found.text)]
    lines += [f"Note: {safe_line(reason)}" for reason in found.degraded]
    lines += [f"[{s['number']}] {s['file']}:{s['line']}  {s['title']}" for s in structured["sources"]]
    return Answer([text_block("\n".join(lines))], structured)


RUN: Mapping[str, Callable[[Any, Mapping[str, Any], Call], Answer]] = {
    "query": query,
    "get": get,
    "multi_get": multi_get,
}
