"""`qmd context ...`: what a folder is about, said once and returned with every hit below it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmd.serve.cli.lazy import LazyGroup, Place
from qmd.serve.cli.options import command, complete_place, output_options
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from qmd.index import Index
    from qmd.reports import Context

_HERE = "qmd.serve.cli.commands_context"

PLACES = {
    "add": Place(f"{_HERE}:add", "Describe a collection or a folder in it."),
    "list": Place(f"{_HERE}:list_", "List the descriptions."),
    "rm": Place(f"{_HERE}:rm", "Take a description away."),
}


@click.group(
    cls=LazyGroup,
    places=PLACES,
    aliases={"remove": "rm", "ls": "list"},
    epilog="""
    qmd context add qmd://notes/travel "Trips, 2015 to today"
    qmd context list
    """,
)
def context() -> None:
    """Describe folders; hits carry the description.

    A person or a model that reads a hit then knows what kind of document it is. Descriptions of outer
    folders hold for inner ones.
    """


def place_of(index: Index, path: str) -> str:
    """`/`, `collection/folder` and `qmd://` as they are; a path on disk becomes the place that it has in
    the index.
    """
    from qmd.errors import NotFound
    from qmd.search.reference import on_disk

    if path == "/" or path.startswith("qmd://"):
        return path
    if not (path.startswith((".", "~", os.sep)) or os.path.isabs(path)):
        return path
    folder = on_disk(path).resolve()
    best: tuple[int, str] | None = None
    for one in index.list_collections():
        root = Path(one.root).resolve()
        if folder.is_relative_to(root):
            tail = folder.relative_to(root).as_posix()
            place = one.name if tail == "." else f"{one.name}/{tail}"
            best = max(best or (0, ""), (len(root.parts), place))
    if best is None:
        raise NotFound(f"{folder} lies in no collection. `qmd ls` shows them; `qmd add FOLDER` makes one.")
    return best[1]


def _address(found: Context) -> str:
    if found.collection == "/":
        return "/"
    return f"qmd://{found.collection}/{found.path.lstrip('/')}"


@command(
    epilog="""
    qmd context add qmd://notes "Personal notes"
    qmd context add notes/travel "Trips, 2015 to today"
    qmd context add / "Everything of mine, in English and Japanese"
    cd ~/notes/work && qmd context add "Work notes"
    """
)
@click.argument("words", nargs=-1, required=True, metavar="[PATH] TEXT", shell_complete=complete_place)
@output_options("cli", "json")
@pass_session
def add(session: Session, words: tuple[str, ...]) -> None:
    """Describe a collection or a folder in it.

    PATH is / for everything, a collection, collection/folder, qmd://collection/folder or a folder on disk;
    without it the working directory is meant.
    """
    from qmd.serve.cli.answer import answer
    from qmd.serve.cli.screen import clean_line

    path, text = (".", words[0]) if len(words) == 1 else (words[0], " ".join(words[1:]))
    with session.open(create=True) as index:
        added = index.add_context(place_of(index, path), text)
    answer(session, added, [clean_line(f"{_address(added)}: {added.text}")])


@command(
    name="list",
    epilog="""
    qmd context list
    qmd context list --json
    """,
)
@output_options("cli", "json", "jsonl", "csv")
@pass_session
def list_(session: Session) -> None:
    """List the descriptions."""
    from qmd.serve.cli.answer import answer_list
    from qmd.serve.cli.screen import clean_line, say, style

    with session.open() as index:
        found = index.list_contexts()
    if session.format == "cli" and not found:
        say('No contexts yet. `qmd context add qmd://NAME "what it is about"` makes one.')
        return
    paint = style()
    lines = (f"{paint.place(clean_line(_address(c)))}  {clean_line(c.text)}" for c in found)
    answer_list(session, found, ("collection", "path", "text"), lines)


@command(
    epilog="""
    qmd context rm notes/travel
    qmd context rm /
    """
)
@click.argument("path", shell_complete=complete_place)
@output_options("cli", "json")
@pass_session
def rm(session: Session, path: str) -> None:
    """Take a description away."""
    from qmd.serve.cli.answer import answer
    from qmd.serve.cli.screen import clean_line

    with session.open() as index:
        place = place_of(index, path)
        index.remove_context(place)
    answer(session, {"removed": place}, [clean_line(f"Removed the context of {place}.")])
