"""`POST /query` and its kin: a question in, hits or an answer out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from qmd.errors import QmdError, UsageError
from qmd.index import Index
from qmd.serve.cli.records import plain
from qmd.serve.http.fields import (
    arguments,
    check_search,
    convert,
    fields_of,
    read_object,
    refuse_unknown,
)
from qmd.serve.http.notes import codes_of
from qmd.serve.http.replies import EventStream, event, reply, reply_hits, while_connected
from qmd.serve.service.service import WAYS, Service
from qmd.types import Hits

Mode = Literal["hybrid", "keyword", "vector"]
IMAGE_FIELDS: Mapping[str, Any] = {
    "image": str,
    "query": str,
    "limit": int,
    "collections": list[str],
    "path": str,
}


async def query(request: Request) -> Response:
    """Find by keyword, by meaning, or by both."""
    return await _search(request, None)


async def vsearch(request: Request) -> Response:
    """Find by meaning."""
    return await _search(request, "vector")


async def _search(request: Request, mode: str | None) -> Response:
    service: Service = request.app.state.service
    body = await read_object(request)
    if mode is None:
        mode = body.pop("mode", "hybrid")
        if not isinstance(mode, str) or mode not in WAYS:
            raise UsageError(f"mode is {mode!r}; it is one of {', '.join(WAYS)}.")
    find = _by_image(service, body) if "image" in body else _by_text(service, mode, body)
    if request.query_params.get("shape") != "hits":
        return reply_hits(await while_connected(request, service.call(find)))

    def work() -> tuple[Hits, Mapping[str, str]]:
        return find(), service.index.store.roots()

    hits, roots = await while_connected(request, service.call(work))
    return reply_hits(hits, shape="hits", roots=roots)


def _by_text(service: Service, mode: str, body: dict[str, Any]) -> Callable[[], Hits]:
    options = arguments(body, getattr(Index, WAYS[mode]))
    check_search(options, service.limits)
    query = options.pop("query")
    return lambda: service.search_now(mode, query, **options)


def _by_image(service: Service, body: dict[str, Any]) -> Callable[[], Hits]:
    """`image` (base64) and, if the picture is to be another, `query`: pictures like it."""
    from base64 import b64decode

    refuse_unknown(body.keys(), IMAGE_FIELDS)
    given = {name: convert(name, value, IMAGE_FIELDS[name]) for name, value in body.items()}
    try:
        picture = b64decode(given.pop("image"), validate=True)
    except ValueError:
        raise UsageError("field 'image' is not base64.") from None
    given.setdefault("query", "")
    check_search(given, service.limits)
    text = given.pop("query")
    return lambda: service.index.query_image(picture, text, **given)


async def expand(request: Request) -> Response:
    """Other wordings of a query, by the configured expansion model."""
    service: Service = request.app.state.service
    options = arguments(await read_object(request), service.expand_now)
    check_search(options, service.limits)
    wordings = await while_connected(
        request, service.call(service.expand_now, options["query"], lane=service.answers)
    )
    return reply({"query": options["query"], "queries": wordings})


ASK_REFUSED = ("model", "writer", "stream", "on_sources")


async def ask(request: Request) -> Response:
    """Answer from the documents: events `sources`, `text` (pieces), `done` (the whole answer), `error`."""
    service: Service = request.app.state.service
    body = await read_object(request)
    options = ask_options(body, service)
    return EventStream(answer_events(service, options.pop("question"), options))


def ask_options(body: dict[str, Any], service: Service) -> dict[str, Any]:
    """The arguments of `Index.ask` that a request may give. Raises UsageError."""
    known = {name: kind for name, kind in fields_of(Index.ask).items() if name not in ASK_REFUSED}
    refuse_unknown(body.keys(), known)
    options = {name: convert(name, value, known[name]) for name, value in body.items()}
    check_search(options, service.limits, text="question")
    for earlier, _ in options.get("history", ()):
        if len(earlier.encode("utf-8", "surrogatepass")) > service.limits.query_bytes:
            raise UsageError(
                f"field 'history': a question is longer than {service.limits.query_bytes} bytes."
            )
    options["limit"] = min(options.get("limit", 3), 9)
    options["max_new_tokens"] = max(1, min(options.get("max_new_tokens", 120), 2048))
    return options


async def answer_events(service: Service, question: str, options: dict[str, Any]) -> AsyncIterator[bytes]:
    """The events of one answer, as they come."""
    loop = asyncio.get_running_loop()
    line: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()

    def tell(name: str, data: Any) -> None:
        loop.call_soon_threadsafe(line.put_nowait, (name, data))

    async def work() -> None:
        try:
            answer = await service.ask(
                question,
                on_sources=lambda sources: tell("sources", sources),
                stream=lambda piece: tell("text", piece),
                **options,
            )
            tell("done", plain(answer) | {"notes": codes_of(answer.degraded)})
        except QmdError as error:
            tell("error", {"type": type(error).__name__, "message": str(error)})
        finally:
            loop.call_soon(line.put_nowait, None)

    task = asyncio.ensure_future(work())
    try:
        while True:
            found = await line.get()
            if found is None:
                break
            yield event(*found)
    finally:
        task.cancel()
