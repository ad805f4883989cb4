"""MCP over streamable HTTP: `/mcp` on the daemon's own app, so behind its guard. The first request loads the SDK.

Without sessions: a request stands alone, so that clients go on after the daemon was started anew. Work runs in the
service's lanes, with its limits and shared models.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from qmd.serve.mcp.operations import Method, Operations
from qmd.serve.mcp.tools import Call

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from qmd.serve.service.service import Service

PATH = "/mcp"


def mount(app: Starlette, service: Service) -> None:
    """Answer MCP under `/mcp` on `app`, from its `service`."""
    endpoint = Endpoint(service)
    # no GET: its stream would carry nothing, and be waited for at the end
    app.router.routes.append(Route(PATH, endpoint, methods=["POST"]))
    outer = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(inner: Any) -> AsyncIterator[Any]:
        async with outer(inner) as state:
            try:
                yield state
            finally:
                await endpoint.close()

    app.router.lifespan_context = lifespan


class Endpoint:
    """The ASGI app behind the route. `__name__` is what the meter calls it."""

    __name__ = "mcp"

    def __init__(self, service: Service) -> None:
        self._service = service
        self._starting: asyncio.Task[Any] | None = None
        self._ended: asyncio.Event | None = None
        self._owner: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        manager = await asyncio.shield(self._starting)
        await manager.handle_request(scope, receive, send)

    async def _start(self) -> Any:
        """The SDK's session manager, run by a task of its own: it must be left by the task that entered it."""
        manager = await asyncio.to_thread(_make_manager, self._service)
        running: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended = self._ended = asyncio.Event()

        async def own() -> None:
            async with manager.run():
                running.set_result(None)
                await ended.wait()

        self._owner = asyncio.ensure_future(own())
        await running
        return manager

    async def close(self) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
        if self._ended is not None and self._owner is not None:
            self._ended.set()
            await asyncio.wait([self._owner], timeout=5)


def _make_manager(service: Service) -> Any:
    import logging

    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp.server.transport_security import TransportSecuritySettings

    from qmd.serve.mcp.sdk import QmdServer

    logging.getLogger("mcp").setLevel(logging.WARNING)
    operations = Operations(lambda: service.index, ask=service.ask_now, status=service.status_now)

    async def run(method: Method, params: Mapping[str, Any], call: Call) -> dict[str, Any]:
        asking = params.get("name") == "ask"
        done: dict[str, Any] = await service.call(
            method,
            params,
            call,
            lane=service.answers if asking else service.searches,
            deadline_s=service.limits.ask_deadline_s if asking else None,
        )
        return done

    return StreamableHTTPSessionManager(
        app=QmdServer(operations, run),
        stateless=True,
        # The app's own guard has looked at Host and Origin before a request comes here.
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        max_request_body_size=service.limits.body_bytes,
    )
