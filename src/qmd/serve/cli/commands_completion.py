"""`qmd completion` and `qmd help`."""

from __future__ import annotations

import click

from qmd.serve.cli.lazy import LazyGroup
from qmd.serve.cli.options import command

COMPLETE_VARIABLE = "_QMD_COMPLETE"


@command(
    epilog="""
    eval "$(qmd completion bash)"
    qmd completion zsh > ~/.zfunc/_qmd
    qmd completion fish > ~/.config/fish/completions/qmd.fish
    """
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    Put the first example into ~/.bashrc. Commands, options, collections and documents are completed.
    """
    from click.shell_completion import get_completion_class

    from qmd.serve.cli.app import root
    from qmd.serve.cli.screen import write

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(root, {}, "qmd", COMPLETE_VARIABLE)
    write(made.source_template % made.source_vars() + "\n")


@command(
    name="help",
    epilog="""
    qmd help query
    qmd help collection add
    """,
)
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command."""
    at = ctx.find_root()
    for word in words:
        if not isinstance(at.command, LazyGroup):
            ctx.fail(f"No such command '{' '.join(words)}'.")
        _, found, _ = at.command.resolve_command(at, [word])
        assert found is not None
        at = click.Context(found, info_name=found.name, parent=at)
    click.echo(at.get_help())
