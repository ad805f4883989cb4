"""The index as the daemon has it: the calls of the Python door that are dear in a fresh process.

Speaks HTTP/1.0 over the daemon's own socket with what the interpreter has loaded already: a run of `qmd query` is a
tenth of a second of its own. Where the daemon does not answer, the same call is made in this process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import qmd.errors
from qmd.errors import QmdError
from qmd.serve import channel
from qmd.serve.spot import State

if TYPE_CHECKING:
    from qmd.index import Index
    from qmd.reports import CollectionStatus, DocumentText
    from qmd.search.answer import Answer
    from qmd.types import Hits

WAIT_S = 330.0
"""Longer than the daemon takes for anything: it says itself when it is too late."""


class Unreachable(Exception):
    """The daemon did not answer, or has no room: the work can be done here."""


class RemoteIndex:
    """`open_here` opens the index in this process, for when the daemon does not answer."""

    def __init__(self, state: State, open_here: Callable[[], Index]) -> None:
        self._state = state
        self._open_here = open_here
        self._here: Index | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._here is not None:
            self._here.close()

    def search(self, query: str, **options: Any) -> Hits:
        return self._hits("search", query, options)

    def vsearch(self, query: str, **options: Any) -> Hits:
        return self._hits("vsearch", query, options)

    def query(self, query: str, **options: Any) -> Hits:
        return self._hits("query", query, options)

    def get(self, ref: str, **options: Any) -> DocumentText:
        """By docid: a path could be one in the working directory, which the daemon has not."""
        from qmd.reports import DocumentText

        found: DocumentText = self._call("get", DocumentText, f"#{ref.removeprefix('#')}", **options)
        return found

    def list_collections(self) -> list[CollectionStatus]:
        from qmd.reports import CollectionStatus

        found: list[CollectionStatus] = self._call("list_collections", list[CollectionStatus])
        return found

    def ask(
        self,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        stream: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Answer:
        """`Index.ask`, with the daemon's writer."""
        from qmd.search.answer import Answer

        begun = False
        try:
            with self._answer("ask", [question], {**options, "history": history}) as body:
                for name, data in _events(body):
                    if name == "text" and stream is not None:
                        begun = True
                        stream(data)
                    elif name == "error":
                        if data["type"] in ("Busy", "Abandoned") and not begun:
                            raise Unreachable
                        raise _error(data)
                    elif name == "done":
                        answer: Answer = _typed(data, Answer)
                        return answer
            raise Unreachable
        except Unreachable:
            if begun:
                raise QmdError("the daemon ended while it answered. Ask again.") from None
            return self._local().ask(question, history=history, stream=stream, **options)

    def _hits(self, method: str, query: str, options: dict[str, Any]) -> Hits:
        from qmd.types import Hits

        hits: Hits = self._call(method, Hits, query, **options)
        return hits

    def _call(self, method: str, kind: Any, *args: Any, **kwargs: Any) -> Any:
        if self._here is None:
            try:
                with self._answer(method, args, kwargs) as body:
                    value = json.loads(body.read())["value"]
                return _typed(value, kind)
            except (Unreachable, OSError, ValueError, KeyError):
                pass
        return getattr(self._local(), method)(*args, **kwargs)

    def _local(self) -> Index:
        if self._here is None:
            self._here = self._open_here()
        return self._here

    @contextmanager
    def _answer(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[IO[bytes]]:
        """The body of a good answer. Raises Unreachable, and the error that the daemon tells."""
        content = json.dumps({"args": args, "kwargs": kwargs}).encode()
        head = (
            f"POST /call/{method} HTTP/1.0\r\n{channel.head(self._state.socket, self._state.key)}"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        try:
            link = channel.reach(self._state.socket, timeout_s=WAIT_S)
        except OSError:
            raise Unreachable from None
        try:
            try:
                link.sendall(head.encode() + content)
            except OSError:
                raise Unreachable from None
            with link.makefile("rb") as body:
                try:
                    status = int(body.readline().split(b" ", 2)[1])
                    while body.readline().strip():
                        pass
                except (OSError, ValueError, IndexError):
                    raise Unreachable from None
                if status in (413, 429, 500) or status in (502, 504):
                    raise Unreachable
                if status != 200:
                    raise _error(json.loads(body.read())["error"])
                yield body
        finally:
            link.close()


def ask_to_end(state: State) -> None:
    """Ask a daemon to finish what it has accepted, and to end. One that does not answer is not there."""

    def nothing_here() -> Index:
        raise Unreachable

    with suppress(Unreachable, OSError), RemoteIndex(state, nothing_here)._answer("end", (), {}):
        pass


def _events(body: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """(name, data) of server-sent events."""
    name = ""
    try:
        for line in body:
            if line.startswith(b"event: "):
                name = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                yield name, json.loads(line[6:])
    except (OSError, ValueError):
        raise Unreachable from None


def _typed(value: Any, kind: Any) -> Any:
    import msgspec

    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise Unreachable from None


def _error(told: dict[str, Any]) -> QmdError:
    """The error of the same name, with the same words and the same exit code."""
    kind = getattr(qmd.errors, str(told["type"]), QmdError)
    if not (isinstance(kind, type) and issubclass(kind, QmdError)):
        kind = QmdError
    error = kind.__new__(kind)
    error.args = (told["message"],)
    return error
