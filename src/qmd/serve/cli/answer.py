"""Answer in the session's format: the machine formats of records, or lines for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qmd.serve.cli.records import plain, to_csv, to_json, to_jsonl
from qmd.serve.cli.screen import write
from qmd.serve.cli.session import Session


def answer(session: Session, value: Any, lines: Iterable[str]) -> None:
    """One report. `lines` are cleaned of what a document may contain, and may carry our own colours."""
    if session.format == "json":
        write(to_json(value))
    else:
        write("".join(f"{line}\n" for line in lines), trusted=True)


def answer_list(
    session: Session, values: Sequence[Any], columns: Sequence[str], lines: Iterable[str]
) -> None:
    """Several records of one kind; `columns` are the fields that CSV shows, in its order."""
    if session.format == "jsonl":
        write(to_jsonl(values))
    elif session.format == "csv":
        write(to_csv([plain(v) for v in values], columns))
    else:
        answer(session, list(values), lines)
