"""How each agent is told about the server: the lines, the file they belong in, the command that does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Snippet = Callable[[str, Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class Agent:
    """`file` is where the snippet goes; `command` does the same, where the agent has such a command."""

    name: str
    title: str
    file: str
    snippet: Snippet
    command: Snippet | None = None
    remote: Callable[[str], str] | None = None


def _json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False)


def _servers(key: str, **more: Any) -> Snippet:
    def snippet(program: str, arguments: Sequence[str]) -> str:
        return _json({key: {"qmd": {**more, "command": program, "args": list(arguments)}}})

    return snippet


def _remote(key: str, field: str = "url", **more: Any) -> Callable[[str], str]:
    return lambda url: _json({key: {"qmd": {**more, field: url}}})


def _toml(program: str, arguments: Sequence[str]) -> str:
    return f"[mcp_servers.qmd]\ncommand = {json.dumps(program)}\nargs = {json.dumps(list(arguments))}"


def _continue(program: str, arguments: Sequence[str]) -> str:
    return (
        "name: QMD\nversion: 0.0.1\nschema: v1\nmcpServers:\n"
        f"  - name: qmd\n    command: {json.dumps(program)}\n    args: {json.dumps(list(arguments))}"
    )


def _goose(program: str, arguments: Sequence[str]) -> str:
    return (
        "extensions:\n  qmd:\n    name: qmd\n    type: stdio\n    enabled: true\n    timeout: 300\n"
        f"    cmd: {json.dumps(program)}\n    args: {json.dumps(list(arguments))}"
    )


def _opencode(program: str, arguments: Sequence[str]) -> str:
    return _json({"mcp": {"qmd": {"type": "local", "command": [program, *arguments], "enabled": True}}})


def _added_by(*words: str) -> Snippet:
    import shlex

    return lambda program, arguments: shlex.join([*words, program, *arguments])


def _code_command(program: str, arguments: Sequence[str]) -> str:
    import shlex

    return shlex.join(
        ["code", "--add-mcp", json.dumps({"name": "qmd", "command": program, "args": list(arguments)})]
    )


AGENTS: Mapping[str, Agent] = {
    agent.name: agent
    for agent in (
        Agent(
            "claude-code", "Claude Code", ".mcp.json in the project",
            _servers("mcpServers"), _added_by("claude", "mcp", "add", "--scope", "user", "qmd", "--"),
            _remote("mcpServers", type="http"),
        ),
        Agent(
            "claude-desktop", "Claude Desktop",
            "claude_desktop_config.json (Settings, Developer, Edit Config)", _servers("mcpServers"),
        ),
        Agent(
            "cursor", "Cursor", "~/.cursor/mcp.json, or .cursor/mcp.json in the project",
            _servers("mcpServers"), remote=_remote("mcpServers"),
        ),
        Agent(
            "vscode", "VS Code", ".vscode/mcp.json in the project",
            _servers("servers", type="stdio"), _code_command, _remote("servers", type="http"),
        ),
        Agent("zed", "Zed", "settings.json", _servers("context_servers", source="custom")),
        Agent("codex", "Codex", "~/.codex/config.toml", _toml, _added_by("codex", "mcp", "add", "qmd", "--")),
        Agent(
            "gemini", "Gemini CLI", "~/.gemini/settings.json", _servers("mcpServers"),
            _added_by("gemini", "mcp", "add", "--scope", "user", "qmd"), _remote("mcpServers", "httpUrl"),
        ),
        Agent("continue", "Continue", ".continue/mcpServers/qmd.yaml in the project", _continue),
        Agent("windsurf", "Windsurf", "~/.codeium/windsurf/mcp_config.json", _servers("mcpServers")),
        Agent("cline", "Cline", "cline_mcp_settings.json (MCP Servers, Configure)", _servers("mcpServers")),
        Agent("lm-studio", "LM Studio", "~/.lmstudio/mcp.json", _servers("mcpServers"), remote=_remote("mcpServers")),
        Agent("opencode", "opencode", "opencode.json in the project", _opencode),
        Agent("goose", "Goose", "~/.config/goose/config.yaml", _goose),
    )
}  # fmt: skip


def how_to(agent: Agent, program: str, arguments: Sequence[str], *, url: str | None = None) -> str:
    """What a person does to connect this agent, as text to read and to copy from."""
    lines = [agent.title]
    if url is not None and agent.remote is not None:
        return "\n".join([*lines, f"In {agent.file}:", "", _indented(agent.remote(url))])
    if url is not None:
        lines.append("takes no HTTP address in its file; it starts the program itself:")
    if agent.command is not None:
        lines += ["Run:", "", _indented(agent.command(program, arguments)), "", f"Or, in {agent.file}:"]
    else:
        lines.append(f"In {agent.file}:")
    return "\n".join([*lines, "", _indented(agent.snippet(program, arguments))])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
