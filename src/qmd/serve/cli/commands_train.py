"""`qmd train`: teach an embedding model your own pairs of texts and images."""

from __future__ import annotations

import click

from qmd.serve.cli import exits
from qmd.serve.cli.options import command, output_options
from qmd.serve.cli.session import Session, pass_session


@command(
    epilog="""
    qmd train products.yaml
    qmd train products.yaml --config_override batch_size=32 epochs=5 use_mrl=false
    qmd train --preset B --config_override data_path=pairs.jsonl output_dir=out
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
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of this run.")
@output_options("cli", "json")
@pass_session
def train(
    session: Session, words: tuple[str, ...], preset: str | None, overrides: tuple[str, ...], resume: bool
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
    if not files and preset is None and not overrides:
        raise UsageError("name a CONFIG file, or a --preset with KEY=VALUE options.")
    settings = (*overrides, *(word for word in words if "=" in word))
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
    answer(session, report, report_lines(report))
