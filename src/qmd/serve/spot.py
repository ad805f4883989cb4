"""Where the daemon of an index leaves its files, and whether they can be trusted.

Beside each other in a folder that only this user may enter: a lock (held as long as the process lives, so the kernel
gives it back even after `kill -9`), a state file (process, address) and a socket. The lock alone says whether a daemon
runs; a state file or socket without it is stale, whatever process has the number in it by now. Imports little: every
run of the command line asks here.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmd.config import Places


@dataclass(frozen=True, slots=True)
class State:
    """What a running daemon says of itself. `url` is where it answers HTTP, `socket` where the command line asks."""

    pid: int
    url: str
    socket: str
    version: str
    database: str
    config_dir: str
    started: float
    key: str = ""
    """What a request over `socket` must carry, where that is a port and not a file of this user."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where the files of the daemon of one index lie."""

    folder: Path
    name: str

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.name}.lock"

    @property
    def state(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.name}.sock"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"


def run_folder() -> Path:
    """`QMD_RUN_DIR`, else `$XDG_RUNTIME_DIR/qmd`, else a folder in the cache."""
    chosen = os.environ.get("QMD_RUN_DIR")
    if chosen:
        return Path(chosen)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "qmd"
    cache = os.environ.get("QMD_CACHE_DIR")
    if cache:
        return Path(cache).expanduser() / "run"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmd" / "run"


def find_spot(places: Places, index: str = "index") -> Spot:
    """The spot of an index under a configuration. Makes nothing."""
    named = f"{os.path.realpath(places.database(index))}\0{os.path.realpath(places.config_dir)}"
    digest = hashlib.blake2b(named.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return Spot(run_folder(), f"serve-{digest}")


def is_private(folder: Path) -> bool:
    """Whether the folder is ours and nobody else may enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    if os.name != "posix":  # folders of a user's profile are the user's own on Windows; its modes say nothing
        return stat.S_ISDIR(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def read_state(spot: Spot) -> State | None:
    """What the daemon of this spot says of itself, if one runs. A stale file says nothing."""
    if not is_private(spot.folder) or not is_held(spot):
        return None
    try:
        return State(**json.loads(spot.state.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_held(spot: Spot) -> bool:
    """Whether a living process holds the lock."""
    from qmd.serve import locks

    return locks.is_held(spot.lock)
