"""`qmd`: the list of commands, and the one place where a run ends, well or badly."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from qmd.serve.cli import exits
from qmd.serve.cli.lazy import LazyGroup, Place
from qmd.serve.cli.session import Session

_HERE = "qmd.serve.cli"

PLACES = {
    "search": Place(f"{_HERE}.commands_search:search", "Find by keyword."),
    "vsearch": Place(f"{_HERE}.commands_search:vsearch", "Find by meaning."),
    "query": Place(
        f"{_HERE}.commands_search:query", "Find by keyword and by meaning, fused: the best answers."
    ),
    "ask": Place(f"{_HERE}.commands_ask:ask", "Answer a question from your documents, with citations."),
    "similar": Place(f"{_HERE}.commands_measure:similar", "Find documents like a document."),
    "links": Place(f"{_HERE}.commands_measure:links", "Show the links of a note: out, in, and broken."),
    "bench": Place(f"{_HERE}.commands_measure:bench", "Measure searches on questions with known answers."),
    "get": Place(f"{_HERE}.commands_get:get", "Show one document, or some lines of it."),
    "multi-get": Place(f"{_HERE}.commands_get:multi_get", "Show several documents."),
    "ls": Place(f"{_HERE}.commands_get:ls", "List collections and documents."),
    "add": Place(f"{_HERE}.commands_add:add", "Index a folder: one step from notes to search."),
    "collection": Place(f"{_HERE}.commands_collection:collection", "Manage indexed folders."),
    "context": Place(f"{_HERE}.commands_context:context", "Describe folders; hits carry the description."),
    "update": Place(f"{_HERE}.commands_upkeep:update", "Read new, changed and deleted files."),
    "embed": Place(
        f"{_HERE}.commands_upkeep:embed", "Make the vectors that are missing, newest documents first."
    ),
    "serve": Place(
        f"{_HERE}.commands_serve:serve",
        "Answer programs over HTTP, with models loaded and folders watched.",
    ),
    "mcp": Place(f"{_HERE}.commands_mcp:mcp", "Let agents search and read: the Model Context Protocol."),
    "skill": Place(f"{_HERE}.commands_skill:skill", "What agents should know about QMD."),
    "knowledge": Place(
        f"{_HERE}.commands_draft:knowledge", "Known texts, computed once for the model that answers."
    ),
    "draft": Place(f"{_HERE}.commands_draft:draft", "Train and measure a draft for faster answers."),
    "init": Place(f"{_HERE}.commands_add:init", "Give this project its own index in .qmd/."),
    "train": Place(
        f"{_HERE}.commands_train:train", "Teach an embedding model your own pairs of texts and images."
    ),
    "status": Place(
        f"{_HERE}.commands_upkeep:status", "Show what is indexed: collections, documents, vectors, sizes."
    ),
    "check": Place(f"{_HERE}.commands_upkeep:check", "Say whether everything is ready, and what is not."),
    "cleanup": Place(f"{_HERE}.commands_upkeep:cleanup", "Repair the index and give space back."),
    "models": Place("qmd.serve.cli.commands_models:models", "List, fetch, choose and remove models."),
    "completion": Place(f"{_HERE}.commands_completion:completion", "Print the completion script of a shell."),
    "help": Place(f"{_HERE}.commands_completion:help_", "Show the help of a command."),
}

# Words of the TypeScript original that mean a command of ours.
ALIASES = {"vector-search": "vsearch", "deep-search": "query", "doctor": "check", "skills": "skill"}

SECTIONS = (
    ("Find", ("search", "vsearch", "query", "ask", "similar", "links")),
    ("Read", ("get", "multi-get", "ls")),
    ("Index", ("add", "collection", "context", "update", "embed", "init")),
    ("Serve", ("serve", "mcp", "skill")),
    ("Teach", ("train", "knowledge", "draft")),
    ("Look after", ("status", "check", "bench", "cleanup", "models", "completion", "help")),
)

FIRST_STEPS = """\
qmd add ~/notes              index a folder; searching works while vectors are still being made
qmd query "how do I ..."     find by keyword and meaning (search: keyword only, vsearch: meaning only)
qmd get "#abc123"            show a document that a search found

qmd --help lists every command.
"""


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from qmd import __version__

        click.echo(f"qmd {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    places=PLACES,
    aliases=ALIASES,
    sections=SECTIONS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    qmd add ~/notes
    qmd search "tax return 2024" -n 5
    qmd query "how do I renew my passport" --json
    qmd get "#abc123"
    """,
)
@click.option(
    "-v",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.pass_context
def root(ctx: click.Context) -> None:
    """QMD finds things in your own documents, on your own machine, by keyword and by meaning."""
    ctx.ensure_object(Session)
    if ctx.invoked_subcommand is None:
        click.echo(FIRST_STEPS, nl=False)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Every expected failure is one message on stderr."""
    from qmd.errors import QmdError
    from qmd.serve.cli.failures import as_json_wanted, report, was_interrupted
    from qmd.serve.cli.screen import OutputClosed

    as_json = as_json_wanted(arguments)
    stdout = sys.stdout
    try:
        code = root.main(args=list(arguments), prog_name="qmd", standalone_mode=False, obj=Session())
        sys.stdout.flush()
    except click.Abort:
        return exits.INTERRUPTED
    except SystemExit as end:  # how click ends a completion, and a run whose output was closed under its help
        if sys.stdout is not stdout:  # replaced by one that swallows what comes after
            return exits.OUTPUT_CLOSED
        return end.code if isinstance(end.code, int) else exits.FOUND
    except (OutputClosed, BrokenPipeError):
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OUTPUT_CLOSED
    except Exception as error:  # any may have come of a Ctrl-C while a library was loaded
        if was_interrupted(error):
            return exits.INTERRUPTED
        if isinstance(error, (click.ClickException, QmdError, OSError)):
            return report(error, as_json=as_json)
        raise
    return code if isinstance(code, int) else exits.FOUND


def main() -> NoReturn:
    """The entry point of `qmd` and `python -m qmd`."""
    import gc

    gc.set_threshold(
        50_000, 20, 20
    )  # a short run makes little garbage: 5% of a cold search went into looking
    from qmd.serve.cli.failures import as_json_wanted, hide_traceback
    from qmd.serve.cli.screen import make_streams_usable

    make_streams_usable()
    hide_traceback(as_json_wanted(sys.argv[1:]))
    sys.exit(run(sys.argv[1:]))
