"""JSON-RPC messages in, messages out, for one connection. Knows neither the tools nor where the bytes come from.

Importing the official SDK takes 0.8 CPU seconds, for which every agent that starts `qmd mcp` would wait. On standard
input these lines speak the protocol instead, in both of its eras: the `initialize` handshake (2024-11-05 to 2025-11-25)
and the envelope in every request (2026-07-28). The first request decides. A test holds the answers against the SDK's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from qmd.serve.mcp.operations import CAPABILITIES, INTERNAL_ERROR, INVALID_PARAMS, Operations, ProtocolError
from qmd.serve.mcp.tools import Call, Cancelled

HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
ENVELOPE_VERSIONS = ("2026-07-28",)

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
UNSUPPORTED_VERSION = -32022

_META = "io.modelcontextprotocol/"
VERSION_KEY = f"{_META}protocolVersion"
CAPABILITIES_KEY = f"{_META}clientCapabilities"
SERVER_KEY = f"{_META}serverInfo"

_CACHEABLE = frozenset(
    {
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "server/discover",
    }
)
Message = dict[str, Any]


def server_info() -> dict[str, Any]:
    from qmd import __version__

    return {"name": "qmd", "title": "QMD", "version": __version__}


class Conversation:
    """What one client has said so far, and what it is answered. `send` takes notifications that belong to a request."""

    def __init__(self, operations: Operations, send: Callable[[Message], None]) -> None:
        self._operations = operations
        self._send = send
        self._enveloped: bool | None = None
        self._initialized = False
        self._running: dict[str | int, threading.Event] = {}
        self._guard = threading.Lock()

    def notice(self, message: Message) -> None:
        """A notification; only a cancellation matters here."""
        if message.get("method") == "notifications/cancelled":
            params = message.get("params")
            gone = params.get("requestId") if isinstance(params, dict) else None
            with self._guard:
                flag = self._running.get(gone) if isinstance(gone, str | int) else None
            if flag is not None:
                flag.set()

    def expect(self, message: Message) -> None:
        """Make a request known before its turn comes, so that it can be cancelled while it waits."""
        with self._guard:
            self._running[message["id"]] = threading.Event()

    def cancel_all(self) -> None:
        with self._guard:
            for flag in self._running.values():
                flag.set()

    def answer(self, message: Message) -> Message | None:
        """The response to a request; None for a cancelled one, which is not answered."""
        identity, method = message["id"], message["method"]
        params = message.get("params") or {}
        with self._guard:
            flag = self._running.setdefault(identity, threading.Event())
        try:
            result = self._result(method, params, flag)
        except Cancelled:
            return None
        except ProtocolError as error:
            return _error(identity, error.code, error.message, error.data)
        except Exception as error:  # noqa: BLE001  a bug answers its own request and leaves the next ones alive
            _report(error)
            return _error(identity, INTERNAL_ERROR, "internal error; the server's log has the details")
        finally:
            with self._guard:
                self._running.pop(identity, None)
        return None if flag.is_set() else {"jsonrpc": "2.0", "id": identity, "result": result}

    def _result(self, method: str, params: Mapping[str, Any], flag: threading.Event) -> dict[str, Any]:
        enveloped = VERSION_KEY in _meta(params)
        if self._enveloped is None:
            self._enveloped = enveloped and method != "initialize"
        if self._enveloped:
            _check_envelope(method, params)
            stamped = enveloped_result(method, self._dispatch(method, params, flag))
            return stamped | {"_meta": {**stamped.get("_meta", {}), SERVER_KEY: server_info()}}
        if enveloped and method != "initialize":
            raise ProtocolError(
                INVALID_REQUEST,
                "this connection began with the initialize handshake; requests with a 2026-07-28 envelope are not "
                "accepted on it",
            )
        if method == "initialize":
            return self._initialize(params)
        if method not in self._operations.methods:
            raise ProtocolError(METHOD_NOT_FOUND, "Method not found", method)
        if not self._initialized and method != "ping":
            raise ProtocolError(
                INVALID_PARAMS, "the connection is not initialized: send 'initialize' first", ""
            )
        return self._dispatch(method, params, flag)

    def _initialize(self, params: Mapping[str, Any]) -> dict[str, Any]:
        wanted = params.get("protocolVersion")
        if not isinstance(wanted, str):
            raise ProtocolError(INVALID_PARAMS, "'protocolVersion' is missing", "")
        self._initialized = True
        return {
            "protocolVersion": wanted if wanted in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1],
            "capabilities": dict(CAPABILITIES),
            "serverInfo": server_info(),
            "instructions": self._operations.instructions(),
        }

    def _dispatch(self, method: str, params: Mapping[str, Any], flag: threading.Event) -> dict[str, Any]:
        if method == "server/discover" and self._enveloped:
            return {
                "supportedVersions": list(ENVELOPE_VERSIONS),
                "capabilities": dict(CAPABILITIES),
                "instructions": self._operations.instructions(),
            }
        run = self._operations.methods.get(method)
        if run is None or (self._enveloped and method == "ping"):
            raise ProtocolError(METHOD_NOT_FOUND, "Method not found", method)
        if flag.is_set():
            raise Cancelled
        return run(params, Call(progress=self._progress(params), cancelled=flag.is_set))

    def _progress(self, params: Mapping[str, Any]) -> Callable[[float, float | None, str], None]:
        token = _meta(params).get("progressToken")
        if isinstance(token, bool) or not isinstance(token, str | int):
            return lambda done, total, message: None

        def tell(done: float, total: float | None, message: str) -> None:
            said: dict[str, Any] = {"progressToken": token, "progress": done}
            if total is not None:
                said["total"] = total
            if message:
                said["message"] = message
            self._send({"jsonrpc": "2.0", "method": "notifications/progress", "params": said})

        return tell


def enveloped_result(method: str, result: dict[str, Any]) -> dict[str, Any]:
    """A result with what the 2026 era wants in each: its type, and how long it holds."""
    fresh = {"ttlMs": 0, "cacheScope": "private"} if method in _CACHEABLE else {}
    return {"resultType": "complete", **fresh, **result}


def _meta(params: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = params.get("_meta")
    return meta if isinstance(meta, dict) else {}


def _check_envelope(method: str, params: Mapping[str, Any]) -> None:
    if method == "initialize":
        data = {"supported": list(ENVELOPE_VERSIONS), "requested": params.get("protocolVersion")}
        raise ProtocolError(
            UNSUPPORTED_VERSION, "this connection speaks 2026-07-28, without 'initialize'", data
        )
    meta = _meta(params)
    missing = [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in meta]
    if missing:
        raise ProtocolError(INVALID_PARAMS, f"_meta lacks {', '.join(missing)}")
    version = meta[VERSION_KEY]
    if not isinstance(version, str):
        raise ProtocolError(INVALID_PARAMS, f"{VERSION_KEY} must be a string")
    if version not in ENVELOPE_VERSIONS:
        data = {"supported": list(ENVELOPE_VERSIONS), "requested": version}
        raise ProtocolError(UNSUPPORTED_VERSION, "Unsupported protocol version", data)


def _error(identity: str | int | None, code: int, message: str, data: Any = None) -> Message:
    error: dict[str, Any] = {"code": code, "message": message}
    return {"jsonrpc": "2.0", "id": identity, "error": error | ({} if data is None else {"data": data})}


def malformed(value: Any) -> Message | None:
    """The error for what is no JSON-RPC message; None if it is one. A notification is never answered."""
    if isinstance(value, list):
        return _error(None, INVALID_REQUEST, "batches are not part of the protocol; send one message a line")
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        return _error(None, INVALID_REQUEST, "not a JSON-RPC 2.0 message")
    identity = value.get("id")
    if "id" in value and (isinstance(identity, bool) or not isinstance(identity, str | int)):
        return _error(None, INVALID_REQUEST, "'id' must be a string or a whole number")
    if not isinstance(value.get("method"), str):
        # A response to a request that was never sent: nobody waits for an answer to it.
        return (
            None
            if {"result", "error"} & value.keys()
            else _error(identity, INVALID_REQUEST, "'method' is missing")
        )
    if "id" in value and not isinstance(value.get("params"), dict | None):
        return _error(identity, INVALID_PARAMS, "'params' must be an object")
    return None


def not_json(reason: str) -> Message:
    return _error(None, -32700, f"not valid JSON: {reason}")


def _report(error: Exception) -> None:
    """A bug, on standard error: its kind and place, never the question."""
    import sys
    import traceback

    place = traceback.extract_tb(error.__traceback__)[-1]
    sys.stderr.write(f"qmd mcp: {type(error).__name__} at {place.filename}:{place.lineno}\n")
