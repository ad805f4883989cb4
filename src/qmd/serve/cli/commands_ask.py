"""`qmd ask`: search, then a short answer with checked citations from a small local model or a server."""

from __future__ import annotations

import sys
from typing import Any

import click

from qmd.serve.cli.options import command, output_options
from qmd.serve.cli.session import Session, pass_session


@command(
    epilog="""
    qmd ask "how do I open a locked door"
    qmd ask "and in winter?" --follow-up
    qmd ask "who wrote this" --model http://localhost:11434/v1#llama3.2
    """
)
@click.argument("question", nargs=-1, required=True)
@click.option(
    "-n", "--limit", type=click.IntRange(1, 9), default=3, show_default=True, help="Sources to read."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1, 2048),
    default=120,
    show_default=True,
    help="Length of the answer.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="A catalog name, folder, GGUF file or hub id, or http://host/v1#name.  [default: SmolLM2]",
)
@click.option(
    "-c", "--collection", "collections", multiple=True, metavar="NAME", help="Only in this collection."
)
@click.option("--path", metavar="GLOB", help="Only in these paths.")
@click.option("--follow-up", is_flag=True, help="Continue the last conversation.")
@output_options("cli", "json")
@pass_session
def ask(session: Session, /, question: tuple[str, ...], **options: Any) -> None:
    """Answer a question from your documents, with citations.

    The answer is written as it comes; then each sentence is held against the passage it cites, and marked if that
    does not hold its words. What is not in your documents is not answered.
    """
    from qmd.search import answer as answers
    from qmd.serve.cli.records import to_json
    from qmd.serve.cli.screen import say, write

    text = " ".join(question)
    model, follow_up = options.pop("model"), options.pop("follow_up")
    asked = {name: value for name, value in options.items() if value not in (None, ())}
    live = session.format == "cli" and sys.stdout.isatty()
    notebook = session.settings()[0].data_dir / "conversation.json"
    history = answers.read_history(notebook) if follow_up else []
    stream = (lambda piece: write(piece)) if live else None
    # a model named here is opened here: the daemon has the configured one
    with session.open() if model else session.reach() as index:
        if model:
            asked["model"] = model
        found = index.ask(text, history=history, stream=stream, **asked)
    if found.found:
        answers.write_history(notebook, [*history, (text, found.text)])
    for reason in found.degraded:
        say(f"Note: degraded: {reason}")
    if session.format == "json":
        write(to_json(found))
        return
    lines = ["\n"] if live else [found.marked()]
    if live and found.found:
        lines += [f"Not in the sources: {c.text}" for c in found.claims if not c.supported]
    if live and found.quote is not None:
        lines.append(f"The sources say: “{found.quote.text}” [{found.quote.cited[0]}]")
    lines += [f"[{s.number}] {s.file}:{s.line}  {s.title}" for s in (found.cited or found.sources)]
    write("".join(f"{line}\n" for line in lines))
