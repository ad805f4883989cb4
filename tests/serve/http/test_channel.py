"""Where there are no Unix sockets and no flock (Windows): a port with a key, and locked bytes. Tried by the seams."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("watchfiles")

from qmd.config import Places
from qmd.serve import channel, locks
from qmd.serve.spot import find_spot, read_state

REPO = Path(__file__).resolve().parents[3]
WITHOUT_UNIX = (
    "import sys; from qmd.serve import channel; channel.UNIX = False\n"
    "import os; os.kill = lambda *a: (_ for _ in ()).throw(AssertionError('no signals there'))\n"
    "from qmd.serve.cli import main; sys.exit(main())"
)


class Bytes:
    """What msvcrt does: a byte that one open file has locked, others cannot lock."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        self.held: dict[tuple[int, int, int], int] = {}

    def locking(self, fd: int, mode: int, count: int) -> None:
        found = os.fstat(fd)
        place = (found.st_ino, os.lseek(fd, 0, os.SEEK_CUR), count)
        if mode == self.LK_UNLCK:
            assert self.held.pop(place) == fd
        elif place in self.held:
            raise PermissionError(13, "Permission denied")
        else:
            self.held[place] = fd


@pytest.mark.parametrize("system", ["posix", "windows"])
def test_a_lock_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    if system == "windows":
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setattr(locks, "msvcrt", Bytes())
    path = tmp_path / "one.lock"
    assert not locks.is_held(path)
    with locks.open_private(path) as file:
        assert not locks.is_held(path)
        assert locks.take(file)
        assert locks.is_held(path)
        with locks.open_private(path) as other:
            assert not locks.take(other)
    assert path.stat().st_mode & 0o777 == 0o600
    if system == "posix":
        assert not locks.is_held(path)


def test_a_lock_that_somebody_merely_asks_about_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "one.lock"
    with locks.open_private(path) as asking, locks.open_private(path) as file:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not locks.take(file)
        gives_back = SimpleNamespace(
            monotonic=lambda: 0.0, sleep=lambda _: fcntl.flock(asking, fcntl.LOCK_UN)
        )
        monkeypatch.setattr(locks, "time", gives_back)
        assert locks.take(file, within_s=1)


@pytest.fixture
def home(tmp_path: Path) -> SimpleNamespace:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "soup.md").write_text("# Soup\n\nBoil water, add miso.\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("QMD_", "XDG_"))} | {
        "QMD_CONFIG_DIR": str(tmp_path / "config"),
        "QMD_DATA_DIR": str(tmp_path / "data"),
        "QMD_RUN_DIR": str(tmp_path / "run"),
        "PYTHONPATH": str(REPO / "src"),
    }

    def qmd(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_UNIX, *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    return SimpleNamespace(env=env, qmd=qmd, places=Places(tmp_path / "config", tmp_path / "data"))


def send(port: int, *lines: str) -> bytes:
    body = json.dumps({"args": ["water"]})
    head = "\r\n".join(
        [
            "POST /call/search HTTP/1.0",
            *lines,
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        link.sendall(f"{head}\r\n\r\n{body}".encode())
        return link.makefile("rb").readline()


def test_a_daemon_without_unix_sockets(home: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home.qmd("add", "notes", "--no-embed").returncode == 0
    alone = home.qmd("search", "miso", "--json")
    serving = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_UNIX, "serve", "--port", "0", "--no-watch"],
        env=home.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stderr is not None
        while "Serving at" not in (line := serving.stderr.readline()):
            assert line, "it ended"
        monkeypatch.setenv("QMD_RUN_DIR", home.env["QMD_RUN_DIR"])
        state = read_state(find_spot(home.places))
        assert state is not None
        assert state.socket.startswith(channel.TCP)
        assert len(state.key) > 40
        assert find_spot(home.places).state.stat().st_mode & 0o777 == 0o600
        through = home.qmd("search", "miso", "--json")
        assert through.stdout == alone.stdout
        port = int(state.socket.rpartition(":")[2])
        right = f"Authorization: Bearer {state.key}"
        assert b" 200 " in send(port, f"Host: 127.0.0.1:{port}", right)
        assert b" 401 " in send(port, f"Host: 127.0.0.1:{port}")
        assert b" 401 " in send(port, f"Host: 127.0.0.1:{port}", "Authorization: Bearer guessed")
        assert b" 421 " in send(port, f"Host: evil.example:{port}", right)
        assert b" 403 " in send(port, f"Host: 127.0.0.1:{port}", right, "Origin: http://evil.example")
        stopped = home.qmd("serve", "stop")
        assert stopped.returncode == 0, stopped.stderr
        assert serving.wait(timeout=30) == 0
        assert read_state(find_spot(home.places)) is None
    finally:
        serving.kill()
        serving.wait()
        assert serving.stderr is not None
        serving.stderr.close()


def test_a_unix_socket_is_for_its_owner(tmp_path: Path) -> None:
    made: Any = channel.listen(tmp_path / "s")
    with made.listening:
        assert made.key == ""
        assert (tmp_path / "s").stat().st_mode & 0o077 == 0
        channel.reach(made.address, timeout_s=5).close()
    with pytest.raises(OSError, match=r"refused|No such"):
        channel.reach(made.address, timeout_s=5)
