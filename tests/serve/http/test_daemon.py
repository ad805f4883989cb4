"""The daemon as a process: it starts once, is found and trusted, drains, dies hard without loss, and is taken over."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("watchfiles")

from qmd.config import Places
from qmd.serve import daemon
from qmd.serve.spot import Spot, State, find_spot, is_held, is_private, read_state

REPO = Path(__file__).resolve().parents[3]
NOTES = {
    "soup.md": "# Soup\n\nBoil water, add miso. Serve hot.\n",
    "cats.md": "# Cats\n\nCats fear water. Memory of a cat is short.\n",
    "files.md": "# Files\n\nFile permissions are changed with chmod.\n",
}


class Home:
    """A home folder with notes and an index of them, and `qmd` run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder / "notes"
        self.places = Places(folder / "config", folder / "data")
        self.run_dir = Path("/tmp") / f"qmd-test-{os.getpid()}-{abs(hash(folder)) % 10**8}"
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("QMD_", "XDG_"))},
            "QMD_CONFIG_DIR": str(self.places.config_dir),
            "QMD_DATA_DIR": str(self.places.data_dir),
            "QMD_RUN_DIR": str(self.run_dir),
            "QMD_MODEL_SOCKET": str(self.run_dir / "models.sock"),
            "PYTHONPATH": str(REPO / "src"),
            "HF_HUB_OFFLINE": "1",
        }

    def qmd(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qmd", *arguments],
            env={**self.env, **env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self, *arguments: str) -> State:
        done = self.qmd("serve", "--daemon", "--port", "0", *arguments)
        assert done.returncode == 0, done.stderr
        state = self.state()
        assert state is not None
        return state

    def state(self) -> State | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("QMD_RUN_DIR", str(self.run_dir))
            return read_state(find_spot(self.places))

    def spot(self) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("QMD_RUN_DIR", str(self.run_dir))
            return find_spot(self.places)

    def end(self) -> None:
        state = self.state()
        if state is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGKILL)
        shutil.rmtree(self.run_dir, ignore_errors=True)


def post(url: str, body: dict[str, Any]) -> Any:
    asked = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)


def until(condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("home"))
    home.notes.mkdir()
    for name, text in NOTES.items():
        (home.notes / name).write_text(text)
    assert home.qmd("add", str(home.notes)).returncode == 0
    yield home
    home.end()


@pytest.fixture
def running(home: Home) -> State:
    return home.state() or home.start()


SAME = [
    ("query", "water"),
    ("query", "water", "--json"),
    ("search", "miso", "--csv", "--full"),
    ("vsearch", "hot soup", "--xml", "-n", "2"),
    ("query", "water", "--md", "--explain"),
    ("query", "water", "-C", "1", "--line-numbers"),
    ("query", "water", "--full-path", "--files"),
    ("search", "nothinglikethis"),
    ("query", "water", "-c", "nope"),
    ("query", "water", "--after", "20x"),
    ("search", "path:c* water", "--type", "markdown", "--jsonl"),
]


def test_the_command_line_says_the_same_with_and_without_it(home: Home, running: State) -> None:
    before = calls(running)
    for arguments in SAME:
        there, here = home.qmd(*arguments), home.qmd(*arguments, QMD_NO_DAEMON="1")
        # the stages of a search take the same names and not the same time
        told, alone = (re.sub(r"[\d.]+ ms", "ms", one.stderr) for one in (there, here))
        assert (there.returncode, there.stdout, told) == (here.returncode, here.stdout, alone), arguments
    assert calls(running) - before >= len(SAME)


def calls(state: State) -> float:
    with urllib.request.urlopen(f"{state.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith('qmd_requests_total{route="call"')
    )


def test_http_gives_what_the_command_line_prints(home: Home, running: State) -> None:
    told = json.loads(home.qmd("query", "water", "--json", QMD_NO_DAEMON="1").stdout)
    assert post(f"{running.url}/query", {"query": "water"}) == told


def test_a_query_through_it_costs_little(home: Home, running: State) -> None:
    def cost() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        home.qmd("query", "water", "--json")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cost() for _ in range(5)) < 0.25


def test_the_command_line_loads_no_engine(home: Home, running: State) -> None:
    code = (
        "import sys; from qmd.serve.cli.app import run; run(['query', 'water', '--json']); "
        "print(sorted({'numpy', 'onnxruntime', 'sqlite3', 'yaml', 'asyncio', 'http', 'starlette'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=home.env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_second_one_is_refused(home: Home, running: State) -> None:
    done = home.qmd("serve", "--daemon", "--port", "0")
    assert done.returncode == 2
    assert f"process {running.pid}" in done.stderr
    assert home.state() == running
    assert "Serving at" in home.spot().log.read_text()  # the log of the one that runs


def test_its_files_are_private(home: Home, running: State) -> None:
    assert is_private(home.run_dir)
    for path in home.run_dir.iterdir():
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o077, (path, oct(mode))
    assert stat.S_ISSOCK(Path(running.socket).stat().st_mode)


def test_its_own_socket_is_not_for_pages_and_the_other_has_no_calls(running: State) -> None:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(running.socket)
        link.sendall(b"GET /health HTTP/1.0\r\nHost: qmd\r\nOrigin: http://evil.example\r\n\r\n")
        assert b" 403 " in link.recv(1000)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        post(f"{running.url}/call/query", {"args": ["water"]})


def test_its_models_serve_other_programs(home: Home, running: State) -> None:
    code = (
        "from qmd.llm.engine import LLMEngine; e = LLMEngine(mode='auto'); "
        "print(type(e.embedder).__name__, e.embed_query('water').shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=home.env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "SharedEmbedder (384,)"
    with urllib.request.urlopen(f"{running.url}/metrics") as answer:
        assert "\nqmd_model_loads 1\n" in answer.read().decode()


def test_changes_are_found_within_two_seconds_of_quiet(home: Home, running: State) -> None:
    until(lambda: json.load(urllib.request.urlopen(f"{running.url}/status"))["serve"]["watching"])
    (home.notes / "plum.md").write_text("# Plum\n\nPlums ripen in August.\n")
    written = time.monotonic()
    until(lambda: post(f"{running.url}/query", {"query": "plums", "mode": "keyword"}))
    found_s = time.monotonic() - written
    (home.notes / "plum.md").unlink()
    until(lambda: not post(f"{running.url}/query", {"query": "plums", "mode": "keyword"}))
    assert found_s < 2.0


def test_a_folder_added_by_the_command_line_is_watched_too(
    home: Home, running: State, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "fig.md").write_text("# Fig\n\nFigs.\n")
    assert home.qmd("add", str(tmp_path / "more"), "--no-embed").returncode == 0
    until(
        lambda: (
            json.load(urllib.request.urlopen(f"{running.url}/status"))["serve"]["watching"].get("folders")
            == 2
        )
    )
    (tmp_path / "more" / "kiwi.md").write_text("# Kiwi\n\nKiwis.\n")
    until(lambda: post(f"{running.url}/query", {"query": "kiwis", "mode": "keyword"}))
    assert home.qmd("collection", "remove", "more").returncode == 0


def test_status_and_stop(home: Home, running: State) -> None:
    told = home.qmd("serve", "status", "--json")
    assert json.loads(told.stdout)["pid"] == running.pid
    done = home.qmd("serve", "stop")
    assert done.returncode == 0
    assert home.state() is None
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)
    assert not Path(running.socket).exists()
    assert home.qmd("serve", "status").returncode == 3
    assert home.qmd("serve", "stop").returncode == 3
    assert home.qmd("query", "water").returncode == 0


def test_killed_hard_nothing_is_lost_and_the_next_one_takes_over(home: Home) -> None:
    first = home.state() or home.start()
    (home.notes / "late.md").write_text("# Late\n\nWritten just before the end: quince.\n")
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not is_held(home.spot()))
    assert Path(first.socket).exists()  # stale, and known to be
    assert home.state() is None
    assert home.qmd("query", "water", "--json").returncode == 0  # alone
    second = home.start()
    assert second.pid != first.pid
    until(lambda: post(f"{second.url}/query", {"query": "quince", "mode": "keyword"}))
    status = json.load(urllib.request.urlopen(f"{second.url}/status"))
    assert status["documents"] == 4
    assert json.loads(home.qmd("check", "--json").stdout)
    (home.notes / "late.md").unlink()


def test_a_stale_state_never_kills_a_stranger(home: Home) -> None:
    state = home.state()
    if state is not None:
        home.qmd("serve", "stop")
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        spot = home.spot()
        daemon.write_state(
            spot, State(stranger.pid, "http://127.0.0.1:1", str(spot.socket), "0", "x", "y", 0.0)
        )
        spot.lock.touch(0o600)
        done = home.qmd("serve", "stop")
        assert done.returncode == 3
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_while_one_starts_nothing_is_believed_of_the_one_before(tmp_path: Path) -> None:
    spot = Spot(tmp_path / "run", "serve-one")
    spot.folder.mkdir(0o700)
    daemon.write_state(spot, State(1, "http://127.0.0.1:1", str(spot.socket), "0", "x", "y", 0.0))
    spot.socket.touch()
    with daemon.claimed(spot):
        assert is_held(spot)
        assert read_state(spot) is None
        assert not spot.socket.exists()


def test_no_code_of_the_working_directory_runs(home: Home, tmp_path: Path) -> None:
    if home.state() is not None:
        home.qmd("serve", "stop")
    (tmp_path / "watchfiles.py").write_text("open('ran', 'w').close()\n")
    command = [sys.executable, "-P", "-m", "qmd", "serve", "--daemon", "--port", "0"]
    done = subprocess.run(command, env=home.env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert home.qmd("serve", "stop").returncode == 0
    assert not (tmp_path / "ran").exists()


def test_a_program_that_starts_python_may_stand_before_it(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As python.exe of a virtual environment does on Windows."""
    if home.state() is not None:
        home.qmd("serve", "stop")
    launcher = tmp_path / "python"
    launcher.write_text(f'#!/bin/sh\n{sys.executable} "$@" & wait $!\n')
    launcher.chmod(0o755)
    for name, value in home.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "executable", str(launcher))
    monkeypatch.setattr(daemon, "START_S", 20.0)
    state = daemon.start(["serve", "--port", "0"], home.spot())
    assert daemon.stop(home.spot()) == state


CTRL_C = {
    "before it listens": """
from qmd.serve.http import app
real = app.create_app
def create_app(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments, **options)
app.create_app = create_app
""",
    "while it warms": """
from qmd.serve.service import Service
closed, warm, close = threading.Event(), Service.warm, Service.close
def interrupted(self):
    os.kill(os.getpid(), signal.SIGINT)
    closed.wait(60)
    warm(self)
Service.warm = interrupted
Service.close = lambda self, drain: (close(self, drain), closed.set())
""",
}


@pytest.mark.parametrize("moment", CTRL_C)
def test_ctrl_c_while_it_starts_ends_it(home: Home, moment: str) -> None:
    if home.state() is not None:
        home.qmd("serve", "stop")
    code = f"import os, signal, threading\n{CTRL_C[moment]}\nfrom qmd.serve.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0"]
    done = subprocess.run(command, env=home.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "internal error"))
    assert not is_held(home.spot())


def test_a_folder_that_others_may_enter_is_not_trusted(home: Home) -> None:
    state = home.state() or home.start()
    home.run_dir.chmod(0o755)
    try:
        assert home.state() is None
        assert home.qmd("query", "water").returncode == 0
    finally:
        home.run_dir.chmod(0o700)
    assert home.state() == state


def test_sigterm_finishes_what_was_accepted(home: Home) -> None:
    state = home.state() or home.start()
    answers: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(post(f"{state.url}/query", {"query": f"water {n}"}))
        )
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    until(lambda: answers)
    os.kill(state.pid, signal.SIGTERM)
    for thread in threads:
        thread.join(20)
    until(lambda: not is_held(home.spot()))
    # those that had connected were answered; a connection after the end is refused, never half an answer
    assert all(isinstance(a, list) and a for a in answers)


def test_beyond_this_machine_it_does_not_start_without_a_token(home: Home) -> None:
    done = home.qmd("serve", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "needs a token" in done.stderr


def test_a_taken_port_is_told(home: Home) -> None:
    state = home.state()
    if state is not None:
        home.qmd("serve", "stop")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = home.qmd("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "Choose another with --port" in done.stderr


def test_without_the_extra_the_command_says_what_to_install(home: Home) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda n, p=None: None if n == 'uvicorn' else real(n, p)\n"
        "from qmd.serve.cli.app import run; sys.exit(run(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=home.env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'qmd-python[server]'" in done.stderr
