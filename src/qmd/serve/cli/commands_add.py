"""`qmd add` and `qmd init`: from nothing to searching."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmd.serve.cli import exits
from qmd.serve.cli.commands_collection import IGNORE_OPTION, PATTERN_OPTION
from qmd.serve.cli.options import command, output_options, split_patterns
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from qmd.reports import EmbedReport


@command(
    epilog="""
    qmd add ~/notes
    qmd add ~/wiki --name wiki --ignore 'archive/**'
    qmd add . --pattern '**/*.md' --no-embed
    """
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="What to call the collection.  [default: the folder's name]")
@PATTERN_OPTION
@IGNORE_OPTION
@click.option("--embed/--no-embed", default=True, help="Make vectors, too.  [default: yes]")
@output_options("cli", "json")
@pass_session
def add(
    session: Session,
    folder: Path,
    name: str | None,
    patterns: tuple[str, ...],
    ignore: tuple[str, ...],
    embed: bool,
) -> None:
    """Index a folder: one step from notes to search.

    Makes FOLDER a collection and indexes its text; from then on searching by keyword works. Vectors for
    searching by meaning follow, newest documents first. Ctrl-C keeps what is done. Adding a folder again
    brings it up to date.
    """
    from qmd.errors import MissingExtra, ModelError, ModelMismatch
    from qmd.serve.cli.commands_upkeep import embed_lines, update_lines
    from qmd.serve.cli.progress import ProgressLine
    from qmd.serve.cli.records import plain, to_json
    from qmd.serve.cli.screen import say, write

    told: dict[str, Any] = {}
    degraded: list[str] = []
    made: EmbedReport | None = None
    ctx = click.get_current_context()
    with session.open(create=True) as index, ProgressLine() as progress:
        try:
            report = index.add(
                folder,
                name=name,
                patterns=split_patterns(patterns),
                ignore=split_patterns(ignore),
                embed=False,
                progress=progress,
            )
        except KeyboardInterrupt:
            progress.clear()
            say(f"Interrupted. What was read is kept; `qmd add {_quoted(folder)}` goes on from there.")
            ctx.exit(exits.INTERRUPTED)
        progress.clear()
        degraded.extend(report.degraded)
        told = {"collection": report.collection, "root": report.root, "update": plain(report.update)}
        if session.format == "cli":
            write("".join(f"{line}\n" for line in update_lines({report.collection: report.update})))
            if embed:
                say(
                    "Searching by keyword works now. Vectors for searching by meaning follow; "
                    "Ctrl-C keeps what is done."
                )
        if embed:
            try:
                made = index.embed(progress=progress)
            except (ModelError, MissingExtra) as error:
                if isinstance(error, ModelMismatch):
                    raise
                degraded.append(f"vectors: {error}")
            except KeyboardInterrupt:
                progress.clear()
                say("Interrupted. The text can be searched by keyword; `qmd embed` goes on with the vectors.")
                ctx.exit(exits.INTERRUPTED)
    told["embed"] = plain(made)
    if degraded:
        told["degraded"] = degraded
    if session.format == "json":
        write(to_json(told))
    else:
        for reason in degraded:
            say(f"Note: degraded: {reason}")
        if made is not None:
            write("".join(f"{line}\n" for line in embed_lines(made)))
    if made is not None and made.interrupted:
        say("Interrupted. The text can be searched by keyword; `qmd embed` goes on with the vectors.")
        ctx.exit(exits.INTERRUPTED)


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


_PROJECT_CONFIG = """\
# Configuration of this project's own index. Every key has a default; unknown keys are refused.
# models:
#   embedding: all-MiniLM-L6-v2
# ingest:
#   max_file_bytes: 16777216
"""


@command(
    epilog="""
    qmd init
    qmd init && qmd add .
    """
)
@click.argument(
    "folder", default=".", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@output_options("cli", "json")
@pass_session
def init(session: Session, folder: Path) -> None:
    """Give this project its own index in .qmd/.

    From then on every qmd command in this folder, or below it, uses that index and that configuration. The
    index stays out of git; the configuration may go in.
    """
    from qmd.config import CONFIG_NAME
    from qmd.errors import UsageError
    from qmd.serve.cli.answer import answer
    from qmd.serve.cli.screen import clean_line

    root = folder.resolve()
    if root == Path.home().resolve():
        raise UsageError(
            "the home folder needs no .qmd: the index outside projects serves it. "
            "Run `qmd add FOLDER` instead."
        )
    place = root / ".qmd"
    existed = place.is_dir()
    place.mkdir(mode=0o700, exist_ok=True)
    for name, text in ((CONFIG_NAME, _PROJECT_CONFIG), (".gitignore", "*\n!.gitignore\n!config.yaml\n")):
        try:
            with open(place / name, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            continue
    state = f"{place} is there already." if existed else f"Made {place}."
    told = {"project": str(place), "created": not existed}
    answer(session, told, [clean_line(f"{state} `qmd add .` indexes this folder.")])
