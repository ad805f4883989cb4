"""A lock that a living process holds on a file, and that the system gives back when it dies, however it dies.

`flock` where there is one; on Windows a locked byte far beyond the end of the file.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO, Any

fcntl: Any
msvcrt: Any
try:
    import fcntl

    msvcrt = None
except ImportError:  # Windows
    import msvcrt

    fcntl = None

FAR = 1 << 30


def take(file: IO[Any], *, within_s: float = 0.0) -> bool:
    """Hold the lock for as long as the file is open. False when another process has it all this time."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                file.seek(FAR)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        else:
            return True


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of this file."""
    try:
        with path.open("r+") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            elif take(file):
                file.seek(FAR)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
            else:
                return True
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def open_private(path: Path) -> IO[str]:
    """A file that only this user may read, made where it is not there; what is written goes to its end. No link is
    followed, where that can be said."""
    flags = os.O_CREAT | os.O_RDWR | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    return open(os.open(path, flags, 0o600), "r+", encoding="utf-8")
