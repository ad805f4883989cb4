"""Whole documents, or lines of them, in every output format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qmd.serve.cli.escape import code_block, code_span, csv_cell, csv_text, numbered
from qmd.serve.cli.format_hits import hash_mark
from qmd.serve.cli.records import to_csv, to_json, to_jsonl, to_xml
from qmd.serve.cli.screen import Style, clean, clean_line

if TYPE_CHECKING:
    from qmd.reports import DocumentText, NotShown

COLUMNS = ("docid", "file", "title", "context", "line", "end_line", "lines", "skipped", "body")


def document_record(
    found: DocumentText | NotShown, *, line_numbers: bool, names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON of one document; one that was left out says `skipped` and the `reason`."""
    from qmd.reports import NotShown

    if isinstance(found, NotShown):
        return {"file": found.file, "skipped": True, "reason": found.reason}
    record: dict[str, Any] = {
        "docid": hash_mark(found.docid),
        "file": (names or {}).get(found.file, found.file),
        "title": found.title,
    }
    if found.context:
        record["context"] = found.context
    record |= {
        "collection": found.collection,
        "line": found.line,
        "end_line": found.end_line,
        "lines": found.lines,
        "body": numbered(found.text, found.line) if line_numbers else found.text,
    }
    return record


def format_documents(
    found: Sequence[DocumentText | NotShown],
    format: str,
    *,
    line_numbers: bool,
    single: bool = False,
    names: Mapping[str, str] | None = None,
) -> str:
    """All formats but cli. `single` gives one JSON object in place of an array (`get`)."""
    records = [document_record(f, line_numbers=line_numbers, names=names) for f in found]
    if format == "json":
        return to_json(records[0] if single else records)
    if format == "jsonl":
        return to_jsonl(records)
    if format == "csv":
        return to_csv(
            [
                r | {"skipped": bool(r.get("skipped")), "body": r.get("body", r.get("reason"))}
                for r in records
            ],
            COLUMNS,
        )
    if format == "xml":
        return to_xml("documents", "document", records, text=("body", "reason"))
    if format == "files":
        return "".join(_file_line(r) for r in records)
    assert format == "md", format
    return "\n".join(_markdown(r) for r in records)


def _file_line(record: Mapping[str, Any]) -> str:
    cells = [str(record["docid"])] if "docid" in record else []
    cells.append(csv_cell(str(record["file"])))
    if record.get("context"):
        cells.append(csv_text(str(record["context"])))
    if record.get("skipped"):
        cells.append("[SKIPPED]")
    return ",".join(cells) + "\n"


def _markdown(record: Mapping[str, Any]) -> str:
    lines = [f"## {code_span(str(record['file']))}", ""]
    if record.get("skipped"):
        return "\n".join([*lines, f"> {record['reason']}", ""])
    lines.append(f"**docid:** {code_span(str(record['docid']))}")
    if record["title"]:
        lines.append(f"**title:** {' '.join(str(record['title']).split())}")
    if record.get("context"):
        lines.append(f"**context:** {' '.join(str(record['context']).split())}")
    lines.append(f"**lines:** {record['line']}-{record['end_line']} of {record['lines']}")
    return "\n".join([*lines, "", code_block(str(record["body"])), ""])


def show_documents(
    found: Sequence[DocumentText | NotShown],
    paint: Style,
    *,
    line_numbers: bool,
    names: Mapping[str, str] | None = None,
    cleaned: bool,
) -> str:
    """Documents for a person: a header line with the id, then the text. `cleaned` for terminals."""
    from qmd.reports import NotShown

    blocks = []
    for one in found:
        if isinstance(one, NotShown):
            blocks.append(paint.warn(f"{clean_line(one.file)}: not shown: {clean_line(one.reason)}") + "\n")
            continue
        place = clean_line((names or {}).get(one.file, one.file))
        header = f"{paint.place(place)}  {paint.dim(hash_mark(one.docid))}"
        if (one.line, one.end_line) != (1, one.lines):
            header += paint.dim(f"  lines {one.line}-{one.end_line} of {one.lines}")
        lines = [header]
        if one.context:
            lines.append(paint.dim(f"Context: {clean_line(one.context)}"))
        text = numbered(one.text.removesuffix("\n"), one.line) if line_numbers else one.text
        text = clean(text) if cleaned else text
        blocks.append("\n".join([*lines, "---", "", text if text.endswith("\n") else text + "\n"]))
    return "\n".join(blocks)
