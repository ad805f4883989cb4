"""`qmd search`, `qmd vsearch`, `qmd query`: three ways to find, one way to ask and to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from qmd.serve.cli.options import command, search_options
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from qmd.index import Index
    from qmd.serve.cli.remote import RemoteIndex
    from qmd.types import Hit, Hits


_WITH_IMAGE = ("limit", "collections", "path")


def _answer(
    session: Session, way: str, words: tuple[str, ...], options: dict[str, Any], *, image: str | None = None
) -> None:
    from qmd.serve.cli.disk import shown_places
    from qmd.serve.cli.format_hits import View, format_hits, show_hits
    from qmd.serve.cli.screen import say, style, write

    text = " ".join(words)
    around, line_numbers, full_path = (options.pop(n) for n in ("context_lines", "line_numbers", "full_path"))
    if around is not None and options["full"]:
        raise click.UsageError(
            "--full and --context-lines exclude each other: one shows all, the other a part."
        )
    asked = {
        name: value
        for name, value in options.items()
        if value not in (None, ()) and (value is not False or name in ("expand", "rerank"))
    }
    if image is not None and (other := [name for name in asked if name not in _WITH_IMAGE]):
        raise click.UsageError(
            f"--image goes with {', '.join(map(_flag, _WITH_IMAGE))}, not with {', '.join(map(_flag, other))}."
        )
    starts: dict[tuple[str, int], int] = {}
    with session.open() if image is not None else session.reach() as index:
        method, given = (way, (text,)) if image is None else ("query_image", (image, text))
        hits: Hits = getattr(index, method)(*given, **asked)
        if around is not None:
            starts = {(h.file, h.line): max(1, h.line - around) for h in hits}
            hits = replace(hits, hits=tuple(_around(index, h, starts, around) for h in hits))
        names, links = shown_places(session, index, hits, full_path=full_path)
    view = View(line_numbers=line_numbers, names=names, links=links, starts=starts)
    if not hits and session.format not in ("json", "jsonl"):
        say(_nothing(text, way, list(asked)))
    if hits.nothing_relevant and hits:
        say("Nothing here seems to answer this; these are the nearest.")
    stale = [h for h in hits if h.stale]
    if stale and session.format == "cli":
        changed = f"{len(stale)} of {len(hits)} files changed since they were indexed"
        say(f"Note: {changed}. Use --reread, or run `qmd update`.")
    if hits.degraded and (session.format == "cli" or not hits):
        for reason in hits.degraded:
            say(f"Note: degraded: {reason}")
    if options["explain"]:
        say("Stages: " + ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in hits.timings_ms.items()))
    if session.format == "cli":
        write(show_hits(hits, text, style(), view), trusted=True)
    else:
        write(format_hits(hits, session.format, view))


def _around(index: Index | RemoteIndex, hit: Hit, starts: Mapping[tuple[str, int], int], lines: int) -> Hit:
    """The hit with the lines around its place as the snippet."""
    first = starts[hit.file, hit.line]
    text = index.get(hit.docid, from_line=first, max_lines=hit.line + lines - first + 1).text
    return replace(hit, snippet=text.removesuffix("\n"), body=None, marks=())


def _nothing(text: str, way: str, asked: Sequence[str]) -> str:
    narrowing = [_flag(name) for name in asked if name in _CONDITIONS]
    if narrowing:
        return f"Nothing found for {text!r} with {', '.join(narrowing)}. Leave a condition out to look wider."
    other = " `qmd query` looks by meaning, too." if way == "search" else ""
    return f"Nothing found for {text!r}.{other}"


def _flag(name: str) -> str:
    said = {"tags": "tag", "collections": "collection", "boosts": "boost"}.get(name, name)
    return "--" + said.replace("_", "-")


vsearch_options = partial(search_options, models=True)
query_options = partial(search_options, models=True, expand=True)
_CONDITIONS = frozenset(
    {"collections", "path", "tags", "title", "type", "lang", "after", "before", "min_score"}
)
_QUERY = click.argument("query", nargs=-1, required=True)


@command(
    epilog="""
    qmd search invoice 2024
    qmd search '"exact phrase" -unwanted' -n 5
    qmd search 'tag:travel lisbon' -c notes --after 2024-01-01
    qmd search deadline --json
    qmd search TODO --all --files --min-score 0.3
    """
)
@_QUERY
@search_options
@pass_session
def search(session: Session, /, query: tuple[str, ...], **options: Any) -> None:
    """Find by keyword.

    Words that all occur come first, then those that occur in part. "phrases" in double quotes, -word to leave
    out, begin* for a beginning; path:, tag:, title:, lang: and type: are conditions. Quote the query for the
    shell.
    """
    _answer(session, "search", query, options)


@command(
    epilog="""
    qmd vsearch "how do I get my deposit back"
    qmd vsearch "feeling of being watched" -c books -n 3
    qmd vsearch "wie spare ich Strom" --md
    """
)
@_QUERY
@vsearch_options
@pass_session
def vsearch(session: Session, /, query: tuple[str, ...], **options: Any) -> None:
    """Find by meaning.

    Compares the query with the vectors that `qmd embed` made; other words for the same thing are found.
    """
    _answer(session, "vsearch", query, options)


@command(
    epilog="""
    qmd query "how do I renew my passport"
    qmd query "error handling" --all --files --min-score 0.4
    qmd query "quarterly planning" --json -n 10
    qmd query "如何设置文件权限" --explain
    qmd query "python" --intent "the snake, not the language" --no-rerank
    qmd query --image sketch.png
    """
)
@click.argument("query", nargs=-1)
@click.option(
    "--image",
    type=click.Path(dir_okay=False),
    help="Find pictures like this file; QUERY then says what should be different.",
)
@query_options
@pass_session
def query(session: Session, /, query: tuple[str, ...], image: str | None, **options: Any) -> None:
    """Find by keyword and by meaning, fused: the best answers.

    Without vectors it answers by keyword and says so. Lines that begin with lex:, vec: or hyde: say what is looked
    for by keyword, by meaning as a question, and by meaning as a passage; intent: says what it is about.
    """
    if not query and image is None:
        raise click.UsageError("Missing argument 'QUERY...'.")
    _answer(session, "query", query, options, image=image)
