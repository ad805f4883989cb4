"""How the service stands: status, health, metrics, events, its own description, and the page."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from qmd import __version__
from qmd.serve.cli.records import plain
from qmd.serve.http.replies import EventStream, event, failure, reply, while_connected
from qmd.serve.page import read_page
from qmd.serve.service.service import Service

BEAT_S = 15.0


async def status(request: Request) -> Response:
    """What `qmd status --json` prints, and how the service stands under `serve`."""
    service: Service = request.app.state.service
    found = await while_connected(request, service.status())
    return reply(plain(found) | {"serve": service_record(service)})


def service_record(service: Service) -> dict[str, object]:
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": round(time.time() - service.started, 1),
        "ready": service.ready,
        "models": {kept.role: "loaded" if kept.loaded else "not loaded" for kept in service.kept},
        "running": service.searches.running,
        "waiting": service.searches.depth,
        "watching": service.events.last.get("watch", {}),
    }


async def health(request: Request) -> Response:
    """The process answers."""
    return reply({"status": "ok", "uptime": round(time.time() - request.app.state.service.started, 1)})


async def ready(request: Request) -> Response:
    """The index opens and what a search needs is loaded."""
    service: Service = request.app.state.service
    if not service.ready:
        return failure(503, "still loading.", kind="NotReady", headers={"Retry-After": "1"})
    await service.call(lambda: service.index.store.generation)
    return reply({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Prometheus text."""
    from qmd.serve.http.metrics import write_metrics

    return Response(
        write_metrics(request.app.state.service), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


async def events(request: Request) -> Response:
    """Server-sent events: `index` (progress), `watch`, `model`, `config`; a comment every 15 s keeps it open."""
    return EventStream(_event_chunks(request.app.state.service))


async def _event_chunks(service: Service) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    something = asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(something.set)

    listener = service.events.listen(wake)
    try:
        yield b": welcome\n\n"
        while True:
            something.clear()
            for name, data in listener.take():
                yield event(name, data)
                if name == "end":
                    return
            try:
                await asyncio.wait_for(something.wait(), BEAT_S)
            except TimeoutError:
                yield b": still here\n\n"
    finally:
        service.events.leave(listener)


async def page(request: Request) -> Response:
    """The search page: one static file."""
    found = read_page()
    return Response(
        found.content,
        media_type="text/html; charset=utf-8",
        headers={"Content-Security-Policy": found.policy},
    )


async def openapi(request: Request) -> Response:
    """This interface, in OpenAPI 3.1."""
    from qmd.serve.http.openapi import describe

    return reply(describe(request.app))
