"""What one run of `qmd` was told: which index, where its folders are, in which format to answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qmd.config import Config, Places
    from qmd.index import Index
    from qmd.serve.cli.remote import RemoteIndex

FORMATS = ("cli", "json", "jsonl", "csv", "md", "xml", "files")


@dataclass(slots=True)
class Session:
    """Filled by option callbacks before a command runs. `None` means: not said, the default holds."""

    index: str = "index"
    config_dir: Path | None = None
    data_dir: Path | None = None
    format: str = "cli"
    links: bool | None = None

    def settings(self) -> tuple[Places, Config]:
        """The folders and the configuration in force."""
        from qmd.config import find_places
        from qmd.trust import load_config_of

        places = find_places(self.config_dir, self.data_dir)
        return places, load_config_of(places)

    def open(self, *, create: bool = False) -> Index:
        """Open the index in force. Raises NotFound where there is none, unless `create`."""
        import qmd.index

        places, config = self.settings()
        return qmd.index.open(index=self.index, config=config, places=places, create=create)

    def reach(self) -> Index | RemoteIndex:
        """The index as its daemon has it, if one runs; else the index. `QMD_NO_DAEMON=1` leaves the daemon aside."""
        import os

        if os.environ.get("QMD_NO_DAEMON"):
            return self.open()
        from qmd import __version__
        from qmd.config import find_places
        from qmd.serve.spot import find_spot, read_state

        state = read_state(find_spot(find_places(self.config_dir, self.data_dir), self.index))
        if state is None or state.version != __version__:
            return self.open()
        from qmd.serve.cli.remote import RemoteIndex

        return RemoteIndex(state, self.open)


def session_of(ctx: click.Context) -> Session:
    """The session of this run, made at the outermost command."""
    return ctx.find_root().ensure_object(Session)


pass_session = click.make_pass_decorator(Session, ensure=True)
