"""`qmd get`, `qmd multi-get`, `qmd ls`: read what a search found, and see what there is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from qmd.serve.cli.options import command, complete_place, output_options
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from qmd.index import Index
    from qmd.reports import DocumentText, NotShown

MULTI_GET_MAX_BYTES = 65_536

_LINE_NUMBERS = click.option(
    "--line-numbers/--no-line-numbers",
    default=None,
    help="Number the lines.  [default: in cli and md, not in the data formats]",
)
_FULL_PATH = click.option(
    "--full-path", is_flag=True, help="The path on disk in place of qmd://collection/path."
)


def _names(index: Index, found: list[DocumentText | NotShown], full_path: bool) -> Mapping[str, str]:
    if not full_path:
        return {}
    from qmd.reports import DocumentText
    from qmd.serve.cli.disk import paths_on_disk, readable

    documents = [f for f in found if isinstance(f, DocumentText)]
    return {file: readable(path) for file, path in paths_on_disk(index, documents).items()}


def _show(
    session: Session,
    found: list[DocumentText | NotShown],
    names: Mapping[str, str],
    line_numbers: bool | None,
    *,
    single: bool,
) -> None:
    from qmd.serve.cli.format_documents import format_documents, show_documents
    from qmd.serve.cli.screen import is_terminal, style, write

    if session.format == "cli":
        numbers = line_numbers is not False
        cleaned = is_terminal(sys.stdout)
        write(
            show_documents(found, style(), line_numbers=numbers, names=names, cleaned=cleaned), trusted=True
        )
        return
    numbers = session.format == "md" if line_numbers is None else line_numbers
    write(format_documents(found, session.format, line_numbers=numbers, single=single, names=names))


@command(
    epilog="""
    qmd get notes/travel/lisbon.md
    qmd get qmd://notes/travel/lisbon.md:40:20
    qmd get '#abc123' --from 10 -l 30
    qmd get '#abc123' --raw > copy.md
    """
)
@click.argument("ref", shell_complete=complete_place)
@click.option("--from", "from_line", type=click.IntRange(min=1), metavar="LINE", help="Start at this line.")
@click.option("-l", "--max-lines", type=click.IntRange(min=1), metavar="N", help="At most this many lines.")
@click.option("--full", is_flag=True, help="The whole document (the default; a habit of the original).")
@click.option("--raw", is_flag=True, help="The bare text: no header, no line numbers.")
@_LINE_NUMBERS
@_FULL_PATH
@output_options()
@pass_session
def get(
    session: Session,
    ref: str,
    from_line: int | None,
    max_lines: int | None,
    full: bool,
    raw: bool,
    line_numbers: bool | None,
    full_path: bool,
) -> None:
    """Show one document, or some lines of it.

    REF is a path (notes/a.md), a qmd:// address or a docid ('#abc123'). A suffix picks lines: notes/a.md:40
    from line 40 on, notes/a.md:40:20 twenty lines from there.
    """
    from qmd.serve.cli.screen import write

    if full and (from_line is not None or max_lines is not None):
        raise click.UsageError("--full excludes --from and --max-lines.")
    with session.open() as index:
        document = index.get(ref, from_line=from_line, max_lines=max_lines)
        names = _names(index, [document], full_path)
    if raw:
        write(document.text if document.text.endswith("\n") else document.text + "\n")
    else:
        _show(session, [document], names, line_numbers, single=True)


@command(
    name="multi-get",
    epilog="""
    qmd multi-get 'notes/journal/2024-05*.md'
    qmd multi-get '#abc123,#def456' --md
    qmd multi-get 'notes/a.md,notes/b.md' -l 40 --json
    """,
)
@click.argument("pattern", shell_complete=complete_place)
@click.option(
    "-l", "--max-lines", type=click.IntRange(min=1), metavar="N", help="At most this many lines of each."
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=MULTI_GET_MAX_BYTES,
    show_default=True,
    help="Leave out larger documents, and say so.",
)
@_LINE_NUMBERS
@_FULL_PATH
@output_options()
@pass_session
def multi_get(
    session: Session,
    pattern: str,
    max_lines: int | None,
    max_bytes: int,
    line_numbers: bool | None,
    full_path: bool,
) -> None:
    """Show several documents.

    PATTERN is a glob over collection/path, or a comma-separated list of paths, qmd:// addresses and docids.
    """
    from qmd.errors import NotFound
    from qmd.reports import NotShown

    with session.open() as index:
        found = index.multi_get(pattern, max_lines=max_lines, max_bytes=max_bytes)
        names = _names(index, found, full_path)
    if not found:
        raise NotFound(
            f"no document matches {pattern!r}. `qmd ls` shows collections, `qmd ls NAME` their documents."
        )
    _show(session, found, names, line_numbers, single=False)
    missing = [f for f in found if isinstance(f, NotShown)]
    if len(missing) == len(found):
        click.get_current_context().exit(NotFound.exit_code)


_LS_COLUMNS = ("docid", "file", "title", "size_bytes", "modified")


@command(
    epilog="""
    qmd ls
    qmd ls notes
    qmd ls notes/travel
    qmd ls 'notes/*.md' --files
    """
)
@click.argument("path", required=False, shell_complete=complete_place)
@output_options("cli", "json", "jsonl", "csv", "files")
@pass_session
def ls(session: Session, path: str | None) -> None:
    """List collections and documents.

    PATH is a collection, a folder in it (notes/travel) or a glob. Sizes are in bytes.
    """
    from qmd.errors import NotFound
    from qmd.serve.cli.answer import answer_list
    from qmd.serve.cli.escape import csv_cell
    from qmd.serve.cli.format_hits import hash_mark
    from qmd.serve.cli.records import plain
    from qmd.serve.cli.screen import clean_line, style, write

    with session.open() as index:
        if path is None:
            from qmd.serve.cli.commands_collection import write_collections

            write_collections(session, index.list_collections())
            return
        entries = index.ls(path)
    if not entries:
        raise NotFound(f"nothing indexed at {path!r}. `qmd ls` shows the collections.")
    if session.format == "files":
        write("".join(f"{hash_mark(e.docid)},{csv_cell(e.file)}\n" for e in entries))
        return
    paint = style()
    width = max(len(f"{e.size_bytes:,}") for e in entries)
    lines = (
        f"{paint.dim(hash_mark(e.docid))}  {e.size_bytes:>{width},}  {_when(e.modified)[:10]}"
        f"  {paint.place(clean_line(e.file))}"
        for e in entries
    )
    records = [plain(e) | {"docid": hash_mark(e.docid), "modified": _when(e.modified)} for e in entries]
    answer_list(session, records, _LS_COLUMNS, lines)


def _when(modified: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(modified, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
