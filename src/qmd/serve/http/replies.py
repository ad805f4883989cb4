"""Answers: JSON as the command line writes it, failures in one shape, streams of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qmd.errors import (
    BadPicture,
    MissingExtra,
    ModelError,
    ModelMismatch,
    NotFound,
    QmdError,
    StoreError,
    UsageError,
)
from qmd.serve.cli.format_hits import View, format_hits
from qmd.serve.cli.records import plain, to_json
from qmd.serve.http.notes import codes_of
from qmd.serve.service.limits import Abandoned, Busy, TooLate
from qmd.serve.vault import linker
from qmd.types import Hits

T = TypeVar("T")
JSON = "application/json"
CLIENT_LEFT = 499
"""Nobody reads it; it is for the counters."""

_STATUS: tuple[tuple[type[QmdError], int], ...] = (
    (Busy, 429),
    (TooLate, 504),
    (Abandoned, CLIENT_LEFT),
    (NotFound, 404),
    (ModelMismatch, 409),
    (MissingExtra, 501),
    (ModelError, 503),
    (StoreError, 503),
    (UsageError, 400),
    (BadPicture, 400),
)


def reply(value: Any, *, headers: Mapping[str, str] | None = None, indent: bool = True) -> Response:
    """JSON, indented as `--json` is; compact for machines that ask for vectors."""
    content = to_json(value).encode() if indent else msgspec.json.encode(value)
    return Response(content, media_type=JSON, headers=headers)


def reply_hits(hits: Hits, *, shape: str = "records", roots: Mapping[str, str] | None = None) -> Response:
    """records: what `qmd query --json` prints, byte for byte. hits: all that there is to know, as one object, with
    `notes` (codes of what is `degraded`) and, for hits in a vault below one of `roots`, the `link` that opens them.
    """
    headers = {}
    if hits.degraded:
        headers["QMD-Degraded"] = ", ".join(quote(note, safe=" :;.()'`/") for note in hits.degraded)
    if hits.timings_ms:
        headers["Server-Timing"] = ", ".join(f"{name};dur={ms:g}" for name, ms in hits.timings_ms.items())
    if shape == "hits":
        link = linker(roots or {}, {hit.collection for hit in hits})
        links = [link(hit.collection, hit.path) for hit in hits]
        told: dict[str, Any] = plain(hits)
        for record, found in zip(told["hits"], links, strict=True):
            record |= {} if found is None else {"link": found}
        return reply(told | {"notes": codes_of(hits.degraded)}, headers=headers)
    return Response(format_hits(hits, "json", View()).encode(), media_type=JSON, headers=headers)


def failure(
    status: int, message: str, *, kind: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """`{"error": {"type": ..., "message": ...}}`, as the command line tells it, and as OpenAI's clients read it."""
    names = {400: "UsageError", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 413: "TooLarge"}
    told = {"error": {"type": kind or names.get(status, "Refused"), "message": message}}
    return Response(json.dumps(told) + "\n", status, media_type=JSON, headers=dict(headers or {}))


def failure_of(error: QmdError) -> Response:
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Busy) else None
    return failure(status, str(error), kind=type(error).__name__, headers=headers)


async def left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work` (a coroutine), given up when the client leaves: Abandoned."""
    task: asyncio.Task[T] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Abandoned
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


def event(name: str, data: Any) -> bytes:
    """One server-sent event; JSON holds no bare newline, so one data line is enough."""
    return f"event: {name}\ndata: {json.dumps(plain(data), ensure_ascii=False)}\n\n".encode(
        "utf-8", "replace"
    )


class EventStream(Response):
    """Server-sent events from an async iterator of chunks, which is closed when the client leaves."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        super().__init__(media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)

        async def pour() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        pouring, gone = asyncio.ensure_future(pour()), asyncio.ensure_future(left(request))
        try:
            await asyncio.wait({pouring, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            pouring.cancel()
            await asyncio.wait({pouring})  # an iterator that still runs cannot be closed
            close: Any = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()
        if not pouring.cancelled():
            pouring.result()
