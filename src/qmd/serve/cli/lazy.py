"""Groups whose commands are imported when they are run, and commands that all know the global options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import click

from qmd.serve.cli.session import session_of


class Place(NamedTuple):
    """Where a command lives (`module:attribute`) and its one line in the list of commands."""

    where: str
    line: str


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(session_of(ctx), name, value)

    return keep


def complete_index(ctx: click.Context, parameter: click.Parameter, start: str) -> list[str]:
    """Names of the databases in the data folder."""
    from qmd.config import find_places

    session = session_of(ctx)
    folder = find_places(session.config_dir, session.data_dir).data_dir
    return sorted(p.stem for p in folder.glob("*.sqlite") if p.stem.startswith(start))


def global_options() -> list[click.Option]:
    """Options that stand before or after any command."""
    folder = click.Path(file_okay=False, path_type=Path)
    common: dict[str, Any] = {"expose_value": False, "is_eager": True}
    return [
        click.Option(
            ["--index"],
            metavar="NAME",
            help="Use the index of this name.  [default: index]",
            callback=_remember("index"),
            shell_complete=complete_index,
            **common,
        ),
        click.Option(
            ["--config-dir"],
            type=folder,
            help="Folder of config.yaml (or QMD_CONFIG_DIR).",
            callback=_remember("config_dir"),
            **common,
        ),
        click.Option(
            ["--data-dir"],
            type=folder,
            help="Folder of the indexes (or QMD_DATA_DIR).",
            callback=_remember("data_dir"),
            **common,
        ),
    ]


_GLOBAL_NAMES = frozenset({"--index", "--config-dir", "--data-dir"})
_OUTPUT_NAMES = frozenset(
    [
        *("--format", "--full", "--raw", "--context-lines", "--line-numbers"),
        *("--full-path", "--explain", "--links", "--skipped"),
    ]
)


class _Helped:
    """Help with the command's own options first, the global ones below, and examples left as they are
    typed.
    """

    epilog: str | None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        assert isinstance(self, click.Command)
        rows: dict[str, list[tuple[str, str]]] = {"Options": [], "Output": [], "Global options": []}
        short_formats: list[str] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None or not isinstance(parameter, click.Option):
                continue
            if parameter.name == "format" and parameter.is_flag:
                short_formats.extend(parameter.opts)
            elif _GLOBAL_NAMES & set(parameter.opts):
                rows["Global options"].append(record)
            else:
                rows["Output" if _OUTPUT_NAMES & set(parameter.opts) else "Options"].append(record)
        rows["Output"].sort(key=lambda row: not row[0].startswith("--format"))
        if short_formats:
            rows["Output"].insert(1, (", ".join(short_formats), "Short for --format."))
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=26)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line.strip()}\n")


class QmdCommand(_Helped, click.Command):
    """A command that takes the global options as well; its epilog is a list of examples."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())


class LazyGroup(_Helped, click.Group):
    """A group that knows its commands by name and place, and imports one when it is called."""

    def __init__(
        self,
        *args: Any,
        places: Mapping[str, Place],
        aliases: Mapping[str, str] | None = None,
        sections: Sequence[tuple[str, Sequence[str]]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())
        self.places = dict(places)
        self.aliases = dict(aliases or {})
        self.sections = tuple(sections) or (("Commands", tuple(places)),)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self.places.get(self.aliases.get(cmd_name, cmd_name))
        if place is None:
            return None
        module, _, attribute = place.where.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and self.get_command(ctx, name) is None and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, [*self.places, *self.aliases], n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" Try '{ctx.command_path} --help'."
            ctx.fail(f"No such command '{name}'.{hint}")
        _, command, rest = super().resolve_command(ctx, args)
        return self.aliases.get(name, name), command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.places), default=0)
        for title, names in self.sections:
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), self.places[name].line) for name in names])
