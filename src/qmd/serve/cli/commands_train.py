"""`qmd train`: teach an embedding model your own pairs of texts and images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qmd.serve.cli import exits
from qmd.serve.cli.options import command, output_options
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from qmd.vembed.config import TrainConfig
    from qmd.vembed.from_index import PairKind


@command(
    epilog="""
    qmd train products.yaml
    qmd train products.yaml --config_override batch_size=32 epochs=5 use_mrl=false
    qmd train --preset B --config_override data_path=pairs.jsonl output_dir=out
    qmd train --from-index -c notes output_dir=adapted
    """
)
@click.argument("words", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...")
@click.option(
    "--preset", type=click.Choice(("A", "B", "C")), help="Options to start from, by memory: A most, C least."
)
@click.option(
    "--config-override",
    "--config_override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Options that win over the file's; several may follow.",
)
@click.option("--from-index", is_flag=True, help="Make the pairs from the documents of the index.")
@click.option(
    "-c", "--collection", "collections", multiple=True, help="With --from-index: only this collection."
)
@click.option("--skip-bad", is_flag=True, help="Leave out lines that cannot be used, and count them.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of this run.")
@output_options("cli", "json")
@pass_session
def train(
    session: Session,
    words: tuple[str, ...],
    preset: str | None,
    overrides: tuple[str, ...],
    from_index: bool,
    collections: tuple[str, ...],
    skip_bad: bool,
    resume: bool,
) -> None:
    """Teach an embedding model your own pairs of texts and images.

    CONFIG is a YAML file. The trained model, its options, curve and evaluation are left in the run's output_dir.
    """
    from qmd.errors import UsageError
    from qmd.serve.cli.answer import answer
    from qmd.serve.cli.progress import ProgressLine
    from qmd.serve.cli.screen import say
    from qmd.vembed.config import load_train_config

    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise UsageError(f"one CONFIG is expected, not {len(files)}: {', '.join(files)}.")
    if not files and preset is None and not overrides and not from_index:
        raise UsageError("name a CONFIG file, or a --preset with KEY=VALUE options.")
    if collections and not from_index:
        raise UsageError("--collection belongs to --from-index.")
    settings = (
        *overrides,
        *(word for word in words if "=" in word),
        *(("skip_bad=true",) if skip_bad else ()),
    )
    if from_index:
        config = _prepare(session, files[0] if files else None, preset, settings, collections, resume)
    else:
        config = load_train_config(files[0] if files else None, preset=preset, overrides=settings)

    from qmd.vembed.evaluation.report import report_lines
    from qmd.vembed.run import train as run

    with ProgressLine() as progress:
        try:
            report = run(config, resume=resume, progress=progress)
        except KeyboardInterrupt:
            progress.clear()
            say("Interrupted. Checkpoints are kept; the same command with --resume goes on.")
            click.get_current_context().exit(exits.INTERRUPTED)
    lines = list(report_lines(report))
    if config.adapter != "none":
        lines.append(
            f"`qmd models use {report.output_dir}` makes it yours; the stored vectors follow by one product."
        )
    answer(session, report, lines)


def _prepare(
    session: Session,
    file: str | None,
    preset: str | None,
    settings: tuple[str, ...],
    collections: tuple[str, ...],
    resume: bool,
) -> TrainConfig:
    """The options of a run on pairs from the index, which are written beside its result."""
    from pathlib import Path

    import msgspec

    from qmd.serve.cli.screen import say
    from qmd.vembed.config import INDEX_PRESET, load_train_config
    from qmd.vembed.convert import write_pairs

    if file is None and preset is None and "task=rerank" not in settings:
        preset = INDEX_PRESET
    _, configuration = session.settings()
    defaults = {
        "data_path": "",
        "output_dir": "adapted",
        "model_name_or_path": configuration.models.embedding,
    }
    config = load_train_config(file, preset=preset, overrides=settings, defaults=defaults)
    pairs = Path(config.output_dir) / "pairs.jsonl"
    if not (resume and pairs.exists()):
        negatives = config.num_negatives if config.task == "rerank" else 0
        with session.open() as index:
            kinds: tuple[PairKind, ...] = ("title", "heading", "sentence", "link", "search")
            if config.retrieval_mode == "t2i":
                kinds = ("caption",)
            rows = index.training_pairs(kinds=kinds, collections=collections, negatives=negatives)
            pairs.parent.mkdir(parents=True, exist_ok=True)
            say(f"{write_pairs(rows, pairs)} pairs from the index are in {pairs}.")
    return msgspec.structs.replace(config, data_path=str(pairs))
