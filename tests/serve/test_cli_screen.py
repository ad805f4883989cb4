"""What reaches a terminal and a pipe: controls, colours, links, progress, completion of commands."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from qmd.serve.cli.app import ALIASES, PLACES, SECTIONS, root
from qmd.serve.cli.escape import code_block, code_span, csv_text, numbered, xml
from qmd.serve.cli.format_hits import View, query_words, show_hits
from qmd.serve.cli.options import split_patterns
from qmd.serve.cli.progress import ProgressLine, duration
from qmd.serve.cli.records import plain, to_json
from qmd.serve.cli.screen import Style, clean, encodable, likely_links, wants_colour
from qmd.types import Hit, Hits


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "raw, shown",
    [
        ("plain\ttab\nline", "plain\ttab\nline"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\here\x1b]8;;\x1b\\", "here"),
        ("\x1bPq#0\x1b\\sixel", "sixel"),
        ("\x9b31mc1", "c1"),
        ("over\rwrite\r\nnext", "overwrite\nnext"),
        ("\u202eevil\u2066x\u2069", "evilx"),
        ("\x1b]0;never ended\nstill here", "\nstill here"),
        ("👩\u200d🚀 é 日本", "👩\u200d🚀 é 日本"),
    ],
)
def test_clean(raw: str, shown: str) -> None:
    assert clean(raw) == shown


@given(st.text())
def test_clean_leaves_nothing_that_steers_and_is_stable(text: str) -> None:
    shown = clean(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) <= 0x9F for c in shown)
    assert clean(shown) == shown


@given(st.text(alphabet=st.characters()))
def test_any_text_is_written_as_utf8(text: str) -> None:
    encodable(text).encode("utf-8", "strict")
    assert json.loads(to_json([text]))[0] == encodable(text)


def test_plain_takes_what_results_hold() -> None:
    assert plain({"a": (1, math.nan, math.inf), 3: {"x"}, "t": True}) == {
        "a": [1, None, None],
        "3": ["x"],
        "t": True,
    }


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_csv_text_defuses(text: str) -> None:
    assert csv_text(text).lstrip('"').startswith("'")


def test_escapes() -> None:
    assert xml('<a href="x">&\'\x00') == "&lt;a href=&quot;x&quot;&gt;&amp;&apos;\ufffd"
    assert code_span("a`b") == "``a`b``"
    assert code_span("`") == "`` ` ``"
    assert code_block("```py\nx\n```\n") == "````\n```py\nx\n```\n````"
    assert numbered("a\nb", 9) == "9: a\n10: b"


def test_query_words_leave_out_what_the_query_leaves_out() -> None:
    words = query_words('tag:travel lisbon -porto -"old town" "day trip" 権限')
    assert words is not None
    assert words.findall("Lisbon, Porto, old town, a day trip, travel, 権限の変更") == [
        "Lisbon",
        "day",
        "trip",
        "権限",
    ]
    assert query_words("-only") is None


def test_split_patterns() -> None:
    assert split_patterns(["*.md, {a,b}/*.txt", "x", " ,", "{open"]) == ("*.md", "{a,b}/*.txt", "x", "{open")


def test_colour_needs_a_terminal_and_no_objection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert wants_colour(Terminal())
    assert not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(Terminal())


def test_links_only_on_terminals_that_are_known_to_link(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "TERM_PROGRAM",
        "VTE_VERSION",
        "WT_SESSION",
        "KONSOLE_VERSION",
        "DOMTERM",
        "KITTY_WINDOW_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert not likely_links(Terminal())
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert likely_links(Terminal())
    assert not likely_links(io.StringIO())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("VTE_VERSION", "4800")
    assert not likely_links(Terminal())
    monkeypatch.setenv("VTE_VERSION", "7600")
    assert likely_links(Terminal())
    monkeypatch.setenv("TERM", "screen-256color")
    assert not likely_links(Terminal())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_estimate_is_the_recent_rate_and_silent_before_it_is_known() -> None:
    clock, stream = Clock(), Terminal()
    line = ProgressLine(stream, clock=clock)
    line("embed", 0, 1000)
    assert line.left_s(0, 1000) is None
    clock.now = 1.0
    line("embed", 10, 1000)
    assert line.left_s(10, 1000) is None
    for second in range(2, 101):
        clock.now = float(second)
        line("embed", 10 * second if second < 50 else 490 + (second - 49), 1000)
    left = line.left_s(541, 1000)
    assert left == pytest.approx(459, rel=0.01), "one a second for the last 20 s, not ten as before"
    assert "embed: 541 of 1,000 (54%), about 8 min left" in stream.getvalue()
    line("embed", 541, None)
    assert line.text(541, None) == "embed: 541"


def test_a_new_stage_starts_a_new_estimate() -> None:
    clock = Clock()
    line = ProgressLine(Terminal(), clock=clock)
    line("read", 0, 10)
    clock.now = 5.0
    line("read", 10, 10)
    assert line.left_s(10, 10) == 0
    line("embed", 0, 10)
    assert line.left_s(0, 10) is None


def test_progress_is_cleared_and_never_reaches_a_pipe() -> None:
    stream = Terminal()
    with ProgressLine(stream) as line:
        line("read\x1b[2J", 1, 2)
    assert stream.getvalue() == "\rread: 1 of 2 (50%)\x1b[K\r\x1b[K"
    pipe = io.StringIO()
    with ProgressLine(pipe) as line:
        line("read", 1, 2)
    assert pipe.getvalue() == ""


@pytest.mark.parametrize(
    "seconds, text", [(0.2, "1 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_help_lists_every_command_with_its_own_first_line(runner: CliRunner) -> None:
    assert sorted(name for _, names in SECTIONS for name in names) == sorted(PLACES)
    assert set(ALIASES.values()) <= set(PLACES)
    for args, places in ([], PLACES), (["collection"], None), (["context"], None):
        group: Any = root
        for name in args:
            group = root.get_command(root.make_context("qmd", ["--help"], resilient_parsing=True), name)
        for name, place in (places or group.places).items():
            command = group.get_command(None, name)
            first = command.help.split("\n\n")[0]
            assert " ".join(first.split()) == place.line, name
            assert command.epilog, f"{name} has no example"
            said = runner.invoke(root, [*args, name, "--help"])
            assert said.exit_code == 0
            assert "Examples:" in said.output


def test_bare_command_shows_three_useful_lines(runner: CliRunner) -> None:
    said = runner.invoke(root, [])
    assert said.exit_code == 0
    assert [line.split()[1] for line in said.output.splitlines()[:3]] == ["add", "query", "get"]


def test_help_command(runner: CliRunner) -> None:
    words = ["help", "collection", "add"]
    assert runner.invoke(root, words).output == runner.invoke(root, ["collection", "add", "--help"]).output
    assert runner.invoke(root, ["help", "nonsense"]).exit_code == 2


def test_matches_are_bright_where_the_search_marked_them() -> None:
    hit = Hit(
        "abc123", 0.5, "qmd://n/a.md", 7, 8, "T", "n", "a.md", snippet="running\x1b[31m\nran", marks=((0, 7),)
    )
    bright, plain_ = Style(True), Style(False)
    view = View(line_numbers=True)
    shown = show_hits(Hits((hit,)), "ran", bright, view)
    assert shown.endswith(f"\n7: {bright.found('running')}\n8: ran\n")
    unmarked = dataclasses.replace(hit, marks=())
    assert show_hits(Hits((unmarked,)), "ran", bright, view).endswith(
        f"\n7: running\n8: {bright.found('ran')}\n"
    )
    assert "\x1b" not in show_hits(Hits((hit,)), "ran", plain_, view)
