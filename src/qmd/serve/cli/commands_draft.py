"""`qmd knowledge build` and `qmd draft train|test|bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmd.errors import UsageError
from qmd.serve.cli import exits
from qmd.serve.cli.answer import answer, answer_list
from qmd.serve.cli.lazy import LazyGroup, Place
from qmd.serve.cli.options import command, output_options
from qmd.serve.cli.screen import say
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from qmd.draft.jobs import Bench, Question

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MODEL = click.option("--model", metavar="NAME", help="The target: a folder, GGUF file or hub id.")
_FOLDER = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the draft is kept.  [default: data folder]",
)
_QUESTIONS = click.option(
    "--questions",
    type=_FILE,
    required=True,
    help="YAML list of {question, passage, answer}, or a question a line.",
)


_HERE = "qmd.serve.cli.commands_draft"


@click.group(
    cls=LazyGroup,
    places={"build": Place(f"{_HERE}:build", "Store keys and values of known answers.")},
    epilog="""
    qmd knowledge build --help
    """,
)
def knowledge() -> None:
    """Known texts, computed once for the model that answers."""


@click.group(
    cls=LazyGroup,
    places={
        "train": Place(f"{_HERE}:train", "Train a draft on answers the target writes."),
        "test": Place(f"{_HERE}:test_", "Acceptance and answers on known questions."),
        "bench": Place(f"{_HERE}:bench", "Plain decoding against drafting, on this machine."),
    },
    epilog="""
    qmd draft bench
    qmd draft train draft.yaml
    """,
)
def draft() -> None:
    """Train and measure a draft for faster answers.

    A small model drafts what the large one would write; the large one checks it, so the answers stay the same.
    """


def _bench(session: Session, config: Path | None, model: str | None, folder: Path | None) -> Bench:
    import msgspec

    try:
        from qmd.draft.jobs import CONFIG_FILE, Bench
    except ModuleNotFoundError as error:
        from qmd.errors import MissingExtra

        raise MissingExtra("drafting", "draft") from error
    from qmd.draft.settings import read_config
    from qmd.llm import open_embedder

    places, chosen = session.settings()
    if folder is None:
        folder = places.data_dir / "draft"
    if config is None and (folder / CONFIG_FILE).exists():
        config = folder / CONFIG_FILE
    settings = read_config(config)
    if model is not None:
        settings = msgspec.structs.replace(settings, target_model=model)
    return Bench(settings, folder, embedder=open_embedder(chosen.models.embedding))


def _read(path: Path) -> list[Question]:
    from qmd.draft.jobs import read_questions

    return read_questions(path)


@command(
    epilog="""
    qmd knowledge build --model SmolLM2-135M-Instruct
    qmd knowledge build --questions faq.yaml --model SmolLM2-135M-Instruct
    """
)
@click.option(
    "--questions",
    type=_FILE,
    help="YAML list of {question, passage, answer}, or a question a line.  [default: the index's most used passages]",
)
@click.option(
    "-n", "--limit", type=click.IntRange(1, 500), default=15, show_default=True, help="Passages of the index."
)
@_MODEL
@_FOLDER
@click.option("--config", type=_FILE, help="The draft's configuration.")
@output_options("cli", "json")
@pass_session
def build(
    session: Session,
    /,
    questions: Path | None,
    limit: int,
    model: str | None,
    folder: Path | None,
    config: Path | None,
) -> None:
    """Store the keys and values of known texts, so that the model need not compute them again.

    Of the passages that `qmd ask` answered from most often, as its prompts begin; or of a file of questions.
    """
    if questions is not None:
        asked = _read(questions)
        report = _bench(session, config, model, folder).build_knowledge(asked)
    else:
        from qmd.search.answer import read_used, write_prompt

        with session.open() as index:
            sources = read_used(index, limit)
        if not sources:
            raise UsageError(
                "no answer was written from this index yet. Use `qmd ask` first, or give --questions."
            )
        prompts = [(write_prompt("", [source]), source.text) for source in sources]
        report = _bench(session, config, model, folder).build_beginnings(
            # without the blank line after the last source: another source may follow
            [(messages, keep.rstrip(), text) for (keep, messages), text in prompts]
        )
    answer(
        session, report, [f"{report.entries} entries, {report.size_bytes / 1e6:.1f} MB in {report.folder}"]
    )


@command(epilog="qmd draft train draft.yaml --questions faq.yaml")
@click.argument("config", type=_FILE)
@_QUESTIONS
@_MODEL
@_FOLDER
@output_options("cli", "json")
@pass_session
def train(session: Session, /, config: Path, questions: Path, model: str | None, folder: Path | None) -> None:
    """Train a draft on answers the target writes; resumes where it stopped.

    Ctrl-C keeps the answers written and the epochs done.
    """
    from qmd.serve.cli.progress import ProgressLine

    asked = _read(questions)
    work = _bench(session, config, model, folder)
    with ProgressLine() as progress:
        try:
            report = work.train_draft(asked, progress=progress)
        except KeyboardInterrupt:
            progress.clear()
            say(f"Stopped. Answers and whole epochs are kept in {work.folder}; the same command goes on.")
            click.get_current_context().exit(exits.INTERRUPTED)
    lines = [
        f"epoch {i}: loss {loss:.4f}, held-out acceptance {score:.3f}"
        for i, (loss, score) in enumerate(zip(report.loss, report.held_out_acceptance, strict=True), start=1)
    ]
    answer(session, report, [*lines, f"best: {report.best}"])


@command(name="test", epilog="qmd draft test --questions faq.yaml")
@_QUESTIONS
@_MODEL
@_FOLDER
@click.option("--config", type=_FILE, help="The draft's configuration.")
@output_options("cli", "json")
@pass_session
def test_(
    session: Session, /, questions: Path, model: str | None, folder: Path | None, config: Path | None
) -> None:
    """Acceptance and answers on known questions, with knowledge and without."""
    r = _bench(session, config, model, folder).test_draft(_read(questions))
    lines = [
        f"acceptance with knowledge {r.acceptance_with_knowledge:.3f}, without {r.acceptance_without_knowledge:.3f} "
        f"({r.gain:+.1%})",
        f"{r.identical} of {r.questions} answers are the target's, word for word",
    ]
    answer(session, r, lines)


@command(epilog="qmd draft bench --questions faq.yaml --untrained")
@_QUESTIONS
@_MODEL
@_FOLDER
@click.option("--config", type=_FILE, help="The draft's configuration.")
@click.option("--repeats", type=click.IntRange(1, 50), default=3, show_default=True)
@click.option("--untrained", is_flag=True, help="Leave the neural draft out.")
@output_options("cli", "json", "csv", "jsonl")
@pass_session
def bench(
    session: Session,
    /,
    questions: Path,
    model: str | None,
    folder: Path | None,
    config: Path | None,
    **rest: Any,
) -> None:
    """Plain decoding against each way of drafting, on your questions and this machine."""
    rows = _bench(session, config, model, folder).compare(
        _read(questions), repeats=rest["repeats"], trained=not rest["untrained"]
    )
    columns = ("method", "wall_s", "speedup", "tokens_per_step", "acceptance")
    lines = [
        f"{r.method:20} {r.wall_s:8.2f} s  {r.speedup:5.2f}x  {r.tokens_per_step:5.2f} tokens/step  {r.acceptance:4.0%}"
        for r in rows
    ]
    answer_list(session, rows, columns, lines)
