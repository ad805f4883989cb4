"""MCP over HTTP: the official client against the daemon's app, behind its guard."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from household import CONFIG, NOTES, WordEmbedder

from qmd.config import Places
from qmd.search.answer import Answer
from qmd.serve.http.app import create_app
from qmd.serve.service import Service

mcp = pytest.importorskip("mcp")
uvicorn = pytest.importorskip("uvicorn")

JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
HELLO = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    },
}


@pytest.fixture(scope="module")
def service(home: Any) -> Iterator[Service]:
    places = Places(home / "config", home / "data")
    service = Service(places=places, config=CONFIG, open_embedder=lambda name: WordEmbedder())
    yield service
    service.close()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        app = create_app(service)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/mcp"
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def talk(url: str, use: Callable[[Any], Awaitable[None]]) -> None:
    from mcp.client.streamable_http import streamable_http_client

    async def run() -> None:
        async with streamable_http_client(url) as streams, mcp.ClientSession(*streams[:2]) as session:
            await use(session)

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("era", ["initialize", "discover"])
def test_the_official_client(url: str, era: str) -> None:
    async def use(session: Any) -> None:
        hello = await getattr(session, era)()
        assert f"{len(NOTES)} of the user's own documents" in hello.instructions
        assert "ask" in {t.name for t in (await session.list_tools()).tools}
        told: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append(done)

        found = await session.call_tool("query", {"query": "heavy loaf"}, progress_callback=progress)
        assert found.structured_content["results"][0]["file"] == "notes/kitchen/bread.md"
        assert told == [0, 1]
        got = await session.call_tool("get", {"file": "notes/kitchen/bread.md:1:1"})
        assert got.structured_content["text"] == "1: # Bread"
        refused = await session.call_tool("get", {"fil": "x"})
        assert refused.is_error
        assert "Did you mean 'file'" in refused.content[0].text
        read = await session.read_resource("qmd://notes/kitchen/weeknight%20dal.md")
        assert "Lentils" in read.contents[0].text
        with pytest.raises(mcp.MCPError):
            await session.read_resource("qmd://notes/../secret/secret.md")

    talk(url, use)


def test_many_clients_at_once(url: str) -> None:
    from mcp.client.streamable_http import streamable_http_client

    async def one(number: int) -> str:
        async with streamable_http_client(url) as streams, mcp.ClientSession(*streams[:2]) as session:
            await session.initialize()
            word, file = [("lentils", "weeknight dal.md"), ("loaf rest", "bread.md")][number % 2]
            found = await session.call_tool("query", {"searches": [{"type": "lex", "query": word}]})
            assert found.structured_content["results"][0]["file"] == f"notes/kitchen/{file}"
            return str(file)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(n) for n in range(8)))

    assert len(asyncio.run(asyncio.wait_for(all_of_them(), 60))) == 8


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "0.0.0.0"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://0.0.0.0:8181"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_the_guard_stands_before_it(url: str, method: str, headers: dict[str, str], status: int) -> None:
    if method != "POST" and "Content-Type" in headers:
        pytest.skip("only bodies have a type")
    reply = httpx.request(
        method, url, headers=JSON | headers, content=json.dumps(HELLO) if method == "POST" else None
    )
    assert reply.status_code == status
    assert "qmd" not in reply.text.lower() or "serverInfo" not in reply.text


def test_large_bodies_are_refused(url: str) -> None:
    reply = httpx.post(url, headers=JSON, content=b'{"x": "' + b"y" * 1_100_000 + b'"}')
    assert reply.status_code == 413


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_nothing_is_streamed_and_there_is_no_session_to_end(url: str, method: str) -> None:
    reply = httpx.request(method, url, headers=JSON, timeout=5)
    assert reply.status_code == 405
    assert reply.headers["Allow"] == "POST"


def test_a_token_guards_it(service: Service) -> None:
    from starlette.testclient import TestClient

    token = "a-token-of-enough-length"
    with TestClient(create_app(service, token=token), base_url="http://127.0.0.1:80") as client:
        assert client.post("/mcp", headers=JSON, json=HELLO).status_code == 401
        reply = client.post("/mcp", headers=JSON | {"Authorization": f"Bearer {token}"}, json=HELLO)
        assert reply.status_code == 200
        assert "serverInfo" in reply.text


def test_each_request_stands_alone(url: str) -> None:
    """No session to lose: a client that knows nothing of a restart goes on."""
    params = {"name": "status", "arguments": {}}
    request = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    reply = httpx.post(url, headers=JSON | {"MCP-Protocol-Version": "2025-06-18"}, json=request)
    assert reply.status_code == 200
    assert "mcp-session-id" not in reply.headers
    [data] = [line for line in reply.text.splitlines() if line.startswith("data: {")]
    assert json.loads(data.removeprefix("data: "))["result"]["isError"] is False


def test_ask_runs_in_its_own_lane_with_the_shared_model(url: str, service: Service, monkeypatch: Any) -> None:
    lanes: list[str] = []

    def ask_now(question: str, **options: Any) -> Answer:
        lanes.append(threading.current_thread().name)
        options["stream"]("words ")
        return Answer(question, "I find nothing about this.", False)

    monkeypatch.setattr(service, "ask_now", ask_now)
    # The endpoint took the method when its first request came: ask through an app of its own.
    from starlette.testclient import TestClient

    params = {"name": "ask", "arguments": {"question": "why?"}}
    request = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    with TestClient(create_app(service), base_url="http://127.0.0.1:80") as client:
        reply = client.post("/mcp", headers=JSON | {"MCP-Protocol-Version": "2025-06-18"}, json=request)
    assert "I find nothing about this." in reply.text
    assert lanes == ["qmd-answer"]
