"""Models that live in the process of `qmd.llm.share`, as if they were here."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qmd.errors import ModelError, UsageError
from qmd.llm.catalog import CATALOG
from qmd.llm.files import local_path
from qmd.llm.hub_gguf import is_gguf_on_hub
from qmd.llm.open import is_gguf
from qmd.llm.protocols import Vectors
from qmd.llm.share import PROTOCOL_VERSION, Reply, Request, receive, send, socket_path
from qmd.llm.tokens import encodable
from qmd.types import ModelCard

START_TIMEOUT_S = 20.0


class Connection:
    """A client of the model process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = _reach(path)
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
            version=PROTOCOL_VERSION,
            op=op,
            model=model,
            query=None if query is None else encodable(query),
            texts=[encodable(text) for text in texts],
            role=role,
        )
        with self._lock:
            if self._socket.fileno() < 0:
                with _went_away():
                    self._socket = _reach(self._path)
            return next(self.stream(request))

    def stream(self, request: Request) -> Iterator[Reply]:
        """Replies as they come; for one reader."""
        data = msgspec.msgpack.encode(request)
        while True:
            with _went_away():
                reply = self._exchange(data)
            if reply.error:
                raise (UsageError if reply.usage else ModelError)(reply.error)
            yield reply
            data = b""

    def _exchange(self, data: bytes) -> Reply:
        """Send, if there is something to send, and wait for a reply. Where that is interrupted the connection ends: the
        reply would be taken for that to the next question."""
        try:
            if data:
                send(self._socket, data)
            return msgspec.msgpack.decode(receive(self._socket), type=Reply)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()


def _reach(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(str(path))
    except OSError:
        link.close()
        raise
    return link


@contextlib.contextmanager
def _went_away() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:
        raise ModelError(f"the model process went away ({error}). Run the command again.") from error


class SharedEmbedder:
    """An Embedder whose model lives in the model process."""

    def __init__(self, connection: Connection, model: str) -> None:
        self._connection = connection
        self._model = model = name_anywhere(model)
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
        self._model = model = name_anywhere(model)
        info = connection.ask("hello", model=model, role="reranker").info
        self.fingerprint: str = info["fingerprint"]
        self.card = ModelCard(info["name"], "reranker")
        self.runs_on = "the model process"

    def score(self, query: str, texts: Sequence[str]) -> Vectors:
        """(n,) float32 probabilities."""
        return _unpack(self._connection.ask("score", model=self._model, query=query, texts=texts))


class SharedGenerator:
    """A ChatGenerator whose model lives in the model process. Each text has a connection of its own: whoever stops
    reading ends it there."""

    def __init__(self, connection: Connection, model: str) -> None:
        self._model = model = name_anywhere(model)
        info = connection.ask("hello", model=model, role="generation").info
        self.fingerprint: str = info["fingerprint"]
        self.card = ModelCard(info["name"], "generation", max_tokens=info["max_tokens"])
        self.runs_on = "the model process"

    def generate(self, prompt: str, **options: Any) -> Iterator[str]:
        return self._write(Request(version=PROTOCOL_VERSION, op="generate", query=prompt, options=options))

    def generate_chat(self, messages: Sequence[tuple[str, str]], **options: Any) -> Iterator[str]:
        pairs = [(role, text) for role, text in messages]
        return self._write(Request(version=PROTOCOL_VERSION, op="generate", messages=pairs, options=options))

    def _write(self, request: Request) -> Iterator[str]:
        request.model = self._model
        connection = connect(start=True)
        assert connection is not None
        try:
            for reply in connection.stream(request):
                if "piece" not in reply.info:
                    return
                yield reply.info["piece"]
        finally:
            connection.close()


def connect(*, start: bool) -> Connection | None:
    """Reach the model process; with `start`, start one if none answers. None when there is none."""
    if not hasattr(socket, "AF_UNIX"):
        if start:
            raise ModelError("this system has no Unix sockets to share a model by. Use mode 'standalone'.")
        return None
    path = socket_path()
    try:
        return Connection(path)
    except OSError as error:
        if not start:
            return None
        if error.errno is None:  # Python asked no system: the path does not fit into a socket's address
            raise ModelError(
                f"{path} is too long for a Unix socket. Set QMD_MODEL_SOCKET to a path of at most 100 bytes, or use "
                "mode 'standalone'."
            ) from error
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "qmd.llm.share"],
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


def name_anywhere(model: str) -> str:
    """A model's name as it is understood from any folder: files and folders of this disk by their whole path."""
    if model in CATALOG:
        return model
    path = local_path(model)
    here = path.exists() or model.startswith((".", "~")) or (is_gguf(model) and not is_gguf_on_hub(model))
    return str(path.absolute()) if here else model


def _unpack(reply: Reply) -> Vectors:
    return np.frombuffer(reply.data, np.float32).reshape(reply.shape).copy()
