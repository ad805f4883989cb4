"""`docs/cli.md` documents every command and every flag, and nothing that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from qmd.serve.cli.app import root
from qmd.serve.cli.lazy import LazyGroup

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
SHARED = {"search options", "output options", "global options"}


def sections() -> dict[str, str]:
    """Heading (lower case) -> the text below it, down to the next heading of any level."""
    parts = re.split(r"^#{1,4} (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return {title.strip().lower(): text for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def commands(group: LazyGroup = root, name: str = "qmd") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name="qmd")
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        yield f"{name} {word}", command
        if isinstance(command, LazyGroup):
            yield from commands(command, f"{name} {word}")


COMMANDS = dict(commands())
FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][a-z_-]*")


def told(name: str) -> str:
    """A command's section, with the shared sections that it links to."""
    found = sections()
    text = found[name]
    for title in SHARED:
        if f"(#{title.replace(' ', '-')})" in text:
            text += found[title]
            if "(#output-options)" in found[title] and title == "search options":
                text += found["output options"]
    return text + found["global options"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_documented(name: str) -> None:
    documented = set(FLAG.findall(told(name)))
    context = click.Context(COMMANDS[name], info_name=name, help_option_names=["-h", "--help"])
    for parameter in COMMANDS[name].get_params(context):
        if isinstance(parameter, click.Option):
            absent = {*parameter.opts, *parameter.secondary_opts} - documented
            assert not absent, f"docs/cli.md, {name}: {sorted(absent)} not documented"


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if not isinstance(c, LazyGroup)])
def test_every_command_has_a_real_example(name: str) -> None:
    blocks = re.findall(r"```console\n(.*?)```", sections()[name], flags=re.S)
    assert any(name in line for block in blocks for line in block.splitlines() if line.startswith("$ "))


def test_nothing_is_documented_that_does_not_exist() -> None:
    titles = [t for t in sections() if t.startswith("qmd ")]
    assert set(titles) == set(COMMANDS)
    for name in titles:
        known = {"--version", "-v"}
        context = click.Context(COMMANDS[name], info_name=name, help_option_names=["-h", "--help"])
        for parameter in COMMANDS[name].get_params(context):
            known |= {*parameter.opts, *parameter.secondary_opts}
        rows = re.findall(r"^\| (`-.*?) \|", sections()[name], flags=re.M)
        unknown = {flag for row in rows for flag in FLAG.findall(row)} - known
        assert not unknown, f"{name}: {sorted(unknown)}"


def test_root_flags_and_exit_codes_are_documented() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "`-v`" in text
    assert "`--version`" in text
    from qmd.serve.cli import exits

    for name in ("FOUND", "FAILED", "USAGE", "NOT_FOUND", "INTERRUPTED", "OUTPUT_CLOSED"):
        assert f"| {getattr(exits, name)} |" in sections()["exit codes"]
