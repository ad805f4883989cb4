"""The way from the command line to its daemon: a Unix socket that only this user may use; where there are none, a port
of this machine with a key that stands in the state file, which only this user may read."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from qmd.errors import UsageError

UNIX = hasattr(socket, "AF_UNIX") and os.name == "posix"
SOCKET_PATH_BYTES = 100
TCP = "tcp:127.0.0.1:"


@dataclass(frozen=True, slots=True)
class Channel:
    """`listening` is bound and listens. `address` and `key` are what the other side needs (`key` is empty for a Unix
    socket)."""

    listening: socket.socket
    address: str
    key: str = ""


def listen(path: Path) -> Channel:
    """Bind at `path`, or at a free port. Whatever lies at `path` is stale: the caller holds the lock."""
    if not UNIX:
        import secrets  # with what it brings, more than all else that the command line loads to ask

        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.bind(("127.0.0.1", 0))
        bound.listen(256)
        return Channel(bound, f"{TCP}{bound.getsockname()[1]}", secrets.token_urlsafe(32))
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise UsageError(f"{path} is too long for a socket. Set QMD_RUN_DIR to a shorter folder.")
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        bound.bind(str(path))
    finally:
        os.umask(before)
    bound.listen(256)
    return Channel(bound, str(path))


def reach(address: str, *, timeout_s: float) -> socket.socket:
    """A connection to a channel. Raises OSError."""
    far = address.removeprefix(TCP)
    if far != address:
        link = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        place: tuple[str, int] | str = ("127.0.0.1", int(far))
    else:
        link, place = socket.socket(socket.AF_UNIX), address
    link.settimeout(timeout_s)
    try:
        link.connect(place)
    except OSError:
        link.close()
        raise
    return link


def head(address: str, key: str) -> str:
    """The lines of a request that say where it goes and who may send it."""
    if not key:
        return "Host: qmd\r\n"
    return f"Host: {address.removeprefix('tcp:')}\r\nAuthorization: Bearer {key}\r\n"
