"""`create_app(service)`: the routes, behind the guard, inside the meter."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmd.errors import QmdError
from qmd.serve.http import openai, rerank, routes_documents, routes_models, routes_search, routes_state
from qmd.serve.http.guard import LOOPBACK, Guard
from qmd.serve.http.replies import CLIENT_LEFT, failure, failure_of
from qmd.serve.service.limits import Abandoned
from qmd.serve.service.service import Service

log = logging.getLogger("qmd.serve")


class WholePath(PathConvertor):
    """The rest of a path, line breaks in names of files too."""

    regex = "(?s:.*)"


register_url_convertor("whole", WholePath())
Endpoint = Callable[[Request], Awaitable[Response]]

ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/query", routes_search.query),
    ("POST", "/search", routes_search.query),
    ("POST", "/vsearch", routes_search.vsearch),
    ("POST", "/expand", routes_search.expand),
    ("POST", "/ask", routes_search.ask),
    ("POST", "/embed", routes_models.embed),
    ("POST", "/rerank", rerank.rerank),
    ("POST", "/v1/rerank", rerank.rerank),
    ("POST", "/v2/rerank", rerank.rerank),
    ("POST", "/v1/embeddings", openai.embeddings),
    ("GET", "/v1/models", openai.models),
    ("GET", "/documents", routes_documents.documents),
    ("GET", "/documents/{collection}/{path:whole}", routes_documents.document),
    ("GET", "/tags", routes_documents.tags),
    ("GET", "/raw/{docid}", routes_documents.raw),
    ("GET", "/status", routes_state.status),
    ("GET", "/health", routes_state.health),
    ("GET", "/ready", routes_state.ready),
    ("GET", "/metrics", routes_state.metrics),
    ("GET", "/events", routes_state.events),
    ("GET", "/openapi.json", routes_state.openapi),
    ("GET", "/", routes_state.page),
)


def create_app(
    service: Service,
    *,
    token: str | None = None,
    allowed_hosts: Collection[str] = LOOPBACK,
) -> Starlette:
    """The whole HTTP side of a service, for people, programs and agents. See `Guard` for `token` and `allowed_hosts`.

    The caller closes the service.
    """
    app = _app(service, token=token, allowed_hosts=allowed_hosts, local=False)
    if importlib.util.find_spec("qmd.serve.mcp") is not None:
        from importlib import import_module

        import_module("qmd.serve.mcp.http").mount(app, service)
    return app


def create_calls(service: Service, key: str | None, *, end: Callable[[], None]) -> Starlette:
    """The same with `/call/...`, for the command line alone: over a socket that only its owner can reach, or, with a
    `key`, over a port of this machine. `end` ends the daemon."""
    from qmd.serve.http.calls import call

    app = _app(service, token=key, allowed_hosts=("127.0.0.1",), local=key is None)
    app.state.end = end
    app.router.routes.append(Route("/call/{method}", call, methods=["POST"]))
    return app


def _app(service: Service, *, token: str | None, allowed_hosts: Collection[str], local: bool) -> Starlette:
    app = Starlette(
        routes=[Route(path, end, methods=[method]) for method, path, end in ROUTES],
        exception_handlers={QmdError: _failed, HTTPException: _refused},
        middleware=[
            Middleware(Meter, service=service),
            Middleware(Guard, limits=service.limits, token=token, allowed_hosts=allowed_hosts, local=local),
        ],
    )
    app.state.service = service
    return app


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, QmdError)
    if isinstance(error, Abandoned):
        return Response(status_code=CLIENT_LEFT)
    return failure_of(error)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return failure(error.status_code, error.detail, headers=error.headers)


class Meter:
    """Counts and times every request; logs route, status and time, and never what was asked."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        status, begun = 500, False

        async def sending(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:  # noqa: BLE001  a bug must not end a connection without a word, nor log a query
            # the words of an unforeseen error may quote what was asked: only its kind and place are told
            log.error("internal error: %s at %s", type(error).__name__, _place(error))
            if not begun:
                told = f"internal error: {type(error).__name__}."
                await failure(500, told, kind="InternalError")(scope, receive, sending)
        finally:
            spent = time.perf_counter() - begin
            route = getattr(scope.get("endpoint"), "__name__", None) or "none"
            self.service.counters.add("qmd_requests_total", route=route, status=str(status))
            if route not in ("events", "ask"):
                self.service.counters.time("qmd_request_seconds", spent, route=route)
            log.info("%s %s %d %.1f ms", scope["method"], route, status, 1000 * spent)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
