"""`/call/{method}`, for the command line over the daemon's own socket: methods of Index, whole values as JSON.

Strings may hold what UTF-8 cannot (file names that are no UTF-8): `json` writes those as escapes, and reads them back.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qmd.errors import NotFound, UsageError
from qmd.serve.http.replies import JSON, EventStream, while_connected
from qmd.serve.http.routes_search import answer_events
from qmd.serve.service.service import Service
from qmd.serve.wire import to_wire

METHODS = frozenset({"query", "search", "vsearch", "get", "multi_get", "ls", "list_collections"})


async def call(request: Request) -> Response:
    """The body is `{"args": [...], "kwargs": {...}}`; the answer `{"value": ...}`."""
    service: Service = request.app.state.service
    method = request.path_params["method"]
    try:
        body: dict[str, Any] = json.loads(await request.body() or b"{}")
    except ValueError as error:
        raise UsageError(f"the body is not JSON: {error}") from None
    args, kwargs = body.get("args", []), body.get("kwargs", {})
    if method == "ask":
        return EventStream(answer_events(service, args[0], kwargs))
    if method == "end":
        request.app.state.end()
        return Response(json.dumps({"value": True}), media_type=JSON)
    if method not in METHODS:
        raise NotFound(f"no call is named {method!r}.")

    def work() -> str:
        return json.dumps({"value": to_wire(getattr(service.index, method)(*args, **kwargs))})

    return Response(await while_connected(request, service.call(work)), media_type=JSON)
