"""`qmd collection ...`: the folders that are indexed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmd.serve.cli.lazy import LazyGroup, Place
from qmd.serve.cli.options import command, complete_collection, output_options, split_patterns
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from qmd.index import Index
    from qmd.reports import CollectionStatus

_HERE = "qmd.serve.cli.commands_collection"

PLACES = {
    "add": Place(f"{_HERE}:add", "Register a folder and index its text."),
    "list": Place(f"{_HERE}:list_", "List the collections."),
    "show": Place(f"{_HERE}:show", "Show one collection: folder, patterns, contexts."),
    "remove": Place(f"{_HERE}:remove", "Forget a collection. The files on disk are not touched."),
    "rename": Place(f"{_HERE}:rename", "Give a collection another name. Nothing is read or embedded again."),
    "include": Place(f"{_HERE}:include", "Search a collection by default, as every new one is."),
    "exclude": Place(f"{_HERE}:exclude", "Search a collection only when -c names it."),
    "import": Place(f"{_HERE}:import_", "Take over the collections and contexts of the TypeScript original."),
}
ALIASES = {"rm": "remove", "mv": "rename", "info": "show", "ls": "list"}


@click.group(
    cls=LazyGroup,
    places=PLACES,
    aliases=ALIASES,
    epilog="""
    qmd collection add ~/notes --name notes
    qmd collection list
    qmd collection exclude archive
    """,
)
def collection() -> None:
    """Manage indexed folders.

    A collection is a folder with a name; its documents are qmd://NAME/path.
    """


def _one(index: Index, name: str) -> CollectionStatus:
    from difflib import get_close_matches

    from qmd.errors import NotFound

    known = {c.name: c for c in index.list_collections()}
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "`qmd collection list` shows the names."
    raise NotFound(f"no collection is called {name!r}. {hint}")


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_NAME = click.argument("name", shell_complete=complete_collection)

PATTERN_OPTION = click.option(
    "--pattern",
    "--mask",
    "--glob",
    "patterns",
    multiple=True,
    metavar="GLOB",
    help="Only files that match ('**/*.md'); a comma-separated list, or repeated.",
)
IGNORE_OPTION = click.option(
    "--ignore", multiple=True, metavar="GLOB", help="Leave out files that match; a list, or repeated."
)


@command(
    epilog="""
    qmd collection add ~/notes --name notes
    qmd collection add . --pattern '**/*.md' --ignore 'drafts/**'
    qmd collection add ~/code/qmd --mask '*.py,docs/*.md'
    """
)
@click.argument("folder", type=_FOLDER)
@click.option("--name", help="What to call it.  [default: the folder's name]")
@PATTERN_OPTION
@IGNORE_OPTION
@output_options("cli", "json")
@pass_session
def add(
    session: Session, folder: Path, name: str | None, patterns: tuple[str, ...], ignore: tuple[str, ...]
) -> None:
    """Register a folder and index its text.

    `qmd add FOLDER` does this and makes the vectors as well.
    """
    from qmd.serve.cli.commands_upkeep import run_update
    from qmd.serve.cli.screen import say

    with session.open(create=True) as index:
        added = index.add_collection(
            folder, name=name, patterns=split_patterns(patterns), ignore=split_patterns(ignore)
        )
        run_update(session, index, (added.name,))
        if session.format == "cli":
            say(f"Collection '{added.name}' can be searched by keyword. `qmd embed` adds search by meaning.")


_COLUMNS = ("name", "root", "documents", "include", "missing", "patterns", "ignore")


def write_collections(session: Session, found: Sequence[CollectionStatus]) -> None:
    """The list of collections in the session's format."""
    from qmd.serve.cli.answer import answer_list
    from qmd.serve.cli.screen import clean_line, say, style, write

    if session.format == "files":
        write("".join(f"qmd://{c.name}/\n" for c in found))
        return
    if session.format == "cli" and not found:
        say("No collections yet. `qmd add FOLDER` makes one.")
        return
    paint = style()
    width = max((len(clean_line(c.name)) for c in found), default=0)
    lines = []
    for one in found:
        name = clean_line(one.name)
        marks = [] if one.include else ["only when named"]
        marks += ["folder is not there"] if one.missing else []
        lines.append(
            f"{paint.place(f'qmd://{name}/')}{'':{width - len(name)}}"
            f"  {one.documents:>7,} documents  {clean_line(one.root)}"
            f"{paint.warn('  (' + ', '.join(marks) + ')') if marks else ''}"
        )
    answer_list(session, found, _COLUMNS, lines)


@command(
    name="list",
    epilog="""
    qmd collection list
    qmd collection list --json
    """,
)
@output_options("cli", "json", "jsonl", "csv")
@pass_session
def list_(session: Session) -> None:
    """List the collections."""
    with session.open() as index:
        write_collections(session, index.list_collections())


@command(epilog="qmd collection show notes")
@_NAME
@output_options("cli", "json")
@pass_session
def show(session: Session, name: str) -> None:
    """Show one collection: folder, patterns, contexts."""
    from qmd.serve.cli.answer import answer
    from qmd.serve.cli.records import plain
    from qmd.serve.cli.screen import clean_line, style

    with session.open() as index:
        one = _one(index, name)
        contexts = [c for c in index.list_contexts() if c.collection in (name, "/")]
    rows = [
        ("Collection", one.name),
        ("Folder", one.root + ("  (is not there)" if one.missing else "")),
        ("Documents", f"{one.documents:,}"),
        ("Patterns", ", ".join(one.patterns) or "all supported files"),
        ("Ignored", ", ".join(one.ignore) or "what .gitignore and .qmdignore name"),
        ("Searched", "by default" if one.include else "only when it is named"),
        *(
            (f"Context {'/' + c.path.lstrip('/') if c.collection != '/' else '(all)'}", c.text)
            for c in contexts
        ),
    ]
    paint = style()
    width = max(len(label) for label, _ in rows) + 1
    lines = (
        f"{paint.bold(f'{clean_line(label)}:'.ljust(width))}  {clean_line(value)}" for label, value in rows
    )
    answer(session, plain(one) | {"contexts": contexts}, lines)


def _done(session: Session, message: str, **fields: object) -> None:
    from qmd.serve.cli.answer import answer
    from qmd.serve.cli.screen import clean_line

    answer(session, fields, [clean_line(message)])


@command(
    epilog="""
    qmd collection remove archive
    qmd collection rm archive
    """
)
@_NAME
@output_options("cli", "json")
@pass_session
def remove(session: Session, name: str) -> None:
    """Forget a collection. The files on disk are not touched."""
    with session.open() as index:
        documents = _one(index, name).documents
        index.remove_collection(name)
    _done(session, f"Removed '{name}' ({documents:,} documents).", removed=name, documents=documents)


@command(epilog="qmd collection rename notes journal")
@click.argument("old", shell_complete=complete_collection)
@click.argument("new")
@output_options("cli", "json")
@pass_session
def rename(session: Session, old: str, new: str) -> None:
    """Give a collection another name. Nothing is read or embedded again."""
    with session.open() as index:
        _one(index, old)
        index.rename_collection(old, new)
    _done(session, f"'{old}' is now '{new}' (qmd://{new}/).", old=old, new=new)


@command(epilog="qmd collection include archive")
@_NAME
@output_options("cli", "json")
@pass_session
def include(session: Session, name: str) -> None:
    """Search a collection by default, as every new one is."""
    with session.open() as index:
        _one(index, name)
        index.include_collection(name)
    _done(session, f"'{name}' is searched by default.", name=name, include=True)


@command(
    epilog="""
    qmd collection exclude archive
    qmd search tax -c archive
    """
)
@_NAME
@output_options("cli", "json")
@pass_session
def exclude(session: Session, name: str) -> None:
    """Search a collection only when -c names it."""
    with session.open() as index:
        _one(index, name)
        index.exclude_collection(name)
    _done(session, f"'{name}' is searched only when -c names it.", name=name, include=False)


@command(
    name="import",
    epilog="""
    qmd collection import
    qmd collection import ~/.config/qmd/index.yml && qmd update && qmd embed
    """,
)
@click.argument(
    "index_yml",
    required=False,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="[INDEX_YML]",
)
@output_options("cli", "json")
@pass_session
def import_(session: Session, index_yml: Path | None) -> None:
    """Take over the collections and contexts of the TypeScript original.

    Reads ~/.config/qmd/index.yml unless another file is named. Names that exist here stay as they are.
    """
    with session.open(create=True) as index:
        names = index.import_original(index_yml)
    listed = ", ".join(names)
    message = (
        f"Took over {len(names)} collections: {listed}. Run `qmd update` to read them, then `qmd embed`."
        if names
        else "No new collections there."
    )
    _done(session, message, collections=names)
