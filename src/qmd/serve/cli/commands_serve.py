"""`qmd serve`: the daemon. Models stay loaded, folders are watched, programs ask over HTTP."""

from __future__ import annotations

import importlib.util
import math
import sys
from typing import Any

import click

from qmd.serve.cli.lazy import LazyGroup, Place
from qmd.serve.cli.options import command, output_options, reached_options
from qmd.serve.cli.session import Session, pass_session, session_of

_HERE = "qmd.serve.cli.commands_serve"


class Seconds(click.FloatRange):
    """A time that ends."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


@click.group(
    cls=LazyGroup,
    places={
        "status": Place(f"{_HERE}:status", "Say whether the daemon of this index runs, and where."),
        "stop": Place(f"{_HERE}:stop", "End the daemon of this index."),
    },
    invoke_without_command=True,
    epilog="""
    qmd serve
    qmd serve --daemon
    qmd serve status
    qmd serve stop
    qmd serve --host 0.0.0.0 --token-file ~/.config/qmd/token
    """,
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8181,
    show_default=True,
    metavar="PORT",
    help="0 takes a free one.",
)
@reached_options()
@click.option("--daemon", is_flag=True, help="Run in the background.")
@click.option("--watch/--no-watch", default=True, help="Index changes of the folders.  [default: watch]")
@click.option(
    "--idle",
    type=Seconds(min=0),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Then models are let go.",
)
@click.option(
    "--deadline",
    type=Seconds(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For one request.",
)
@click.pass_context
def serve(ctx: click.Context, /, **options: Any) -> None:
    """Answer programs over HTTP, with models loaded and folders watched.

    While it runs, `qmd query`, `search`, `vsearch` and `ask` ask it and need not load anything. It listens on
    this machine alone; beyond that it asks for a token.
    """
    if ctx.invoked_subcommand is not None:
        return
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn", "watchfiles")):
        from qmd.errors import MissingExtra

        raise MissingExtra("`qmd serve`", "server")
    session = session_of(ctx)
    if options["daemon"]:
        _start(session, options)
    else:
        _run(session, options)


def _start(session: Session, options: dict[str, Any]) -> None:
    from qmd.serve import daemon
    from qmd.serve.cli.screen import write
    from qmd.serve.spot import find_spot

    places, _ = session.settings()
    session.open().close()  # what keeps it from starting is better said here
    # A project's own configuration is found again from here, and is not trusted for having been found.
    config = ("--config-dir", str(places.config_dir)) if places.named or places.project is None else ()
    arguments = [
        "serve",
        *("--index", session.index, *config, "--data-dir", str(places.data_dir)),
        *("--host", options["host"], "--port", str(options["port"])),
        *("--idle", str(options["idle"]), "--deadline", str(options["deadline"])),
        "--watch" if options["watch"] else "--no-watch",
    ]
    if options["token_file"] is not None:
        arguments += ["--token-file", str(options["token_file"].absolute())]
    for name in options["allowed_hosts"]:
        arguments += ["--allow-host", name]
    state = daemon.start(arguments, find_spot(places, session.index))
    write(f"Serving at {state.url} (process {state.pid}). `qmd serve stop` ends it.\n")


def _run(session: Session, options: dict[str, Any]) -> None:
    import logging
    import os

    from qmd.serve import daemon
    from qmd.serve.cli.screen import say
    from qmd.serve.service import Limits, Service
    from qmd.serve.spot import find_spot

    os.umask(0o077)
    # several searches run at once: threads of one product of matrices would only wait for a core, spinning
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # a search gives the interpreter away some forty times, at each statement; waiting 5 ms to have it back adds up
    sys.setswitchinterval(0.0005)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for name in ("uvicorn", "watchfiles", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    places, _ = session.settings()
    token = daemon.read_token(options["token_file"]) if options["token_file"] is not None else None
    limits = Limits(idle_s=options["idle"], deadline_s=options["deadline"])
    service = Service(index=session.index, places=places, limits=limits)
    daemon.run(
        service,
        find_spot(places, session.index),
        host=options["host"],
        port=options["port"],
        token=token,
        allowed_hosts=options["allowed_hosts"],
        watch=options["watch"],
        announce=lambda state: say(f"Serving at {state.url}. Ctrl-C ends it."),
    )


@command(epilog="qmd serve stop")
@pass_session
def stop(session: Session, /) -> None:
    """End the daemon of this index.

    It finishes the requests it has accepted first.
    """
    from qmd.serve import daemon
    from qmd.serve.cli.screen import write
    from qmd.serve.spot import find_spot

    places, _ = session.settings()
    state = daemon.stop(find_spot(places, session.index))
    write(f"Stopped process {state.pid}.\n")


@command(
    epilog="""
    qmd serve status
    qmd serve status --json
    """
)
@output_options("cli", "json")
@pass_session
def status(session: Session, /) -> None:
    """Say whether the daemon of this index runs, and where.

    Exit code 3 when none does.
    """
    from dataclasses import asdict

    from qmd.errors import NotFound
    from qmd.serve.cli.answer import answer
    from qmd.serve.spot import find_spot, read_state

    places, _ = session.settings()
    state = read_state(find_spot(places, session.index))
    if state is None:
        raise NotFound("no daemon serves this index. `qmd serve --daemon` starts one.")
    lines = [f"{state.url}  process {state.pid}, QMD {state.version}", f"index  {state.database}"]
    answer(session, asdict(state), lines)
