"""The lean wire against the official SDK's server: equal messages, equal answers. And what it does with rubbish."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import anyio
import pytest

from qmd.serve.mcp.operations import Operations
from qmd.serve.mcp.wire import CAPABILITIES_KEY, VERSION_KEY, Conversation, malformed

CLIENT = {"name": "test", "version": "1"}
BODIES: list[tuple[str, dict[str, Any] | None]] = [
    ("tools/list", None),
    ("tools/list", {"cursor": None}),
    ("tools/call", {"name": "status", "arguments": {}}),
    ("tools/call", {"name": "status"}),
    ("tools/call", {"name": "query", "arguments": {"query": "heavy loaf", "limit": 2}}),
    ("tools/call", {"name": "query", "arguments": {"quarry": "heavy loaf"}}),
    ("tools/call", {"name": "get", "arguments": {"file": "notes/kitchen/bread.md:1:2"}}),
    ("tools/call", {"name": "get", "arguments": {"file": "notes/gone.md"}}),
    ("tools/call", {"name": "multi_get", "arguments": {"pattern": "notes/kitchen/*.md"}}),
    ("tools/call", {"name": "nothing", "arguments": {}}),
    ("tools/call", {"arguments": {}}),
    ("resources/list", None),
    ("resources/templates/list", None),
    ("resources/read", {"uri": "qmd://notes/kitchen/bread.md"}),
    ("resources/read", {"uri": "qmd://notes/gone.md"}),
    ("prompts/list", None),
    ("prompts/get", {"name": "answer", "arguments": {"question": "why?"}}),
    ("prompts/get", {"name": "nothing"}),
    (
        "completion/complete",
        {
            "ref": {"type": "ref/resource", "uri": "qmd://{+path}"},
            "argument": {"name": "path", "value": "notes/k"},
        },
    ),
    ("completion/complete", {"ref": "x", "argument": "y"}),
    ("completion/complete", {"ref": {"type": "ref/resource", "uri": "qmd://{+path}"}}),
    ("no/such/method", {}),
    ("ping", None),
]


def handshake(version: str) -> list[dict[str, Any]]:
    first = {"protocolVersion": version, "capabilities": {}, "clientInfo": CLIENT}
    messages = [{"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": first}]
    for at, (method, params) in enumerate(BODIES, start=1):
        messages.append(
            {"jsonrpc": "2.0", "id": at, "method": method} | ({"params": params} if params else {})
        )
    return messages


def enveloped() -> list[dict[str, Any]]:
    meta = {VERSION_KEY: "2026-07-28", CAPABILITIES_KEY: {}, "io.modelcontextprotocol/clientInfo": CLIENT}
    bodies = [("server/discover", {}), *BODIES]
    messages = [
        {"jsonrpc": "2.0", "id": at, "method": method, "params": {**(params or {}), "_meta": meta}}
        for at, (method, params) in enumerate(bodies)
    ]
    wrong = {**meta, VERSION_KEY: "1999-01-01"}
    return [
        *messages,
        {"jsonrpc": "2.0", "id": 90, "method": "tools/list", "params": {"_meta": wrong}},
        {
            "jsonrpc": "2.0",
            "id": 91,
            "method": "tools/list",
            "params": {"_meta": {VERSION_KEY: "2026-07-28"}},
        },
        {"jsonrpc": "2.0", "id": 92, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}},
    ]


def ours(operations: Operations, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    conversation = Conversation(operations, lambda message: None)
    answers = [conversation.answer(message) for message in messages]
    assert None not in answers
    return [a for a in answers if a is not None]


def theirs(operations: Operations, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the SDK's own server answers, over streams in memory."""
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    from qmd.serve.mcp.sdk import QmdServer

    async def run_in_thread(*work: Any) -> dict[str, Any]:
        done: dict[str, Any] = await anyio.to_thread.run_sync(*work, abandon_on_cancel=True)
        return done

    async def talk() -> list[dict[str, Any]]:
        to_server, server_reads = anyio.create_memory_object_stream[Any](1)
        server_writes, from_server = anyio.create_memory_object_stream[Any](1)
        server = QmdServer(operations, run_in_thread)
        answers = []
        async with anyio.create_task_group() as group:
            group.start_soon(server.run, server_reads, server_writes, server.create_initialization_options())
            for message in messages:
                await to_server.send(SessionMessage(jsonrpc_message_adapter.validate_python(message)))
                answer = (await from_server.receive()).message
                answers.append(answer.model_dump(by_alias=True, mode="json", exclude_unset=True))
            group.cancel_scope.cancel()
        return answers

    return asyncio.run(talk())


def alike(value: Any) -> Any:
    """Marks are drawn anew for each answer; nothing else may differ but the order of keys and the words of an error."""
    if isinstance(value, str):
        return re.sub(r"document-[0-9a-f]{8}", "document-MARK", value)
    if isinstance(value, dict):
        return {k: alike(v) for k, v in value.items()}
    return [alike(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "era", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "1999-01-01", "2026-07-28"]
)
def test_answers_as_the_official_server_does(operations: Operations, era: str) -> None:
    messages = enveloped() if era == "2026-07-28" else handshake(era)
    for message, mine, official in zip(
        messages, ours(operations, messages), theirs(operations, messages), strict=True
    ):
        where = f"{message['method']} {message.get('params')}"
        if "error" in official:
            assert mine["error"]["code"] == official["error"]["code"], where
            if message["method"] == "initialize" or "MISSING" in official["error"]["message"]:
                assert mine["error"]["data"] == official["error"]["data"]
        else:
            assert alike(mine) == alike(official), where


def test_the_eras_do_not_mix(operations: Operations) -> None:
    conversation = Conversation(operations, lambda message: None)
    for message in handshake("2025-11-25")[:2]:
        conversation.answer(message)
    late = conversation.answer(enveloped()[1])
    assert late is not None
    assert late["error"]["code"] == -32600


def test_nothing_is_answered_before_initialize(operations: Operations) -> None:
    conversation = Conversation(operations, lambda message: None)
    early = conversation.answer({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert early is not None
    assert early["error"]["code"] == -32602
    ping = conversation.answer({"jsonrpc": "2.0", "id": 2, "method": "ping"})
    assert ping == {"jsonrpc": "2.0", "id": 2, "result": {}}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], -32600),
        ([{"jsonrpc": "2.0", "id": 1, "method": "ping"}], -32600),
        ("ping", -32600),
        ({"id": 1, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": True, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": None, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": 1.5, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": 1}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}, -32602),
    ],
)
def test_malformed_messages(value: object, code: int) -> None:
    answer = malformed(value)
    assert answer is not None
    assert answer["error"]["code"] == code


@pytest.mark.parametrize("params", [None, [], "x"])
def test_a_notification_is_never_answered(operations: Operations, params: object) -> None:
    message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
    assert malformed(message) is None
    Conversation(operations, lambda message: None).notice(message)


def test_parameters_that_are_null_are_none(operations: Operations) -> None:
    message = {"jsonrpc": "2.0", "id": 5, "method": "ping", "params": None}
    assert malformed(message) is None
    answer = Conversation(operations, lambda message: None).answer(message)
    assert answer == {"jsonrpc": "2.0", "id": 5, "result": {}}


def test_a_response_is_no_request() -> None:
    assert malformed({"jsonrpc": "2.0", "id": 1, "result": {}}) is None


def test_progress_only_for_those_who_ask(operations: Operations) -> None:
    sent: list[dict[str, Any]] = []
    conversation = Conversation(operations, sent.append)
    conversation.answer(handshake("2025-11-25")[0])
    params: dict[str, Any] = {
        "name": "query",
        "arguments": {"searches": [{"type": "lex", "query": "loaf"}] * 3},
    }
    conversation.answer({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    assert sent == []
    params["_meta"] = {"progressToken": "t"}
    conversation.answer({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params})
    assert {m["method"] for m in sent} == {"notifications/progress"}
    assert {m["params"]["progressToken"] for m in sent} == {"t"}
    done = [m["params"]["progress"] for m in sent]
    assert done == sorted(done)
    assert done[-1] == sent[-1]["params"]["total"] == 1


def test_a_cancelled_request_is_not_answered(operations: Operations) -> None:
    conversation = Conversation(operations, lambda message: None)
    conversation.answer(handshake("2025-11-25")[0])
    request = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "status"}}
    conversation.expect(request)
    conversation.notice({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}})
    assert conversation.answer(request) is None
    assert conversation.answer(request) is not None  # the number is free again


def test_a_bug_answers_and_leaves_the_rest_alive(
    operations: Operations, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError("the question was about loaves")

    with monkeypatch.context() as patch:
        patch.setattr(operations, "instructions", broken)
        hello = Conversation(operations, lambda message: None).answer(handshake("2025-11-25")[0])
    assert hello is not None
    assert hello["error"]["code"] == -32603
    operations.methods = {**operations.methods, "tools/list": broken}
    conversation = Conversation(operations, lambda message: None)
    conversation.answer(handshake("2025-11-25")[0])
    answer = conversation.answer({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert answer is not None
    assert answer["error"]["code"] == -32603
    said = capsys.readouterr().err
    assert "ZeroDivisionError at" in said
    assert "loaves" not in said
    assert conversation.answer({"jsonrpc": "2.0", "id": 2, "method": "prompts/list"})["result"]  # type: ignore[index]


def test_one_conversation_from_several_threads(operations: Operations) -> None:
    conversation = Conversation(operations, lambda message: None)
    conversation.answer(handshake("2025-11-25")[0])
    answers: list[Any] = []

    def ask(number: int) -> None:
        params = {"name": "query", "arguments": {"query": "heavy loaf", "limit": 1}}
        answers.append(
            conversation.answer({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})
        )

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a["id"] for a in answers) == list(range(1, 9))
    files = {a["result"]["structuredContent"]["results"][0]["file"] for a in answers}
    assert files == {"notes/kitchen/bread.md"}
