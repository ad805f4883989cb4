"""`qmd update`, `embed`, `status`, `check`, `cleanup`: keep an index fresh and well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from qmd.serve.cli import exits
from qmd.serve.cli.options import command, complete_collection, output_options
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from qmd.index import Index
    from qmd.ingest.run import UpdateReport
    from qmd.reports import CheckResult, EmbedReport, Status

_COUNTS = ("added", "changed", "moved", "removed", "unchanged")
_SHOWN_SKIPS = 5


def update_lines(reports: Mapping[str, UpdateReport], *, every_skip: bool = False) -> Iterator[str]:
    """What an update did, a line a collection; skipped files by reason, the first few (or all) by name."""
    from qmd.serve.cli.screen import clean_line

    for name, report in reports.items():
        counts = [f"{getattr(report, word):,} {word}" for word in _COUNTS if getattr(report, word)]
        yield f"{clean_line(name)}: {', '.join(counts) or 'no documents'}"
        for note in report.notes:
            yield f"  {note}"
        for label, places in (("skipped", report.skipped), ("failed", report.errors)):
            if not places:
                continue
            reasons = Counter(clean_line(p.reason) for p in places)
            summed = ", ".join(
                f"{n:,} {reason}" for reason, n in reasons.most_common(None if every_skip else 4)
            )
            more = "" if every_skip or len(reasons) <= 4 else ", ..."
            yield f"  {len(places):,} {label}: {summed}{more}"
            shown = places if every_skip else places[:_SHOWN_SKIPS]
            for place in shown if every_skip or label == "failed" else ():
                yield f"    {clean_line(place.path)}: {clean_line(place.reason)}"


def embed_lines(report: EmbedReport) -> Iterator[str]:
    """What an embedding run did."""
    from qmd.serve.cli.progress import duration
    from qmd.serve.cli.screen import clean_line

    yield from _picture_lines(report)
    if not report.embedded and not report.remaining:
        yield f"All vectors are there ({clean_line(report.model)})."
        return
    rate = f", {report.embedded / report.seconds:.0f} a second" if report.seconds >= 0.1 else ""
    taken = duration(report.seconds)
    yield f"{report.embedded:,} texts embedded with {clean_line(report.model)} in {taken}{rate}."
    if report.remaining:
        yield f"{report.remaining:,} are still to do: `qmd embed` goes on."


def _picture_lines(report: EmbedReport) -> Iterator[str]:
    from qmd.serve.cli.progress import duration
    from qmd.serve.cli.screen import clean_line

    for reason in report.degraded:
        yield f"Note: {clean_line(reason)}"
    seen = report.pictures
    if seen is None or not (seen.embedded or seen.refused or seen.remaining):
        return
    refused = f", {seen.refused:,} cannot be opened" if seen.refused else ""
    left = f", {seen.remaining:,} changed since or are away" if seen.remaining else ""
    taken = duration(seen.seconds)
    yield f"{seen.embedded:,} pictures looked at with {clean_line(seen.model)} in {taken}{refused}{left}."


def run_update(
    session: Session, index: Index, names: Sequence[str], *, force: bool = False, every_skip: bool = False
) -> None:
    """Update collections and write what happened."""
    from qmd.serve.cli.answer import answer
    from qmd.serve.cli.progress import ProgressLine
    from qmd.serve.cli.screen import say

    with ProgressLine() as progress:
        try:
            reports = index.update(names, force=force, progress=progress)
        except KeyboardInterrupt:
            progress.clear()
            say("Interrupted. What was read is kept; `qmd update` goes on from there.")
            click.get_current_context().exit(exits.INTERRUPTED)
    if session.format == "cli" and not reports:
        say("No collections yet. `qmd add FOLDER` makes one.")
    answer(session, reports, update_lines(reports, every_skip=every_skip))


@command(
    epilog="""
    qmd update
    qmd update notes
    qmd update --skipped
    """
)
@click.argument("collections", nargs=-1, metavar="[COLLECTION]...", shell_complete=complete_collection)
@click.option(
    "--force", is_flag=True, help="Believe a folder that lost all its files (it may be an unmounted disk)."
)
@click.option("--skipped", is_flag=True, help="Name every file that was skipped, with the reason.")
@output_options("cli", "json")
@pass_session
def update(session: Session, collections: tuple[str, ...], force: bool, skipped: bool) -> None:
    """Read new, changed and deleted files.

    Files that did not change are not opened. `qmd embed` then makes the vectors of what is new.
    """
    with session.open() as index:
        run_update(session, index, collections, force=force, every_skip=skipped)
        pending = index.status().pending if session.format == "cli" else 0
    if pending:
        from qmd.serve.cli.screen import say

        say(f"{pending:,} texts have no vector yet: `qmd embed` makes them.")


@command(
    epilog="""
    qmd embed
    qmd embed --model-changed
    """
)
@click.option(
    "--model-changed",
    is_flag=True,
    help="The configuration names another model: replace the vectors of the old one.",
)
@output_options("cli", "json")
@pass_session
def embed(session: Session, model_changed: bool) -> None:
    """Make the vectors that are missing, newest documents first.

    Nothing is embedded twice. Ctrl-C keeps what is done; the next run goes on from there.
    """
    from qmd.serve.cli.answer import answer
    from qmd.serve.cli.progress import ProgressLine
    from qmd.serve.cli.screen import say

    ctx = click.get_current_context()
    with session.open() as index, ProgressLine() as progress:
        try:
            report = index.embed(model_changed=model_changed, progress=progress)
        except KeyboardInterrupt:
            progress.clear()
            say("Interrupted. What is done is kept; `qmd embed` goes on from there.")
            ctx.exit(exits.INTERRUPTED)
    answer(session, report, embed_lines(report))
    if report.interrupted:
        say("Interrupted. What is done is kept; `qmd embed` goes on from there.")
        ctx.exit(exits.INTERRUPTED)


def _status_lines(status: Status) -> Iterator[str]:
    from qmd.serve.cli.screen import clean_line, size, style

    paint = style()
    yield f"{paint.bold('Index')}   {clean_line(status.database)} ({size(status.size_bytes)})"
    yield f"{paint.bold('Config')}  {clean_line(status.config_dir)}"
    text = f"{status.documents:,} documents, {status.chunks:,} chunks: keyword search is ready"
    yield f"{paint.bold('Text')}    {text}"
    if status.pending:
        state = paint.warn(f"{status.pending:,} texts have no vector yet: run `qmd embed`")
    else:
        state = "complete" if status.chunks else "nothing to embed yet"
    length = f", cut to {status.dim} dimensions" if status.dim else ""
    yield f"{paint.bold('Vectors')} {clean_line(status.model)}{length}: {state}"
    for made in status.vectors:
        if made.inverted is not None:
            file = made.inverted
            text = (
                f"inverted file of {file.rows:,} vectors, {file.nprobe} of {file.nlist:,} lists looked into"
            )
            yield f"        {text}, recall {file.recall:.3f} (on {file.sample} of your own vectors)"
        if not made.configured:
            name = f"{clean_line(made.name)} ({made.dim}d)"
            yield f"        {name}: {made.done:,} vectors of an unused model (`qmd cleanup`)"
    if status.pictures is not None:
        seen = status.pictures
        refused = f", {seen.refused:,} cannot be opened" if seen.refused else ""
        left = seen.total - seen.done - seen.refused
        text = f"{seen.total:,}, {clean_line(seen.model or 'no model looks at them')}{refused}"
        todo = paint.warn(f", {left:,} not looked at yet: run `qmd embed`") if left and seen.model else ""
        yield f"{paint.bold('Images')}  {text}{todo}"
    yield ""
    if not status.collections:
        yield "No collections yet. `qmd add FOLDER` makes one."
    for one in status.collections:
        marks = "" if one.include else paint.dim("  only when named")
        marks += paint.warn("  folder is not there") if one.missing else ""
        place = paint.place(f"qmd://{clean_line(one.name)}/")
        yield f"{place}  {one.documents:,} documents  {clean_line(one.root)}{marks}"
        for context in status.contexts:
            if context.collection == one.name:
                yield paint.dim(f"    /{clean_line(context.path.lstrip('/'))}  {clean_line(context.text)}")
    for context in status.contexts:
        if context.collection == "/":
            yield paint.dim(f"Context of everything: {clean_line(context.text)}")


@command(
    epilog="""
    qmd status
    qmd status --json
    """
)
@output_options("cli", "json")
@pass_session
def status(session: Session) -> None:
    """Show what is indexed: collections, documents, vectors, sizes."""
    from qmd.serve.cli.answer import answer

    with session.open() as index:
        state = index.status()
    answer(session, state, _status_lines(state))


def _check(session: Session, models: bool) -> list[CheckResult]:
    """The checks of the index in force. Where there is none, all but those of the database; none is made."""
    from tempfile import TemporaryDirectory

    import qmd.index
    from qmd.errors import NotFound
    from qmd.reports import CheckResult

    try:
        with session.open() as index:
            return index.check(models=models)
    except NotFound as missing:
        places, config = session.settings()
        with (
            TemporaryDirectory() as scratch,
            qmd.index.open(f"{scratch}/index.sqlite", config=config, places=places) as index,
        ):
            rest = [
                r for r in index.check(models=models) if r.name not in ("database", "collections", "vectors")
            ]
        message, _, remedy = str(missing).partition(". ")
        return [*rest, CheckResult("database", "warning", message, remedy or None)]


def _check_lines(results: Sequence[CheckResult]) -> Iterator[str]:
    from qmd.serve.cli.screen import clean_line, style

    paint = style()
    mark = {"ok": paint.good("ok     "), "warning": paint.warn("warning"), "problem": paint.bad("PROBLEM")}
    for one in results:
        yield f"{mark[one.state]}  {paint.bold(clean_line(one.name))}: {clean_line(one.message)}"
        if one.remedy:
            yield f"         {clean_line(one.remedy)}"


@command(
    epilog="""
    qmd check
    qmd check --models
    qmd check --json
    """
)
@click.option("--models", is_flag=True, help="Load every configured model and let it work, with its speed.")
@output_options("cli", "json")
@pass_session
def check(session: Session, models: bool) -> None:
    """Say whether everything is ready, and what is not.

    Looks at the machine, the configuration, the models, the index and the folders; repairs nothing. Ends with 1
    where there is a problem.
    """
    from qmd.serve.cli.answer import answer

    results = _check(session, models)
    answer(session, results, _check_lines(results))
    if any(one.state == "problem" for one in results):
        click.get_current_context().exit(exits.FAILED)


@command(
    epilog="""
    qmd cleanup
    qmd cleanup --forget-searches
    qmd cleanup --json
    """
)
@click.option("--forget-searches", is_flag=True, help="Also delete what `memory.searches` kept.")
@output_options("cli", "json")
@pass_session
def cleanup(session: Session, forget_searches: bool) -> None:
    """Repair the index and give space back.

    Drops vectors that nothing refers to, rebuilds derived files that are stale or damaged, and shrinks the
    database.
    """
    from qmd.serve.cli.answer import answer
    from qmd.serve.cli.screen import clean_line

    with session.open() as index:
        report = index.cleanup(forget_searches=forget_searches)
    lines = (
        f"{_label(f.name)}: {clean_line(_amount(f.name, getattr(report, f.name)))}" for f in fields(report)
    )
    answer(session, report, lines)


def _label(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ").capitalize()


def _amount(name: str, value: Any) -> str:
    from qmd.serve.cli.screen import size

    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.startswith("size_") or name.endswith("_bytes"):
        return size(value)
    if isinstance(value, (list, tuple)):
        return "; ".join(str(getattr(v, "message", v)) for v in value) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
