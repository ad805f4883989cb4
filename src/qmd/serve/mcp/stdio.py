"""The server on standard input and output: one JSON message a line. Ends with its parent, however that ends.

While it serves, file descriptor 1 is standard error: nothing but the protocol can reach the client, whatever a library
prints. Requests are answered in order on one thread, `ask` (seconds) on another, so that a search never waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from qmd.errors import QmdError
from qmd.serve.mcp.near import NearIndex
from qmd.serve.mcp.operations import Kept, Operations
from qmd.serve.mcp.wire import Conversation, Message, malformed, not_json

if TYPE_CHECKING:
    from qmd.serve.mcp.near import AnyIndex

MAX_LINE_BYTES = 4 * 1024 * 1024
DRAIN_S = 5.0
PARENT_POLL_S = 0.5
IDLE_S = 900.0
"""Models that no search used for so long are let go."""
REST_EVERY_S = 30.0


def serve_stdio(open_index: Callable[[], AnyIndex]) -> int:
    """Serve until the input ends or the parent is gone. Returns the exit code.

    open_index: called at the first request, and again with each while it raises NotFound.
    """
    index = Kept(open_index)
    operations = Operations(index)
    source, sink = _claim()
    writer = _Writer(sink)
    server = _Lanes(operations, writer)
    stopped = threading.Event()
    # Two threads read the database while a model loads: one must not wait 5 ms for the other at each row.
    sys.setswitchinterval(0.0005)
    threading.Thread(target=_watch_parent, args=(os.getppid(), stopped), daemon=True, name="parent").start()
    threading.Thread(target=_keep_models, args=(index, stopped), daemon=True, name="models").start()
    try:
        while line := source.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = source.readline(MAX_LINE_BYTES)
                writer.send(not_json(f"a line is longer than {MAX_LINE_BYTES} bytes"))
            elif line.strip():
                server.take(line)
            if writer.closed:
                break
    except KeyboardInterrupt:
        pass
    # A client that closes our input may still read what it asked for; one that is gone has closed our output too.
    server.drain(DRAIN_S, lambda: writer.closed)
    stopped.set()
    index.close()
    return 0


class _Lanes:
    """Two threads that answer: one for everything, one for `ask` alone."""

    def __init__(self, operations: Operations, writer: _Writer) -> None:
        self._writer = writer
        self._conversation = Conversation(operations, writer.send)
        self._lanes: dict[bool, queue.SimpleQueue[Message]] = {}
        self._open = 0
        self._idle = threading.Condition()

    def take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            self._writer.send(not_json(str(error)[:200]))
            return
        wrong = malformed(message)
        if wrong is not None:
            self._writer.send(wrong)
        elif "method" not in message:
            pass
        elif "id" not in message:
            self._conversation.notice(message)
        elif message["method"] == "ping":
            self._reply(message)
        else:
            self._conversation.expect(message)
            with self._idle:
                self._open += 1
            slow = message["method"] == "tools/call" and (message.get("params") or {}).get("name") == "ask"
            self._lane(slow).put(message)

    def _lane(self, slow: bool) -> queue.SimpleQueue[Message]:
        if slow not in self._lanes:
            lane: queue.SimpleQueue[Message] = queue.SimpleQueue()
            self._lanes[slow] = lane
            name = "slow" if slow else "calls"
            threading.Thread(target=self._work, args=(lane,), daemon=True, name=name).start()
        return self._lanes[slow]

    def _work(self, lane: queue.SimpleQueue[Message]) -> None:
        while True:
            message = lane.get()
            try:
                self._reply(message)
            finally:
                with self._idle:
                    self._open -= 1
                    self._idle.notify_all()

    def _reply(self, message: Message) -> None:
        answer = self._conversation.answer(message)
        if answer is not None:
            self._writer.send(answer)

    def drain(self, seconds: float, gone: Callable[[], bool]) -> None:
        """Let what was asked be answered, for so long at most; what is left is cancelled."""
        end = time.monotonic() + seconds
        with self._idle:
            while self._open and not gone() and time.monotonic() < end:
                self._idle.wait(0.1)
        self._conversation.cancel_all()


class _Writer:
    """One message a line, whole, from whichever thread."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._guard = threading.Lock()
        self.closed = False

    def send(self, message: Message) -> None:
        try:
            line = msgspec.json.encode(message) + b"\n"
        except UnicodeEncodeError:  # half a surrogate pair of the client's own, said back as it came
            line = json.dumps(message).encode() + b"\n"
        with self._guard:
            if self.closed:
                return
            try:
                self._sink.write(line)
                self._sink.flush()
            except (BrokenPipeError, ValueError, OSError):
                self.closed = True


def _claim() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for the protocol alone: what else reads or writes them finds nothing, or stderr."""
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        os.dup2(2, 1)
    except OSError:  # started without a standard error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    return source, sink


def _keep_models(index: Kept, stopped: threading.Event) -> None:
    """Open the models while the client still says hello, and let them go when nobody has searched for long."""
    with contextlib.suppress(QmdError):  # no index yet, or no model: the answers say it
        opened = index()
        if isinstance(opened, NearIndex):
            opened.warm()
    while not stopped.wait(REST_EVERY_S):
        kept = index.opened()
        if isinstance(kept, NearIndex):
            kept.rest(IDLE_S)


def _watch_parent(parent: int, stopped: threading.Event) -> None:
    """End the process when its parent has: the pipe alone does not tell, where another child holds its other end."""
    while not stopped.wait(PARENT_POLL_S):
        if os.getppid() != parent:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(0)
