"""`qmd mcp` as a process: the official client speaks to it, its output is protocol only, it ends with its parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from household import NOTES, QMD_MCP
from mcp import ClientSession, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

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


def call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": number,
        "method": "tools/call",
        "params": {"name": name, "arguments": arguments},
    }


def lines(*messages: Any) -> bytes:
    return b"".join((m if isinstance(m, bytes) else json.dumps(m).encode()) + b"\n" for m in messages)


def talk(environment: dict[str, str], use: Callable[[ClientSession], Awaitable[None]]) -> None:
    async def run() -> None:
        server = StdioServerParameters(command=QMD_MCP[0], args=QMD_MCP[1:], env=environment)
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await use(session)

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("era", ["initialize", "discover"])
def test_the_official_client(environment: dict[str, str], era: str) -> None:
    async def use(session: ClientSession) -> None:
        hello = await getattr(session, era)()
        assert f"{len(NOTES)} of the user's own documents" in hello.instructions
        tools = (await session.list_tools()).tools
        assert [t.name for t in tools] == ["query", "get", "multi_get", "status", "ask"]
        assert all(t.annotations is not None and t.annotations.read_only_hint for t in tools)
        told: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append(done)

        # The client holds structured content against the output schema by itself.
        searches = [{"type": "lex", "query": "heavy loaf"}, {"type": "lex", "query": "water"}]
        found = await session.call_tool("query", {"searches": searches}, progress_callback=progress)
        assert found.structured_content["results"][0]["file"] == "notes/kitchen/bread.md"
        assert told == [0, 1]
        for name, arguments in (
            ("get", {"file": "notes/kitchen/bread.md:1:3"}),
            ("multi_get", {"pattern": "notes/kitchen/*.md", "maxLines": 2}),
            ("status", {}),
        ):
            assert not (await session.call_tool(name, arguments)).is_error
        refused = await session.call_tool("query", {"quary": "x"})
        assert refused.is_error
        assert "Did you mean 'query'" in refused.content[0].text
        resources = (await session.list_resources()).resources
        assert len(resources) == len(NOTES)
        read = await session.read_resource("qmd://notes/linux/%E6%96%87%E4%BB%B6%E6%9D%83%E9%99%90.md")
        assert "chmod" in read.contents[0].text
        with pytest.raises(MCPError, match="no document is called"):
            await session.read_resource("qmd://notes/gone.md")
        assert (await session.list_resource_templates()).resource_templates[0].uri_template == "qmd://{+path}"
        prompt = await session.get_prompt("answer", {"question": "why?"})
        assert "why?" in prompt.messages[0].content.text

    talk(environment, use)


# Calls as clients of the TypeScript original make them.
ORIGINAL_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("query", {"searches": [{"type": "lex", "query": "loaf"}], "limit": 10, "minScore": 0, "rerank": False}),
    ("query", {"query": "heavy loaf", "collections": ["notes"], "intent": "baking", "candidateLimit": 20}),
    ("get", {"file": "notes/kitchen/bread.md", "fromLine": 1, "maxLines": 80, "lineNumbers": True}),
    ("get", {"file": "kitchen/bread.md:2:3"}),
    ("get", {"path": "kitchen/bread.md", "full": True, "lineNumbers": False}),
    ("multi_get", {"pattern": "notes/kitchen/*.md", "maxBytes": 65536, "lineNumbers": True}),
    ("multi_get", {"pattern": "notes/kitchen/bread.md, hostile.md", "maxLines": 10}),
    ("status", {}),
]


def test_calls_in_the_form_of_the_original(environment: dict[str, str]) -> None:
    requests = [call(n, name, **arguments) for n, (name, arguments) in enumerate(ORIGINAL_CALLS, start=1)]
    done = subprocess.run(
        QMD_MCP, input=lines(HELLO, *requests), env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0
    answers = {m["id"]: m for m in map(json.loads, done.stdout.splitlines())}
    assert sorted(answers) == list(range(len(requests) + 1))
    for number in range(1, len(requests) + 1):
        assert answers[number]["result"]["isError"] is False, answers[number]
    hits = answers[1]["result"]["structuredContent"]["results"]
    assert {"docid", "file", "title", "score", "line", "snippet"} <= hits[0].keys()
    assert hits[0]["file"] == "notes/kitchen/bread.md"
    status = answers[len(requests)]["result"]["structuredContent"]
    assert {"totalDocuments", "needsEmbedding", "hasVectorIndex", "collections"} <= status.keys()
    assert {"name", "path", "pattern", "documents", "lastUpdated"} <= status["collections"][0].keys()


def test_nothing_but_protocol_on_standard_output(environment: dict[str, str]) -> None:
    """Whatever the index prints, from Python or from a library in C, goes to standard error; and the SDK stays out."""
    program = """
import os, sys, qmd.index
from qmd.serve.mcp.stdio import serve_stdio
def noisy():
    print("noise from Python"); os.write(1, b"noise from C\\n"); os.system("echo noise from a child")
    return qmd.index.open(create=False)
code = serve_stdio(noisy)
heavy = {"mcp", "pydantic", "starlette", "torch", "onnxruntime"} & set(sys.modules)
sys.stderr.write("loaded: " + " ".join(sorted(heavy)))
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=lines(HELLO, call(1, "status"), b"rubbish", [], {"jsonrpc": "2.0", "id": 2, "method": "ping"}),
        env=environment, capture_output=True, timeout=60,
    )  # fmt: skip
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(m["jsonrpc"] == "2.0" for m in messages)
    assert {m.get("id") for m in messages} == {0, 1, 2, None}
    assert sorted(m["error"]["code"] for m in messages if "error" in m) == [-32700, -32600]
    told = done.stderr.decode()
    assert told.count("noise from") == 3
    assert told.endswith("loaded: ")


def test_a_line_that_is_too_long_does_not_end_the_conversation(environment: dict[str, str]) -> None:
    long = b'{"jsonrpc": "2.0", "id": 9, "method": "' + b"x" * (5 * 1024 * 1024) + b'"}'
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    done = subprocess.run(
        QMD_MCP, input=lines(HELLO, long, ping), env=environment, capture_output=True, timeout=60
    )
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert {m.get("id") for m in messages} == {0, 1, None}


def test_half_a_surrogate_pair_is_said_back_and_ends_nothing(environment: dict[str, str]) -> None:
    half = "\ud83d"
    asked = call(3, "query", query="loaf")
    asked["params"]["_meta"] = {"progressToken": half}
    requests = [
        {"jsonrpc": "2.0", "id": 1, "method": half},
        {"jsonrpc": "2.0", "id": half, "method": "ping"},
        {"jsonrpc": "2.0", "id": 2, "method": "completion/complete"}
        | {"params": {"ref": {"type": "ref/resource"}, "argument": {"name": "path", "value": half}}},
        asked,
        call(4, "status"),
    ]
    done = subprocess.run(
        QMD_MCP, input=lines(HELLO, *requests), env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    answers = {m["id"]: m for m in messages if "id" in m}
    assert answers.keys() == {0, 1, half, 2, 3, 4}
    assert answers[1]["error"]["code"] == -32601
    assert answers[half]["result"] == {}
    assert answers[2]["result"]["completion"]["values"] == []
    assert all(answers[n]["result"]["isError"] is False for n in (3, 4))
    told = [m["params"]["progressToken"] for m in messages if "id" not in m]
    assert told
    assert set(told) == {half}


def test_without_an_index_it_starts_and_says_what_to_do(environment: dict[str, str], tmp_path: Path) -> None:
    empty = {**environment, "QMD_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        QMD_MCP, input=lines(HELLO, call(1, "status")), env=empty, capture_output=True, timeout=60
    )
    answers = {m["id"]: m["result"] for m in map(json.loads, done.stdout.splitlines())}
    assert "nothing is indexed yet" in answers[0]["instructions"]
    assert answers[1]["isError"] is True
    assert "qmd add" in answers[1]["content"][0]["text"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="signals and /proc")
def test_it_ends_when_its_parent_is_killed(environment: dict[str, str]) -> None:
    """The other end of its input stays open here, so only the loss of the parent can tell it."""
    read_end, write_end = os.pipe()
    launcher = (
        f"import subprocess, time; p = subprocess.Popen({QMD_MCP!r}, stdin={read_end}); print(p.pid, flush=True); "
        "time.sleep(120)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", launcher], env=environment, pass_fds=(read_end,), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    try:
        os.write(write_end, lines(HELLO))
        assert b'"serverInfo"' in parent.stdout.readline()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        child.wait(timeout=10)
    finally:
        os.close(write_end)
        os.close(read_end)
        parent.stdout.close()
        if child.is_running():
            child.kill()


def test_it_ends_when_nobody_reads_or_writes(environment: dict[str, str]) -> None:
    server = subprocess.Popen(QMD_MCP, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(lines(HELLO))
    server.stdin.flush()
    server.stdout.readline()
    server.stdout.close()
    begin = time.monotonic()
    server.stdin.write(lines(call(1, "status")))
    server.stdin.close()
    assert server.wait(timeout=10) == 0
    assert time.monotonic() - begin < 5
