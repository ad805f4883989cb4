"""Writing to people and to pipes: what a terminal can show, and what must never reach it from a document."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TextIO

import click

_ESCAPE_SEQUENCES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)|\x9b[0-?]*[ -/]*[@-~]?"
)
# C0 but for tab and newline, DEL, C1, and the marks that reorder text on the screen (Unicode TR 36).
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SURROGATES = re.compile("[\ud800-\udfff]")

_LINKING_PROGRAMS = frozenset(
    {"iTerm.app", "WezTerm", "vscode", "Hyper", "ghostty", "Tabby", "rio", "WarpTerminal"}
)
_LINKING_TERMS = ("xterm-kitty", "xterm-ghostty", "alacritty", "foot", "wezterm", "contour")


class OutputClosed(Exception):
    """Nobody reads standard output any more."""


def clean(text: str) -> str:
    """Take out of document text whatever would steer a terminal: escape sequences, controls, bidi
    overrides.
    """
    if text.isascii() and text.isprintable():
        return text
    return _CONTROLS.sub("", _ESCAPE_SEQUENCES.sub("", text.replace("\r\n", "\n")))


def clean_line(text: str) -> str:
    """The same, on one line."""
    return " ".join(clean(text).split())


def encodable(text: str) -> str:
    """Replace lone surrogates (file names that are not UTF-8) by U+FFFD, so that the text is valid
    Unicode.
    """
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def wants_colour(stream: TextIO) -> bool:
    """Colour only on a terminal that knows it, and never against NO_COLOR (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def likely_links(stream: TextIO) -> bool:
    """Whether this terminal is known to make OSC 8 hyperlinks clickable. Unknown ones may print rubbish: no. Never
    against NO_HYPERLINK.
    """
    env = os.environ
    if (
        env.get("NO_HYPERLINK")
        or not is_terminal(stream)
        or env.get("TERM") == "dumb"
        or env.get("TERM", "").startswith("screen")
    ):
        return False
    vte = env.get("VTE_VERSION", "")
    return (
        env.get("TERM_PROGRAM") in _LINKING_PROGRAMS
        or env.get("TERM", "").startswith(_LINKING_TERMS)
        or (vte.isdigit() and int(vte) >= 5000)
        or any(name in env for name in ("WT_SESSION", "KONSOLE_VERSION", "DOMTERM", "KITTY_WINDOW_ID"))
    )


def link(text: str, target: str) -> str:
    """An OSC 8 hyperlink."""
    return f"\x1b]8;;{clean_line(target)}\x1b\\{text}\x1b]8;;\x1b\\"


def make_streams_usable() -> None:
    """A standard stream that was closed swallows what is written; one that is not UTF-8 shows `?` where it must."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the numbers 0 to 2 are taken in order, and no file of ours gets one
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def write(text: str, *, trusted: bool = False) -> None:
    """Write to standard output: UTF-8 to a pipe, byte for byte; to a terminal without control characters.

    `trusted` text has been cleaned piece by piece and carries our own colours and links.
    Raises OutputClosed when the reader has gone.
    """
    stream = sys.stdout
    text = encodable(text)
    try:
        if is_terminal(stream):
            shown = text if trusted else clean(text)
            encoding = stream.encoding or "utf-8"
            click.echo(shown.encode(encoding, "replace").decode(encoding), nl=False, color=True)
        else:
            stream.flush()
            stream.buffer.write(text.encode("utf-8"))
            stream.buffer.flush()
    except BrokenPipeError as error:
        raise OutputClosed from error


def say(message: str) -> None:
    """A line for the person, on standard error, so that standard output stays what was asked for."""
    click.echo(encodable(clean(message)), err=True)


class Style:
    """Paint for one stream: every method gives its text back unchanged where there is no colour."""

    def __init__(self, colour: bool) -> None:
        self.colour = colour

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def bold(self, text: str) -> str:
        return self._paint(text, "1")

    def dim(self, text: str) -> str:
        return self._paint(text, "2")

    def place(self, text: str) -> str:
        return self._paint(text, "36")

    def good(self, text: str) -> str:
        return self._paint(text, "32")

    def warn(self, text: str) -> str:
        return self._paint(text, "33")

    def bad(self, text: str) -> str:
        return self._paint(text, "31")

    def found(self, text: str) -> str:
        return self._paint(text, "1;33")


def style() -> Style:
    """Paint for standard output as it is now."""
    return Style(wants_colour(sys.stdout))
