"""One process owns the models for others: length-prefixed msgpack over a Unix socket.

Run as `python -m qmd.llm.share`; `connect(start=True)` does so on demand. The process leaves when nobody
has asked
for `idle_s` seconds. Only the user who started it may connect (folder mode 0700).
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qmd.errors import ModelError, QmdError, UsageError
from qmd.llm.files import cache_root
from qmd.llm.protocols import Embedder, Reranker, Vectors
from qmd.types import ModelCard

PROTOCOL_VERSION = 1
IDLE_S = 600.0
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
START_TIMEOUT_S = 20.0


class Request(msgspec.Struct, kw_only=True):
    """`op`: hello, embed, count, score, status, stop. `role` says what `hello` is asked of."""

    version: int
    op: str
    model: str = ""
    query: str | None = None
    texts: list[str] = []
    role: str = "embedding"


class Reply(msgspec.Struct, kw_only=True):
    """`error` is empty when the request was served; vectors travel as float32 bytes with their shape."""

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


class ModelServer:
    """Loads each model once, answers one request at a time for each, unloads models that idle."""

    def __init__(
        self,
        path: Path,
        *,
        idle_s: float = IDLE_S,
        open_embedder: Callable[[str], Embedder] | None = None,
        open_reranker: Callable[[str], Reranker] | None = None,
    ) -> None:
        from qmd.llm import open as doors

        self.path = path
        self.idle_s = idle_s
        self._open_embedder = open_embedder or doors.open_embedder
        self._open_reranker = open_reranker or doors.open_reranker
        self._models: dict[tuple[str, str], Any] = {}
        self._used: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()
        self._last = time.monotonic()

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
        while time.monotonic() - self._last < self.idle_s:
            time.sleep(min(1.0, self.idle_s / 4))
            with self._lock:
                for key, used in list(self._used.items()):
                    if time.monotonic() - used > self.idle_s / 2:
                        del self._models[key], self._used[key]
        listener.shutdown()

    def stop(self) -> None:
        self._last = -1e9

    def answer(self, request: Request) -> Reply:
        self._last = time.monotonic()
        if request.version != PROTOCOL_VERSION:
            return Reply(
                error=f"the model process speaks protocol {PROTOCOL_VERSION}, not {request.version}. "
                "It ends by itself when it is idle; the next command then starts a new one."
            )
        try:
            with self._lock:
                return self._serve(request)
        except UsageError as error:
            return Reply(error=str(error), usage=True)
        except QmdError as error:
            return Reply(error=str(error))
        finally:
            self._last = max(self._last, time.monotonic()) if self._last > 0 else self._last

    def _serve(self, request: Request) -> Reply:
        if request.op == "status":
            return Reply(
                info={"models": [f"{role} {name}" for role, name in self._models], "pid": os.getpid()}
            )
        if request.op == "stop":
            self.stop()
            return Reply()
        if request.op == "score":
            scores = self._model("reranker", request.model).score(request.query or "", request.texts)
            return _pack(scores)
        if request.op == "hello" and request.role == "reranker":
            reranker = self._model("reranker", request.model)
            return Reply(info={"fingerprint": reranker.fingerprint, "name": reranker.card.name})
        embedder = self._model("embedding", request.model)
        if request.op == "hello":
            card = embedder.card
            return Reply(
                info={
                    "dim": embedder.dim,
                    "max_tokens": embedder.max_tokens,
                    "fingerprint": embedder.fingerprint,
                    "name": card.name,
                }
            )
        if request.op == "embed":
            return _pack(
                embedder.embed_documents(request.texts)
                if request.query is None
                else embedder.embed_query(request.query)
            )
        if request.op == "count":
            return Reply(info={"counts": embedder.count_tokens(request.texts)})
        return Reply(error=f"unknown request {request.op!r}", usage=True)

    def _model(self, role: str, name: str) -> Any:
        key = (role, name)
        if key not in self._models:
            self._models[key] = (self._open_embedder if role == "embedding" else self._open_reranker)(name)
        self._used[key] = time.monotonic()
        return self._models[key]


class _Listener(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    models: ModelServer


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Listener)
        with contextlib.suppress(ConnectionError, EOFError):
            while True:
                raw = _receive(self.request)
                try:
                    reply = server.models.answer(msgspec.msgpack.decode(raw, type=Request))
                except msgspec.DecodeError as error:
                    reply = Reply(error=f"malformed request: {error}", usage=True)
                _send(self.request, msgspec.msgpack.encode(reply))


class Connection:
    """A client of the model process."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._lock = threading.Lock()

    def ask(
        self,
        op: str,
        *,
        model: str = "",
        query: str | None = None,
        texts: Sequence[str] = (),
        role: str = "embedding",
    ) -> Reply:
        """Raises ModelError with the server's words, or when it went away."""
        request = Request(
            version=PROTOCOL_VERSION, op=op, model=model, query=query, texts=list(texts), role=role
        )
        try:
            with self._lock:
                _send(self._socket, msgspec.msgpack.encode(request))
                reply = msgspec.msgpack.decode(_receive(self._socket), type=Reply)
        except (OSError, EOFError) as error:
            raise ModelError(f"the model process went away ({error}). Run the command again.") from error
        if reply.error:
            raise (UsageError if reply.usage else ModelError)(reply.error)
        return reply

    def close(self) -> None:
        self._socket.close()


class SharedEmbedder:
    """An Embedder whose model lives in the model process."""

    def __init__(self, connection: Connection, model: str) -> None:
        self._connection = connection
        self._model = model
        info = connection.ask("hello", model=model).info
        self.dim: int = info["dim"]
        self.max_tokens: int = info["max_tokens"]
        self.fingerprint: str = info["fingerprint"]
        self.card = ModelCard(info["name"], "embedding", self.dim, self.max_tokens)
        self.runs_on = "the model process"

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        if isinstance(texts, str):
            raise TypeError("embed_documents takes a sequence of texts, not one string.")
        parts = [self._embed(texts[i : i + 256]) for i in range(0, len(texts), 256)]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        return _unpack(self._connection.ask("embed", model=self._model, texts=texts))

    def embed_query(self, text: str) -> Vectors:
        return _unpack(self._connection.ask("embed", model=self._model, query=text))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        counts: list[int] = self._connection.ask("count", model=self._model, texts=texts).info["counts"]
        return counts


class SharedReranker:
    """A Reranker whose model lives in the model process."""

    def __init__(self, connection: Connection, model: str) -> None:
        self._connection = connection
        self._model = model
        info = connection.ask("hello", model=model, role="reranker").info
        self.fingerprint: str = info["fingerprint"]
        self.card = ModelCard(info["name"], "reranker")
        self.runs_on = "the model process"

    def score(self, query: str, texts: Sequence[str]) -> Vectors:
        """(n,) float32 probabilities."""
        return _unpack(self._connection.ask("score", model=self._model, query=query, texts=texts))


def connect(*, start: bool) -> Connection | None:
    """Reach the model process; with `start`, start one if none answers. None when there is none."""
    path = socket_path()
    with contextlib.suppress(OSError):
        return Connection(path)
    if not start:
        return None
    process = subprocess.Popen(
        [sys.executable, "-m", "qmd.llm.share"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return Connection(path)
        time.sleep(0.05)
    process.kill()
    raise ModelError(f"the model process did not start within {START_TIMEOUT_S:.0f} s ({path}).")


def _pack(array: Vectors) -> Reply:
    return Reply(shape=list(array.shape), data=np.ascontiguousarray(array, np.float32).tobytes())


def _unpack(reply: Reply) -> Vectors:
    return np.frombuffer(reply.data, np.float32).reshape(reply.shape).copy()


def _send(link: socket.socket, data: bytes) -> None:
    link.sendall(struct.pack("<I", len(data)) + data)


def _receive(link: socket.socket) -> bytes:
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
