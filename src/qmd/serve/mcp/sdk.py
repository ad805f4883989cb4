"""The same operations behind the official SDK's server, for streamable HTTP. The only module that imports the SDK."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from qmd.errors import MissingExtra, QmdError
from qmd.serve.mcp.operations import INTERNAL_ERROR, Method, Operations, ProtocolError
from qmd.serve.mcp.tools import Call, Cancelled
from qmd.serve.mcp.wire import ENVELOPE_VERSIONS, enveloped_result, server_info

try:
    import anyio
    import anyio.from_thread
    import mcp_types as types
    from mcp.server.lowlevel import Server
    from mcp.shared.exceptions import MCPError
except ImportError as error:
    raise MissingExtra("MCP over HTTP", "server") from error

CANCELLED = -32800

PARAMS: Mapping[str, type[Any]] = {
    "ping": types.RequestParams,
    "tools/list": types.PaginatedRequestParams,
    "tools/call": types.CallToolRequestParams,
    "resources/list": types.PaginatedRequestParams,
    "resources/templates/list": types.PaginatedRequestParams,
    "resources/read": types.ReadResourceRequestParams,
    "prompts/list": types.PaginatedRequestParams,
    "prompts/get": types.GetPromptRequestParams,
    "completion/complete": types.CompleteRequestParams,
}

Runner = Callable[[Method, Mapping[str, Any], Call], Awaitable[dict[str, Any]]]
"""Runs a blocking method somewhere that is not the event loop."""


class QmdServer(Server[Any]):
    """Its instructions describe the index as it is when a client connects, not as it was when the server started."""

    def __init__(self, operations: Operations, runner: Runner) -> None:
        self._operations = operations
        about = server_info()
        super().__init__(about["name"], version=about["version"], title=about["title"])
        for method, params in PARAMS.items():
            self.add_request_handler(method, params, _handler(method, operations.methods[method], runner))

    @property
    def instructions(self) -> str | None:
        return self._operations.instructions()

    @instructions.setter
    def instructions(self, value: str | None) -> None:
        """The SDK's constructor sets it; it is made anew each time."""


def _handler(method: str, run: Method, runner: Runner) -> Any:
    async def handle(ctx: Any, params: Any) -> dict[str, Any]:
        gone = False
        token = anyio.lowlevel.current_token()

        def progress(done: float, total: float | None, message: str) -> None:
            if not gone:
                anyio.from_thread.run(ctx.session.report_progress, done, total, message, token=token)

        try:
            result = await runner(
                run, dict(ctx.params or {}), Call(progress=progress, cancelled=lambda: gone)
            )
            return enveloped_result(method, result) if ctx.protocol_version in ENVELOPE_VERSIONS else result
        except ProtocolError as error:
            raise MCPError(code=error.code, message=error.message, data=error.data) from error
        except Cancelled as error:
            raise MCPError(code=CANCELLED, message="cancelled") from error
        except QmdError as error:  # the lanes of a service: full, or too late
            raise MCPError(code=INTERNAL_ERROR, message=str(error)) from error
        finally:
            gone = True

    return handle
