"""The long-running process: one for each index. How it starts, serves and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qmd import __version__
from qmd.errors import NotFound, QmdError, UsageError
from qmd.serve import channel, locks
from qmd.serve.spot import Spot, State, find_spot, is_held, is_private, read_state

if TYPE_CHECKING:
    from qmd.llm.protocols import Embedder, Generator, Reranker
    from qmd.llm.share import ModelServer
    from qmd.serve.service import Service

__all__ = ["Spot", "State", "find_spot", "run", "start", "stop"]
log = logging.getLogger("qmd.serve")
DRAIN_S = 10.0
START_S = 30.0
TAKE_S = 0.2
"""Who asks whether a daemon runs holds the lock for a moment."""
LEAST_TOKEN = 16


@contextlib.contextmanager
def claimed(spot: Spot) -> Iterator[None]:
    """Hold the lock. Raises UsageError when another process has it."""
    spot.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(spot.folder):
        raise UsageError(f"{spot.folder} can be entered by others. Run `chmod 700 {spot.folder}`.")
    with locks.open_private(spot.lock) as file:
        if not locks.take(file, within_s=TAKE_S):
            raise _taken(spot)
        _clear(spot)  # what a killed daemon left would be believed as soon as the lock is held
        try:
            yield
        finally:
            _clear(spot)


def _clear(spot: Spot) -> None:
    for path in (spot.state, spot.socket):
        path.unlink(missing_ok=True)


def _taken(spot: Spot) -> UsageError:
    running = read_state(spot)
    where = f" (process {running.pid}, {running.url})" if running else ""
    return UsageError(f"a daemon serves this index already{where}. `qmd serve stop` ends it.")


def write_state(spot: Spot, state: State) -> None:
    draft = spot.state.with_suffix(f".{os.getpid()}.new")
    with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(asdict(state), file)
    draft.replace(spot.state)


def read_token(path: Path) -> str:
    """The token of a file that nobody else can read. Raises UsageError, NotFound."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"cannot read the token file {path}: {error}") from error
    if os.name == "posix" and mode & 0o077:
        raise UsageError(f"others can read {path}. Run `chmod 600 {path}`.")
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"the token in {path} must be one word of {LEAST_TOKEN} or more ASCII characters.")
    return token


def bind(host: str, port: int, *, token: str | None) -> socket.socket:
    """A listening socket. Raises UsageError beyond loopback without a token, and where the port is taken."""
    if not is_loopback(host) and token is None:
        raise UsageError(
            f"--host {host} can be reached from other machines: that needs a token. Put one in a file that only you "
            "can read and name it with --token-file."
        )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # the protocol is named so that asyncio knows it for TCP and sends without delay (Nagle costs 40 ms an answer)
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":  # on Windows it would let another program take the port over
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
            bound.listen(512)
        except OSError:
            bound.close()
            raise
    except UnicodeError as error:
        raise UsageError(
            f"cannot serve on {host}: that is no name of a host. Choose another with --host."
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot serve on {host} port {port}: {error.strerror or error}. Choose another with --port."
        ) from error
    return bound


def is_loopback(host: str) -> bool:
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def address_of(bound: socket.socket, host: str) -> str:
    return f"http://{_bracketed(host)}:{bound.getsockname()[1]}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def hosts_for(host: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """The names a request may be addressed to. A name that is allowed without a port is so with those of the web too:
    a proxy in front has them."""
    from qmd.serve.http.guard import LOOPBACK

    own = () if host in ("0.0.0.0", "::") else (_bracketed(host),)
    bare = [name for name in allowed if not name.rpartition(":")[2].isdigit()]
    return (*LOOPBACK, *own, *allowed, *(f"{name}:{port}" for name in bare for port in (80, 443)))


def run(
    service: Service,
    spot: Spot,
    *,
    host: str = "127.0.0.1",
    port: int = 8181,
    token: str | None = None,
    allowed_hosts: Collection[str] = (),
    watch: bool = True,
    announce: Any = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted. `announce(state)` is called once it listens."""
    with (
        claimed(spot),
        contextlib.closing(bind(host, port, token=token)) as bound,
    ):
        private = channel.listen(spot.socket)
        state = State(
            pid=os.getpid(),
            url=address_of(bound, host),
            socket=private.address,
            key=private.key,
            version=__version__,
            database=str(service.database),
            config_dir=str(service.places.config_dir),
            started=time.time(),
        )
        hosts = hosts_for(host, tuple(allowed_hosts))
        with contextlib.closing(private.listening):
            asyncio.run(_serve(service, spot, state, bound, private, token, hosts, watch, announce))


async def _serve(
    service: Service,
    spot: Spot,
    state: State,
    bound: socket.socket,
    private: channel.Channel,
    token: str | None,
    hosts: Collection[str],
    watch: bool,
    announce: Any,
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, lambda: end())
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(end))

    import uvicorn

    from qmd.serve.http.app import create_app, create_calls

    class Quiet(uvicorn.Server):
        """Leaves the signals to us: two servers share them."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    def server(app: Any) -> Quiet:
        return Quiet(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                timeout_graceful_shutdown=int(DRAIN_S),
                ws="none",
            )
        )

    servers = (
        (server(create_app(service, token=token, allowed_hosts=hosts)), bound),
        (server(create_calls(service, private.key or None, end=lambda: end())), private.listening),
    )

    def end() -> None:
        service.events.publish("end")
        for one, _ in servers:
            one.should_exit = True

    watcher = None
    if watch:
        from qmd.serve.watch import Watcher

        watcher = Watcher(service)
        watcher.start()
    door = ModelDoor(service)
    door.start()
    warming = loop.run_in_executor(None, _warm, service)
    tasks = [asyncio.ensure_future(one.serve(sockets=[where])) for one, where in servers]
    try:
        while not all(one.started for one, _ in servers):
            if any(task.done() for task in tasks):
                break
            await asyncio.sleep(0.005)
        if not any(one.should_exit for one, _ in servers):
            write_state(spot, state)
            if announce is not None:
                announce(state)
        await asyncio.gather(*tasks)
    finally:
        await loop.run_in_executor(None, door.end)
        if watcher is not None:
            await loop.run_in_executor(None, watcher.stop)
        await loop.run_in_executor(None, service.close, DRAIN_S)
        with contextlib.suppress(RuntimeError):  # closed while it warmed
            await warming


class ModelDoor(threading.Thread):
    """Serves the models to other programs of this user (`LLMEngine(mode="auto")`), as `python -m qmd.llm.share` does,
    for as long as no other process does. They are the service's own: nothing is loaded twice."""

    def __init__(self, service: Service) -> None:
        super().__init__(name="qmd-models", daemon=True)
        self.service = service
        self._server: ModelServer | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        if not channel.UNIX:
            return  # the models are shared over a Unix socket alone
        from qmd.llm.share import ModelServer, socket_path

        while not self._ended.is_set():
            self._server = ModelServer(
                socket_path(),
                open_embedder=self._embedder,
                open_reranker=self._reranker,
                open_generator=self._generator,
            )
            try:
                if not self._server.serve():
                    return  # another process has the door
            except OSError as error:
                log.warning("models are not shared: %s", error.strerror or type(error).__name__)
                return

    def end(self) -> None:
        self._ended.set()
        if self._server is not None:
            self._server.stop()
        self.join(timeout=2)

    def _embedder(self, name: str) -> Embedder:
        if name == self.service.config.models.embedding:
            return cast("Embedder", self.service.whole_embedder)
        from qmd.llm import open_embedder

        return open_embedder(name)

    def _reranker(self, name: str) -> Reranker:
        if name == self.service.config.models.reranker:
            return cast("Reranker", self.service.reranker)
        from qmd.llm import open_reranker

        return open_reranker(name)

    def _generator(self, name: str) -> Generator:
        if name == self.service.config.models.expansion:
            return cast("Generator", self.service.expander)
        from qmd.llm import open_generator

        return open_generator(name)


def _warm(service: Service) -> None:
    try:
        service.warm()
    except QmdError as error:  # keyword search needs no model; `status` and hits say what is missing
        log.warning("not loaded: %s", error)


def start(arguments: Sequence[str], spot: Spot) -> State:
    """Start `qmd ARGUMENTS` in the background and wait until it listens. Raises UsageError with its last words."""
    spot.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    if is_held(spot):  # its log is not ours to empty
        raise _taken(spot)
    begun = time.time()
    with locks.open_private(spot.log) as output:
        output.truncate(0)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "qmd", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **apart,
        )
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        state = read_state(spot)
        # in a virtual environment on Windows python.exe starts another process, and that one serves
        if state is not None and (state.pid == process.pid or state.started >= begun):
            return state
        if process.poll() is not None:
            words = spot.log.read_text(encoding="utf-8", errors="replace").strip().removeprefix("qmd: ")
            raise UsageError(words or f"the daemon ended at once with code {process.returncode}.")
        time.sleep(0.02)
    process.terminate()
    raise UsageError(f"the daemon did not start within {START_S:.0f} s. Its log: {spot.log}")


def stop(spot: Spot, *, within_s: float = DRAIN_S + 5) -> State:
    """End the daemon of this spot and wait until it has. Raises NotFound when none runs."""
    state = read_state(spot)
    if state is None:
        raise NotFound("no daemon serves this index.")
    if state.key:  # no signal would let it finish what it has accepted
        from qmd.serve.cli.remote import ask_to_end

        ask_to_end(state)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not is_held(spot) and (state.key or not _is_alive(state.pid)):
            return state
        time.sleep(0.02)
    raise UsageError(f"process {state.pid} has not ended within {within_s:.0f} s. Its log: {spot.log}")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the number is somebody else's by now
        return False
    return True
