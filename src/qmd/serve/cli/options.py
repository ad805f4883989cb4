"""Options that several commands share. Their names are the argument names of the Python door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from qmd.serve.cli.lazy import QmdCommand
from qmd.serve.cli.session import FORMATS, session_of

Decorator = Callable[[Any], Any]


def command(*args: Any, **kwargs: Any) -> Callable[[Callable[..., Any]], QmdCommand]:
    """`click.command` for ours: global options, examples in the epilog."""
    return click.command(*args, cls=QmdCommand, **kwargs)


def _choose_format(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        session_of(ctx).format = value


def output_options(*formats: str) -> Decorator:
    """`--format NAME` and a short flag for every format but cli; the last one said wins."""
    known = formats or FORMATS

    def decorate(function: Any) -> Any:
        for name in reversed([f for f in known if f != "cli"]):
            function = click.option(
                f"--{name}",
                "format",
                flag_value=name,
                default=None,
                expose_value=False,
                callback=_choose_format,
                help=f"Same as --format {name}.",
            )(function)
        return click.option(
            "--format",
            "format",
            type=click.Choice(known),
            metavar="NAME",
            expose_value=False,
            callback=_choose_format,
            help=f"How to answer: {', '.join(known)}.  [default: cli]",
        )(function)

    return decorate


def reached_options(when: str = "") -> Decorator:
    """What a daemon that others reach needs; `when` says it in the help, before the rest."""

    def said(text: str) -> str:
        return f"{when}{text[0].lower()}{text[1:]}" if when else text

    def decorate(function: Any) -> Any:
        function = click.option(
            "--allow-host",
            "allowed_hosts",
            multiple=True,
            metavar="NAME",
            help=said("A further name, or name:port, it is reached by; may be repeated."),
        )(function)
        return click.option(
            "--token-file",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help=said("Ask every request for the token in this file."),
        )(function)

    return decorate


def complete_collection(ctx: click.Context, parameter: click.Parameter, start: str) -> list[str]:
    """Names of the collections of the index in force; none where it cannot be read."""
    from qmd.errors import QmdError

    try:
        with session_of(ctx).open() as index:
            return [c.name for c in index.list_collections() if c.name.startswith(start)]
    except (QmdError, OSError):
        return []


def complete_place(ctx: click.Context, parameter: click.Parameter, start: str) -> list[str]:
    """Collections, and documents as `collection/path` as soon as one collection is meant."""
    from qmd.errors import QmdError

    scheme = "qmd://" if start.startswith("qmd://") else ""
    try:
        with session_of(ctx).open() as index:
            names = [f"{scheme}{c.name}/" for c in index.list_collections()]
            meant = [n for n in names if n.startswith(start) or start.startswith(n)]
            if len(meant) != 1:
                return meant
            entries = index.ls(meant[0].removeprefix(scheme).removesuffix("/"))
    except (QmdError, OSError):
        return []
    return [p for p in (f"{scheme}{e.collection}/{e.path}" for e in entries) if p.startswith(start)]


def links_option(function: Any) -> Any:
    def keep(ctx: click.Context, parameter: click.Parameter, value: bool | None) -> None:
        session_of(ctx).links = value

    return click.option(
        "--links/--no-links",
        default=None,
        expose_value=False,
        callback=keep,
        help="Clickable file names on the terminal.  [default: where it can]",
    )(function)


def _read_boosts(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, float] | None:
    """`NAME=FACTOR` pairs."""
    boosts: dict[str, float] = {}
    for value in values:
        name, _, factor = value.rpartition("=")
        try:
            boosts[name] = float(factor)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"{value!r} is not NAME=FACTOR, for example notes=1.5.", ctx, parameter)
    return boosts or None


_SEARCH_OPTIONS: Sequence[Decorator] = (
    click.option(
        "-n", "--limit", type=click.IntRange(min=1), metavar="N", help="At most N hits.  [default: 10]"
    ),
    click.option(
        "-c",
        "--collection",
        "collections",
        multiple=True,
        metavar="NAME",
        shell_complete=complete_collection,
        help="Only in this collection; may be repeated.",
    ),
    click.option("--all", "all", is_flag=True, help="Every hit, without a limit."),
    click.option("--min-score", type=float, metavar="SCORE", help="Only hits with at least this score."),
    click.option("--path", metavar="GLOB", help="Only documents whose path matches: 'journal/2024-*.md'."),
    click.option("--tag", "tags", multiple=True, metavar="TAG", help="Only with this tag; may be repeated."),
    click.option("--title", metavar="TEXT", help="Only documents whose title has this in it."),
    click.option(
        "--type", "type", metavar="TYPE", help="Only documents of this type: markdown, code, html ..."
    ),
    click.option("--lang", metavar="LANG", help="Only in this language: en, zh, ja ..."),
    click.option("--after", metavar="DATE", help="Only from this day on (2024-05-01)."),
    click.option("--before", metavar="DATE", help="Only before this day."),
    click.option(
        "--recency",
        type=click.FloatRange(min=0),
        metavar="SHARE",
        help="How much more a document of today counts: 0.2, a fifth.",
    ),
    click.option(
        "--boost",
        "boosts",
        multiple=True,
        metavar="NAME=FACTOR",
        callback=_read_boosts,
        help="Count a collection more or less; may be repeated.",
    ),
    click.option("--all-chunks", is_flag=True, help="Every passage of a document, not only its best."),
    click.option("--reread", is_flag=True, help="Read files again that changed since they were indexed."),
    click.option("--full", is_flag=True, help="The whole document in place of a snippet."),
    click.option(
        "--context-lines",
        type=click.IntRange(min=0),
        metavar="N",
        help="N lines around the match as the snippet.",
    ),
    click.option("--line-numbers", is_flag=True, help="Number the lines of the text."),
    click.option("--full-path", is_flag=True, help="The path on disk in place of qmd://collection/path."),
    click.option("--explain", is_flag=True, help="Say how each score came about."),
)

_MODEL_OPTIONS: Sequence[Decorator] = (
    click.option("--intent", metavar="TEXT", help="What it is about, to tell meanings apart."),
    click.option("--rerank/--no-rerank", default=None, help="Read the best hits with the reranker, or not."),
    click.option(
        "-C",
        "--candidate-limit",
        type=click.IntRange(min=1),
        metavar="N",
        help="How many hits the reranker reads.  [default: 20]",
    ),
    click.option(
        "--budget-ms",
        type=click.FloatRange(min=0),
        metavar="MS",
        help="Leave out stages that take longer; 0: no limit.  [default: 3000]",
    ),
)

_EXPAND = click.option(
    "--expand/--no-expand", default=None, help="Look for other wordings of the question, too, or not."
)


def search_options(function: Any, *, models: bool = False, expand: bool = False) -> Any:
    """What `search`, `vsearch` and `query` all take, and what those with `models` take."""
    function = output_options()(links_option(function))
    options = (*_SEARCH_OPTIONS, *(_MODEL_OPTIONS if models else ()), *((_EXPAND,) if expand else ()))
    for option in reversed(options):
        function = option(function)
    return function


def split_patterns(values: Sequence[str]) -> tuple[str, ...]:
    """Globs, each given alone or as a comma-separated list; commas inside {braces} belong to the glob."""
    found: list[str] = []
    for value in values:
        depth = 0
        piece = ""
        for character in value:
            depth += (character == "{") - (character == "}" and depth > 0)
            if character == "," and not depth:
                found.append(piece)
                piece = ""
            else:
                piece += character
        found.append(piece)
    return tuple(p for p in map(str.strip, found) if p)
