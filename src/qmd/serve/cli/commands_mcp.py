"""`qmd mcp`: the server that agents speak to, on standard input or over HTTP, and how to tell an agent of it."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from click.core import ParameterSource

from qmd.serve.cli.lazy import LazyGroup, Place
from qmd.serve.cli.options import command, reached_options
from qmd.serve.cli.session import Session, pass_session, session_of

_HERE = "qmd.serve.cli.commands_mcp"
_PLACES = {
    "stop": Place(f"{_HERE}:stop", "End the daemon of this index."),
    "install": Place(f"{_HERE}:install", "Show how to tell an agent of this server."),
}


@click.group(
    cls=LazyGroup,
    places=_PLACES,
    invoke_without_command=True,
    epilog="""
    qmd mcp
    qmd mcp --http --port 8181
    qmd mcp --http --daemon
    qmd mcp --http --host 0.0.0.0 --token-file ~/.config/qmd/token
    qmd mcp stop
    qmd mcp install claude-code
    """,
)
@click.option("--http", is_flag=True, help="Serve over HTTP, at /mcp, in place of standard input and output.")
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="PORT", help="With --http: the port.  [default: 8181]"
)
@click.option("--host", metavar="ADDRESS", help="With --http: where to listen.  [default: 127.0.0.1]")
@reached_options("With --http: ")
@click.option("--daemon", is_flag=True, help="With --http: run in the background.")
@click.pass_context
def mcp(ctx: click.Context, /, http: bool, **options: Any) -> None:
    """Let agents search and read: the Model Context Protocol.

    Agents start `qmd mcp` themselves and speak to it on standard input and output. With --http one server answers
    several, and everything else that `qmd serve` does.
    """
    if ctx.invoked_subcommand is not None:
        return
    said = ParameterSource.COMMANDLINE
    given = {name: value for name, value in options.items() if ctx.get_parameter_source(name) is said}
    if given and not http:
        [flag] = [p.opts[0] for p in ctx.command.params if p.name == next(iter(given))]
        raise click.UsageError(f"{flag} needs --http.")
    if http:
        from qmd.serve.cli.commands_serve import serve

        ctx.invoke(serve, **given)
        return
    # a product of a question with some rows is too small for two threads: the second one would only spin
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from qmd.serve.mcp.near import NearIndex
    from qmd.serve.mcp.stdio import serve_stdio

    session = session_of(ctx)
    if sys.stdin.isatty():
        click.echo(
            "An agent starts this and speaks to it. `qmd mcp install` shows how. Ctrl-D ends it.", err=True
        )
    ctx.exit(serve_stdio(lambda: NearIndex(session)))


@command(epilog="qmd mcp stop")
@pass_session
def stop(session: Session) -> None:
    """End the daemon of this index.

    The same as `qmd serve stop`.
    """
    from qmd.serve.cli import commands_serve

    click.get_current_context().invoke(commands_serve.stop)


def complete_agent(ctx: click.Context, parameter: click.Parameter, start: str) -> list[str]:
    from qmd.serve.mcp.agents import AGENTS

    return [name for name in AGENTS if name.startswith(start)]


@command(
    epilog="""
    qmd mcp install
    qmd mcp install claude-code
    qmd mcp install cursor --url http://127.0.0.1:8181/mcp
    """
)
@click.argument("agent", required=False, shell_complete=complete_agent)
@click.option("--url", metavar="URL", help="For a server that runs: its address, in place of a program.")
@pass_session
def install(session: Session, agent: str | None, url: str | None) -> None:
    """Show how to tell an agent of this server.

    Prints the lines and where they belong; writes nothing. Without a name it lists the agents it knows.
    """
    from qmd.errors import NotFound
    from qmd.serve.mcp.agents import AGENTS, how_to

    if agent is None:
        width = max(map(len, AGENTS))
        for known in AGENTS.values():
            click.echo(f"{known.name:{width}}  {known.title}: {known.file}")
        return
    if agent not in AGENTS:
        from difflib import get_close_matches

        near = get_close_matches(agent, AGENTS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(AGENTS)}."
        raise NotFound(f"there are no lines for {agent!r}.{hint}")
    program, arguments = _program(session)
    click.echo(how_to(AGENTS[agent], program, arguments, url=url))


def _program(session: Session) -> tuple[str, list[str]]:
    """What to run: the whole path, because programs with a window do not know the shell's PATH."""
    import shutil

    found = shutil.which("qmd")
    program, arguments = (found, []) if found else (sys.executable, ["-P", "-m", "qmd"])
    arguments.append("mcp")
    if session.index != "index":
        arguments += ["--index", session.index]
    for flag, folder in (("--config-dir", session.config_dir), ("--data-dir", session.data_dir)):
        if folder is not None:
            arguments += [flag, str(folder.absolute())]
    return program, arguments
