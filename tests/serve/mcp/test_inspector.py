"""The protocol's own inspector (npm `@modelcontextprotocol/inspector`) in its command-line mode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import pytest
from household import NOTES, QMD_MCP

INSPECTOR = os.environ.get("MCP_INSPECTOR") or shutil.which("mcp-inspector")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        INSPECTOR is None, reason="needs npm @modelcontextprotocol/inspector in MCP_INSPECTOR"
    ),
]


def inspect(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [str(INSPECTOR), "--cli", *QMD_MCP, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_it_lists_and_calls(environment: dict[str, str]) -> None:
    tools = inspect(environment, "--method", "tools/list")["tools"]
    assert [t["name"] for t in tools] == ["query", "get", "multi_get", "status", "ask"]
    call = ("--method", "tools/call", "--tool-name")
    found = inspect(environment, *call, "query", "--tool-arg", "query=heavy loaf")
    assert found["structuredContent"]["results"][0]["file"] == "notes/kitchen/bread.md"
    got = inspect(environment, *call, "get", "--tool-arg", "file=notes/kitchen/bread.md:1:1")
    assert got["structuredContent"]["text"] == "1: # Bread"
    assert inspect(environment, *call, "query", "--tool-arg", "quary=x")["isError"] is True
    assert len(inspect(environment, "--method", "resources/list")["resources"]) == len(NOTES)
    read = inspect(environment, "--method", "resources/read", "--uri", "qmd://notes/kitchen/bread.md")
    assert "heavy loaf" in read["contents"][0]["text"]
    assert inspect(environment, "--method", "prompts/list")["prompts"][0]["name"] == "answer"
