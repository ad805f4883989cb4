"""`qmd similar`, `qmd links` and `qmd bench`: what is near a document, what it links to, and how good searches are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmd.serve.cli.options import command, complete_collection, complete_place, links_option, output_options
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from qmd.bench import BenchReport
    from qmd.reports import LinkedPlace, Links


@command(
    epilog="""
    qmd similar notes/travel/lisbon.md
    qmd similar "#abc123" -n 3 --json
    qmd similar ~/Downloads/draft.md -c notes
    """
)
@click.argument("file", shell_complete=complete_place)
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="At most N hits.  [default: 10]")
@click.option(
    "-c",
    "--collection",
    "collections",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_collection,
    help="Only in this collection; may be repeated.",
)
@click.option("--path", metavar="GLOB", help="Only documents whose path matches: 'journal/2024-*.md'.")
@output_options()
@links_option
@pass_session
def similar(session: Session, /, file: str, **options: Any) -> None:
    """Find documents like a document.

    By meaning: the vectors of all its passages, averaged. FILE is a document of the index, or a file on the disk
    that is in no index.
    """
    from qmd.serve.cli.disk import shown_places
    from qmd.serve.cli.format_hits import View, format_hits, show_hits
    from qmd.serve.cli.screen import say, style, write

    with session.open() as index:
        hits = index.similar(file, **{k: v for k, v in options.items() if v not in (None, ())})
        names, links = shown_places(session, index, hits)
    view = View(names=names, links=links)
    if not hits and session.format not in ("json", "jsonl"):
        say(f"Nothing is like {file!r}.")
    if session.format == "cli":
        write(show_hits(hits, "", style(), view), trusted=True)
    else:
        write(format_hits(hits, session.format, view))


@command(
    epilog="""
    qmd links notes/travel/lisbon.md
    qmd links "#abc123" -n 0 --json
    """
)
@click.argument("note", shell_complete=complete_place)
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=0),
    default=5,
    metavar="N",
    help="Suggest at most N notes that no link joins.  [default: 5]",
)
@output_options("cli", "json")
@pass_session
def links(session: Session, /, note: str, limit: int) -> None:
    """Show the links of a note: out, in, and broken.

    After them, notes that are near to it in meaning and that no link joins to it.
    """
    from qmd.serve.cli.records import plain, to_json
    from qmd.serve.cli.screen import say, style, write

    with session.open() as index:
        found = index.links(note, limit=limit)
    if session.format == "json":
        record = plain(found)
        record["similar"] = [
            {"docid": f"#{h.docid}", "score": h.score, "file": h.file, "title": h.title}
            for h in found.similar
        ]
        write(to_json({key: value for key, value in record.items() if key != "degraded" or value}))
        return
    for reason in found.degraded:
        say(f"Note: degraded: {reason}")
    write(_show_links(found, style()), trusted=True)


def _show_links(links: Links, paint: Any) -> str:
    from qmd.serve.cli.screen import clean_line

    def ends(title: str, places: Sequence[LinkedPlace]) -> list[str]:
        lines = [paint.bold(f"{title}: {len(places)}")]
        for place in places:
            name = clean_line(place.file or place.target)
            said = f"  {paint.dim(clean_line(place.title))}" if place.title else ""
            where = f"{name}:{place.line}" if title == "In" else f"{name}  (line {place.line})"
            lines.append(f"  {paint.place(where)}{said}")
        return lines

    lines = [paint.bold(clean_line(links.title)) + "  " + paint.dim(clean_line(links.file))]
    lines += ends("Out", links.out) + ends("In", links.into) + ends("Broken", links.broken)
    if links.similar:
        lines.append(paint.bold("Near in meaning, not linked:"))
        lines += [f"  {h.score:.2f}  {paint.place(clean_line(h.file))}" for h in links.similar]
    return "\n".join(lines) + "\n"


@command(
    epilog="""
    qmd bench questions.json -c notes
    qmd bench datasets/scifact --ways keyword,hybrid
    qmd bench questions.json --against other-config.yaml --json
    """
)
@click.argument("fixture", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-c",
    "--collection",
    metavar="NAME",
    shell_complete=complete_collection,
    help="Ask this collection.  [default: what the fixture says]",
)
@click.option(
    "--ways", metavar="LIST", help="Which searches: keyword,vector,hybrid,reranked.  [default: all that can]"
)
@click.option(
    "-k", type=click.IntRange(min=1), default=10, metavar="K", help="Measure the first K.  [default: 10]"
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Another config.yaml to compare with, on the same documents.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Keep the index of a BEIR folder here, and use it again.",
)
@output_options("cli", "json")
@pass_session
def bench(
    session: Session,
    /,
    fixture: Path,
    collection: str | None,
    ways: str | None,
    k: int,
    against: Path | None,
    keep: Path | None,
) -> None:
    """Measure searches on questions with known answers.

    FIXTURE is a JSON file in the original's form, asked of your index, or a folder in BEIR's form (corpus.jsonl,
    queries.jsonl, qrels.tsv), which gets an index of its own. Two runs are compared question by question, with a
    randomisation test.
    """
    from contextlib import ExitStack

    from qmd import bench as measuring
    from qmd.config import load_config
    from qmd.serve.cli.progress import ProgressLine
    from qmd.serve.cli.records import plain, to_json
    from qmd.serve.cli.screen import style, write

    read = measuring.read_fixture(fixture)
    wanted = [way.strip() for way in ways.split(",") if way.strip()] if ways else list(measuring.WAYS)
    _, config = session.settings()
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressLine())
        other = None
        if read.documents is not None:
            index = stack.enter_context(measuring.documents_indexed(read, config, progress, keep=keep))
        else:
            index = stack.enter_context(session.open())
        if against is not None:
            config = load_config(against)
            if read.documents is not None:
                place = None if keep is None else keep / "against"
                other = stack.enter_context(measuring.documents_indexed(read, config, progress, keep=place))
            else:
                import qmd.index

                other = stack.enter_context(
                    qmd.index.open(index.store.path, config=config, places=index.places, create=False)
                )
        report = measuring.bench(
            index, read, ways=wanted, collection=collection, k=k, against=other, progress=progress
        )
        progress.clear()
    if session.format == "json":
        write(to_json(plain(report)))
    else:
        write(_show_report(measuring.without_questions(report), style()), trusted=True)


def _show_report(report: BenchReport, paint: Any) -> str:
    from qmd.serve.cli.screen import clean_line

    lines = [paint.bold(f"{clean_line(report.fixture)}: {report.questions} questions"), ""]
    if report.results:
        measures = list(next(iter(report.results.values())).means)
        wide = max(len(name) for name in report.results)
        lines.append(" " * wide + "".join(f"{m:>12}" for m in measures) + f"{'median ms':>12}{'p95 ms':>10}")
        for name, result in report.results.items():
            figures = "".join(f"{100 * result.means[m]:12.2f}" for m in measures)
            lines.append(f"{name:<{wide}}{figures}{result.median_ms:12.1f}{result.p95_ms:10.1f}")
        lines.append("")
        for name, result in report.results.items():
            stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in result.stages_ms.items())
            lines.append(paint.dim(f"{name}: median ms of each stage: {stages}"))
            for reason, count in result.degraded.items():
                lines.append(paint.dim(f"{name}: degraded in {count} questions: {clean_line(reason)}"))
    for c in report.comparisons:
        sure = paint.good("beyond chance") if c.p < 0.05 else "may be chance"
        lines.append(
            f"{c.second} against {c.first}: {c.measure} {100 * c.difference:+.2f}, p {c.p:.4f} ({sure}); "
            f"better {c.better}, worse {c.worse}"
        )
    for name, reason in report.left_out.items():
        lines.append(paint.dim(f"{name}: left out: {clean_line(reason)}"))
    return "\n".join(lines) + "\n"
