"""One process owns the models for others: length-prefixed msgpack over a Unix socket.

Run as `python -m qmd.llm.share`; `qmd.llm.shared.connect(start=True)` does so on demand. The process leaves when nobody
has asked for `idle_s` seconds. Only the user who started it may connect (folder mode 0700).
"""

from __future__ import annotations

import collections.abc
import contextlib
import os
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qmd.errors import QmdError, UsageError
from qmd.llm.files import cache_root
from qmd.llm.protocols import ChatGenerator, Embedder, Generator, Reranker, Vectors

PROTOCOL_VERSION = 2
IDLE_S = 600.0
MAX_MESSAGE_BYTES = 256 * 1024 * 1024


class Request(msgspec.Struct, kw_only=True):
    """`op`: hello, embed, count, score, generate, status, stop. `role` says what `hello` is asked of; `messages` are
    (role, text) of a conversation to go on with, `options` those of `Generator.generate`."""

    version: int
    op: str
    model: str = ""
    query: str | None = None
    texts: list[str] = []
    role: str = "embedding"
    messages: list[tuple[str, str]] = []
    options: dict[str, Any] = {}


class Reply(msgspec.Struct, kw_only=True):
    """`error` is empty when the request was served; vectors travel as float32 bytes with their shape. What is generated
    travels as replies with `piece`, and one with `end` after the last."""

    version: int = PROTOCOL_VERSION
    error: str = ""
    usage: bool = False
    shape: list[int] = []
    data: bytes = b""
    info: dict[str, Any] = {}


def socket_path() -> Path:
    """A short path (Unix sockets allow about 100 bytes) in a folder only this user may enter."""
    chosen = os.environ.get("QMD_MODEL_SOCKET")
    if chosen:
        return Path(chosen)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return (Path(runtime) / "qmd" if runtime else cache_root() / "run") / "models.sock"


class _Held:
    """A model that is loaded when it is first used; one request at a time."""

    def __init__(self, load: Callable[[str], Any], name: str) -> None:
        self._load = load
        self._name = name
        self._model: Any = None
        self._turn = threading.Lock()
        self.used = time.monotonic()

    @contextlib.contextmanager
    def use(self) -> Iterator[Any]:
        with self._turn:
            if self._model is None:
                self._model = self._load(self._name)
            try:
                yield self._model
            finally:
                self.used = time.monotonic()

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def rests_since(self, seconds: float) -> bool:
        return not self._turn.locked() and time.monotonic() - self.used > seconds


class ModelServer:
    """Loads each model once, answers one request at a time for each, unloads models that idle."""

    def __init__(
        self,
        path: Path,
        *,
        idle_s: float = IDLE_S,
        open_embedder: Callable[[str], Embedder] | None = None,
        open_reranker: Callable[[str], Reranker] | None = None,
        open_generator: Callable[[str], Generator] | None = None,
    ) -> None:
        from qmd.llm import open as doors

        self.path = path
        self.idle_s = idle_s
        self._doors: dict[str, Callable[[str], Any]] = {
            "embedding": open_embedder or doors.open_embedder,
            "reranker": open_reranker or doors.open_reranker,
            "generation": open_generator or doors.open_generator,
        }
        self._held: dict[tuple[str, str], _Held] = {}
        self._guard = threading.Lock()
        self._last = time.monotonic()
        self._asked = 0

    def serve(self) -> bool:
        """Serve until idle or stopped. Returns False at once when another process already serves this
        socket."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        import fcntl

        with self.path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.path.unlink(missing_ok=True)
            with _Listener(str(self.path), _Handler) as listener:
                listener.models = self
                os.chmod(self.path, 0o600)
                watcher = threading.Thread(target=self._watch, args=(listener,), daemon=True)
                watcher.start()
                listener.serve_forever(poll_interval=0.2)
            self.path.unlink(missing_ok=True)
        return True

    def _watch(self, listener: socketserver.BaseServer) -> None:
        while self._last > 0 and (self._asked or time.monotonic() - self._last < self.idle_s):
            time.sleep(min(1.0, self.idle_s / 4))
            with self._guard:
                for key, held in list(self._held.items()):
                    if held.rests_since(self.idle_s / 2):
                        del self._held[key]
        listener.shutdown()

    def stop(self) -> None:
        self._last = -1e9

    def answers(self, request: Request) -> collections.abc.Generator[Reply]:
        """One reply; for what is generated, one a piece and one for the end."""
        with self._guard:
            self._asked += 1
        try:
            yield from self._replies(request)
        finally:
            with self._guard:
                self._asked -= 1
                if self._last > 0:  # it was not stopped
                    self._last = time.monotonic()

    def _replies(self, request: Request) -> Iterator[Reply]:
        if request.version != PROTOCOL_VERSION:
            yield Reply(
                error=f"the model process speaks protocol {PROTOCOL_VERSION}, not {request.version}. "
                "It ends by itself when it is idle; the next command then starts a new one."
            )
            return
        try:
            yield from self._serve(request)
        except UsageError as error:
            yield Reply(error=str(error), usage=True)
        except QmdError as error:
            yield Reply(error=str(error))

    def _serve(self, request: Request) -> Iterator[Reply]:
        if request.op == "status":
            with self._guard:
                names = [f"{role} {name}" for (role, name), held in self._held.items() if held.loaded]
            yield Reply(info={"models": names, "pid": os.getpid()})
        elif request.op == "stop":
            self.stop()
            yield Reply()
        elif request.op == "hello":
            with self._use(request.role, request.model) as model:
                yield Reply(info=_describe(model))
        elif request.op == "score":
            with self._use("reranker", request.model) as reranker:
                scores = reranker.score(request.query or "", request.texts)
            yield _pack(scores)
        elif request.op == "generate":
            yield from self._generate(request)
        elif request.op in ("embed", "count"):
            with self._use("embedding", request.model) as embedder:
                if request.op == "count":
                    reply = Reply(info={"counts": embedder.count_tokens(request.texts)})
                elif request.query is None:
                    reply = _pack(embedder.embed_documents(request.texts))
                else:
                    reply = _pack(embedder.embed_query(request.query))
            yield reply
        else:
            yield Reply(error=f"unknown request {request.op!r}", usage=True)

    def _generate(self, request: Request) -> Iterator[Reply]:
        with self._use("generation", request.model) as generator:
            if request.messages:
                if not isinstance(generator, ChatGenerator):
                    raise UsageError(f"{request.model} continues prompts, no conversations.")
                pieces = generator.generate_chat(request.messages, **request.options)
            else:
                pieces = generator.generate(request.query or "", **request.options)
            for piece in pieces:
                yield Reply(info={"piece": piece})
            yield Reply(info={"end": True})

    def _use(self, role: str, name: str) -> contextlib.AbstractContextManager[Any]:
        if role not in self._doors:
            raise UsageError(f"no model is for {role!r}; there are {', '.join(self._doors)}.")
        with self._guard:
            held = self._held.setdefault((role, name), _Held(self._doors[role], name))
            held.used = time.monotonic()
        return held.use()


def _describe(model: Any) -> dict[str, Any]:
    facts = {"fingerprint": model.fingerprint, "name": model.card.name, "max_tokens": model.card.max_tokens}
    if isinstance(model, Embedder):
        facts |= {"dim": model.dim, "max_tokens": model.max_tokens}
    return facts


class _Listener(getattr(socketserver, "ThreadingUnixStreamServer", socketserver.BaseServer)):  # type: ignore[misc]
    """Not to be had on Windows, where `shared.connect` says so."""

    daemon_threads = True
    models: ModelServer


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Listener)
        with contextlib.suppress(ConnectionError, EOFError):
            while True:
                raw = receive(self.request)
                try:
                    request = msgspec.msgpack.decode(raw, type=Request)
                except msgspec.DecodeError as error:
                    _answer(self.request, Reply(error=f"malformed request: {error}", usage=True))
                    continue
                with contextlib.closing(server.models.answers(request)) as replies:
                    for reply in replies:
                        _answer(self.request, reply)


def _pack(array: Vectors) -> Reply:
    return Reply(shape=list(array.shape), data=np.ascontiguousarray(array, np.float32).tobytes())


def _answer(link: socket.socket, reply: Reply) -> None:
    send(link, msgspec.msgpack.encode(reply))


def send(link: socket.socket, data: bytes) -> None:
    link.sendall(struct.pack("<I", len(data)) + data)


def receive(link: socket.socket) -> bytes:
    (size,) = struct.unpack("<I", _exactly(link, 4))
    if size > MAX_MESSAGE_BYTES:
        raise EOFError("message too large")
    return _exactly(link, size)


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = link.recv(min(1 << 20, size - len(data)))
        if not part:
            raise EOFError("connection closed")
        data += part
    return bytes(data)


if __name__ == "__main__":
    ModelServer(socket_path(), idle_s=float(os.environ.get("QMD_MODEL_IDLE_S", IDLE_S))).serve()
