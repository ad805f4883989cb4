"""How a failure is told: one clear message with its remedy, or one line of JSON; a traceback only on
request.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType

import click

from qmd.errors import QmdError
from qmd.serve.cli import exits
from qmd.serve.cli.screen import Style, clean, encodable, wants_colour


def as_json_wanted(arguments: Sequence[str]) -> bool:
    """Whether the caller asked for JSON, judged from the bare arguments: a command line that cannot be
    parsed counts.
    """
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument == "--":
            return False
        if argument in ("--json", "--jsonl", "--format=json", "--format=jsonl"):
            return True
        if argument == "--format" and following in ("json", "jsonl"):
            return True
    return False


def _message(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and not isinstance(error, QmdError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _hint(error: BaseException) -> str | None:
    if isinstance(error, click.NoSuchOption):
        context = error.ctx
        searching = context is not None and context.command.name in ("search", "vsearch", "query")
        if searching and not error.option_name.startswith("--"):
            return "To leave a word out, quote the whole query: qmd search 'wanted -unwanted'."
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"'{error.ctx.command_path} --help' shows what it takes."
    return None


def exit_code(error: BaseException) -> int:
    if isinstance(error, (QmdError, click.ClickException)):
        return error.exit_code
    return exits.FAILED


def was_interrupted(error: BaseException | None) -> bool:
    """Whether it came of a Ctrl-C: what is interrupted while it is imported says so in its own way."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell one failure on standard error and give its exit code."""
    if os.environ.get("QMD_DEBUG"):
        import traceback

        traceback.print_exception(error)
    code, message, hint = exit_code(error), _message(error), _hint(error)
    if as_json:
        import json

        told = {"type": type(error).__name__, "message": message, "exit_code": code}
        click.echo(json.dumps({"error": told | ({"hint": hint} if hint else {})}), err=True)
        return code
    paint = Style(wants_colour(sys.stderr))
    click.echo(f"{paint.bad('qmd:')} {encodable(clean(message))}", err=True)
    if hint:
        click.echo(f"     {hint}", err=True)
    return code


def hide_traceback(as_json: bool) -> None:
    """Make even a bug end in one line that says how to see more. `QMD_DEBUG=1` leaves Python's own report."""
    if os.environ.get("QMD_DEBUG"):
        return

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        message = (
            f"internal error: {kind.__name__}: {error}. Set QMD_DEBUG=1 and run again for the traceback."
        )
        report(click.ClickException(message), as_json=as_json)

    sys.excepthook = tell
