"""`qmd skill`: what an agent should know about QMD, as a file that agents read."""

from __future__ import annotations

from pathlib import Path

import click

from qmd.serve.cli.lazy import LazyGroup, Place
from qmd.serve.cli.options import command

_HERE = "qmd.serve.cli.commands_skill"
_PLACES = {
    "show": Place(f"{_HERE}:show", "Print the skill."),
    "path": Place(f"{_HERE}:path", "Print the folder that the skill lies in."),
    "list": Place(f"{_HERE}:list_", "List the skills there are."),
    "install": Place(f"{_HERE}:install", "Copy the skill to where agents look for it."),
}

_NAME = click.argument("name", required=False, default="qmd")


def _folder(name: str) -> Path:
    from qmd.errors import NotFound

    if name != "qmd":
        raise NotFound(f"there is no skill {name!r}. The skill is called 'qmd'.")
    return Path(__file__).parents[1] / "skill"


@click.group(
    cls=LazyGroup,
    places=_PLACES,
    aliases={"get": "show"},
    invoke_without_command=True,
    epilog="""
    qmd skill
    qmd skill install --agent claude
    """,
)
@click.pass_context
def skill(ctx: click.Context) -> None:
    """What agents should know about QMD.

    Without a command it prints the skill: how to find, read and cite, for an agent that runs `qmd` or speaks to its MCP
    server.
    """
    if ctx.invoked_subcommand is None:
        _print("qmd")


def _print(name: str) -> None:
    from qmd.serve.cli.screen import write

    write((_folder(name) / "SKILL.md").read_text(encoding="utf-8"))


@command(epilog="qmd skill show")
@_NAME
def show(name: str) -> None:
    """Print the skill."""
    _print(name)


@command(epilog="qmd skill path")
@_NAME
def path(name: str) -> None:
    """Print the folder that the skill lies in."""
    click.echo(str(_folder(name)))


@command(name="list", epilog="qmd skill list")
def list_() -> None:
    """List the skills there are."""
    text = (_folder("qmd") / "SKILL.md").read_text(encoding="utf-8")
    about = next(line for line in text.splitlines() if line.startswith("description: "))
    click.echo(f"qmd  {about.removeprefix('description: ')}")


@command(
    epilog="""
    qmd skill install
    qmd skill install --global --agent claude
    """
)
@click.option(
    "--agent",
    type=click.Choice(("any", "claude")),
    default="any",
    show_default=True,
    help="any: .agents/skills; claude: .claude/skills.",
)
@click.option("--global", "everywhere", is_flag=True, help="In the home folder, for every project.")
@click.option("--force", is_flag=True, help="Replace a skill that was changed by hand.")
def install(agent: str, everywhere: bool, force: bool) -> None:
    """Copy the skill to where agents look for it.

    Into this folder's .agents/skills/qmd/, unless told otherwise. A file there that differs is left alone.
    """
    from qmd.errors import UsageError

    text = (_folder("qmd") / "SKILL.md").read_text(encoding="utf-8")
    base = Path.home() if everywhere else Path.cwd()
    target = base / (".claude" if agent == "claude" else ".agents") / "skills" / "qmd" / "SKILL.md"
    if target.is_symlink() or target.parent.is_symlink():
        raise UsageError(f"{target.parent} is a link, and is left alone. Remove it, and run this again.")
    if target.exists() and target.read_text(encoding="utf-8") != text and not force:
        raise UsageError(f"{target} is there and differs. Say --force to replace it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(".SKILL.md.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(target)
    click.echo(f"{target}")
