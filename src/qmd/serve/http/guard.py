"""What every request must pass, on every route: where it was addressed, who sent it, how large it is.

Pure ASGI, so that it stands in front of mounted apps and streams too. A page of another site can make a browser
send requests here: the Host check stops DNS rebinding, the Origin and Sec-Fetch-Site checks stop the rest.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmd.serve.http.replies import failure
from qmd.serve.service.limits import Limits

_HOST = re.compile(r"(?P<name>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::(?P<port>\d{1,5}))?\Z")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = frozenset({"/", "/health"})
"""Served without a token: they say nothing of the documents."""
TARGET_BYTES = 16_384

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """token: when set, every path but OPEN_PATHS asks for `Authorization: Bearer TOKEN`.

    allowed_hosts: names, or `name:port`; a bare name goes with the port that is served; "*" takes any. A Host without
    a port is of port 80 or 443: which of them, a proxy in front does not say. `local` is for a Unix socket that only
    its owner can reach: there is no Host to check and no token to ask for.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        token: str | None = None,
        allowed_hosts: Collection[str] = LOOPBACK,
        local: bool = False,
    ) -> None:
        self.app = app
        self.limits = limits
        self.allowed = frozenset(host.lower() for host in allowed_hosts)
        self.local = local
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        send = _with_headers(send)
        refused = self._refusal(scope)
        if refused is not None:
            status, message = refused
            extra = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            await failure(status, message, headers=extra)(scope, receive, send)
            return
        if scope["method"] in ("POST", "PUT", "PATCH"):
            try:
                body = await asyncio.wait_for(self._read(receive), self.limits.body_wait_s)
            except TimeoutError:
                await failure(408, "the body did not arrive in time.")(scope, receive, send)
                return
            if body is None:
                large = f"the body is larger than {self.limits.body_bytes} bytes."
                await failure(413, large, headers={"Connection": "close"})(scope, receive, send)
                return
            receive = _replay(body, receive)
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        if not self.local:
            hosts = headers.get(b"host", [])
            if len(hosts) != 1 or not self._is_ours(hosts[0], scope):
                return 421, "this Host is not served here. Add it with `qmd serve --allow-host`."
            origins = headers.get(b"origin", [])
            if any(not self._is_same(origin, hosts[0]) for origin in origins):
                return 403, "requests from pages of other origins are refused."
            if not _is_from_here(headers, scope):
                return 403, "requests from pages of other sites are refused."
            if self._token is not None and scope["path"] not in OPEN_PATHS:
                given = " ".join(headers.get(b"authorization", []))
                scheme, _, value = given.partition(" ")
                if scheme.lower() != "bearer" or not hmac.compare_digest(value.strip().encode(), self._token):
                    return 401, "a token is needed: `Authorization: Bearer TOKEN`."
        elif b"origin" in headers:
            return 403, "a browser has no business here."
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > TARGET_BYTES:
            return 414, f"the address is longer than {TARGET_BYTES} bytes."
        if scope["method"] in ("POST", "PUT", "PATCH"):
            kind = (headers.get(b"content-type") or [""])[0].lower().replace(" ", "")
            if len(headers.get(b"content-type", ())) != 1 or kind not in (
                "application/json",
                "application/json;charset=utf-8",
            ):
                return 415, "send `Content-Type: application/json`."
            length = (headers.get(b"content-length") or ["0"])[0]
            if not length.isdigit() or int(length) > self.limits.body_bytes:
                return 413, f"the body is larger than {self.limits.body_bytes} bytes."
        return None

    def _is_ours(self, host: str, scope: Scope) -> bool:
        found = _HOST.match(host.lower())
        if found is None:
            return False
        if "*" in self.allowed:
            return True
        name, port = found["name"], found["port"]
        if any(f"{name}:{one}" in self.allowed for one in ((port,) if port else (80, 443))):
            return True
        server = scope.get("server")
        return name in self.allowed and server is not None and int(port or 80) == server[1]

    def _is_same(self, origin: str, host: str) -> bool:
        return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")

    async def _read(self, receive: Receive) -> bytes | None:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)
            part = message.get("body", b"")
            size += len(part)
            if size > self.limits.body_bytes:
                return None
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)


def _is_from_here(headers: dict[bytes, list[str]], scope: Scope) -> bool:
    """What browsers say of themselves. A link that a person follows to the page itself is welcome."""
    site = headers.get(b"sec-fetch-site", ["none"])[0]
    if site in ("none", "same-origin"):
        return True
    return (
        scope["path"] == "/"
        and scope["method"] in ("GET", "HEAD")
        and headers.get(b"sec-fetch-mode", [""])[0] == "navigate"
        and headers.get(b"sec-fetch-dest", [""])[0] == "document"
    )


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            have = {name.lower() for name, _ in headers}
            headers += [pair for pair in SECURITY_HEADERS if pair[0] not in have]
            message = {**message, "headers": headers}
        await send(message)

    return sending


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def receiving() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receiving
