"""The lines for agents, the skill, and the commands that show them; nothing is written unless that was asked for."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from household import REPO

from qmd.serve.cli.app import run
from qmd.serve.mcp.agents import AGENTS, how_to
from qmd.serve.mcp.schema import TOOLS

PROGRAM, ARGUMENTS = "/home/me/my tools/qmd", ["mcp", "--index", "work"]


def parse(name: str, text: str) -> Any:
    if name == "codex":
        return tomllib.loads(text)
    if name in ("continue", "goose"):
        return yaml.safe_load(text)
    return json.loads(text)


def words_of(tree: Any) -> set[str]:
    if isinstance(tree, dict):
        return set().union(*map(words_of, tree.values()))
    if isinstance(tree, list):
        return set().union(*map(words_of, tree)) if tree else set()
    return {str(tree)}


@pytest.mark.parametrize("name", AGENTS)
def test_lines_are_what_the_agent_reads(name: str) -> None:
    agent = AGENTS[name]
    tree = parse(name, agent.snippet(PROGRAM, ARGUMENTS))
    assert {PROGRAM, *ARGUMENTS} <= words_of(tree)
    if agent.command is not None:
        words = shlex.split(agent.command(PROGRAM, ARGUMENTS))
        joined = " ".join(words)
        assert PROGRAM in joined
        assert "work" in joined
    if agent.remote is not None:
        assert "http://127.0.0.1:8181/mcp" in words_of(json.loads(agent.remote("http://127.0.0.1:8181/mcp")))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("vscode", "servers"),
        ("zed", "context_servers"),
        ("claude-desktop", "mcpServers"),
        ("cursor", "mcpServers"),
    ],
)
def test_keys_differ_from_agent_to_agent(name: str, key: str) -> None:
    server = json.loads(AGENTS[name].snippet("qmd", ["mcp"]))[key]["qmd"]
    assert (server["command"], server["args"]) == ("qmd", ["mcp"])


def test_how_to_says_where() -> None:
    said = how_to(AGENTS["codex"], "qmd", ["mcp"])
    assert "~/.codex/config.toml" in said
    assert "codex mcp add qmd -- qmd mcp" in said
    assert "httpUrl" in how_to(AGENTS["gemini"], "qmd", ["mcp"], url="http://127.0.0.1:8181/mcp")


def test_install_prints_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(["mcp", "install"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in AGENTS)
    assert run(["mcp", "install", "claude-code", "--index", "work"]) == 0
    said = capsys.readouterr().out
    assert "claude mcp add --scope user qmd -- " in said
    assert "--index work" in said
    assert run(["mcp", "install", "claude-cod"]) == 3
    assert "Did you mean 'claude-code'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--port", "0"), ("--host", "0.0.0.0"), ("--token-file", "token"), ("--allow-host", "files.example")],
)
def test_flags_of_http_need_http(capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
    assert run(["mcp", flag, value]) == 2
    assert f"{flag} needs --http" in capsys.readouterr().err


def test_flags_of_http_are_those_of_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[dict[str, Any]] = []
    monkeypatch.setattr("qmd.serve.cli.commands_serve._run", lambda session, options: served.append(options))
    token = tmp_path / "token"
    given = ["--host", "0.0.0.0", "--port", "0", "--token-file", str(token), "--allow-host", "files.example"]
    assert run(["mcp", "--http", *given]) == 0
    assert run(["serve", *given]) == 0
    assert served[0] == served[1]
    assert served[0]["token_file"] == token
    assert served[0]["port"] == 0


# ---- the skill


def test_the_skill_names_what_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["skill"]) == 0
    text = capsys.readouterr().out
    head = yaml.safe_load(text.split("---")[1])
    assert head["name"] == "qmd"
    assert 50 < len(head["description"]) <= 1_024
    for name in TOOLS:
        assert f"`{name}`" in text
    blocks = [b.split("\n", 1)[1] for b in text.split("```")[1::2] if b.startswith("json")]
    from qmd.serve.mcp.schema import QUERY, check_arguments

    for block in blocks:
        check_arguments(QUERY, json.loads(block))
    for line in (line for line in text.splitlines() if line.startswith("qmd ")):
        # Parsed to its end: an unknown command or flag would fail here; --help keeps it from running.
        assert run([*shlex.split(line)[1:], "--help"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("arguments", [["skill", "show"], ["skill", "get", "qmd"], ["skills", "get", "qmd"]])
def test_words_of_the_original(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert capsys.readouterr().out == (REPO / "src/qmd/serve/skill/SKILL.md").read_text(encoding="utf-8")


def test_an_unknown_skill(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["skill", "show", "other"]) == 3
    assert run(["skill", "list"]) == 0
    assert capsys.readouterr().out.startswith("qmd  ")


def test_installing_the_skill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["skill", "install", "--agent", "claude"]) == 0
    file = tmp_path / ".claude" / "skills" / "qmd" / "SKILL.md"
    assert file.read_text(encoding="utf-8").startswith("---\nname: qmd")
    assert run(["skill", "install", "--agent", "claude"]) == 0
    file.write_text("mine")
    assert run(["skill", "install", "--agent", "claude"]) == 2
    assert file.read_text() == "mine"
    assert run(["skill", "install", "--agent", "claude", "--force"]) == 0
    assert file.read_text(encoding="utf-8") != "mine"
    # A link in its place leads somewhere else: it is never written through.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".agents" / "skills").mkdir(parents=True)
    (tmp_path / ".agents" / "skills" / "qmd").symlink_to(elsewhere)
    assert run(["skill", "install", "--force"]) == 2
    assert list(elsewhere.iterdir()) == []
    capsys.readouterr()


# ---- the daemon

NEAR = """
import sys
from qmd.serve.cli.session import Session
from qmd.serve.mcp.near import NearIndex
hits = NearIndex(Session()).query("heavy loaf", limit=1)
print(f"{hits[0].collection}/{hits[0].path}", "onnxruntime" in sys.modules)
"""


def test_one_daemon_for_http_and_for_agents_on_standard_input(
    environment: dict[str, str], tmp_path: Path
) -> None:
    env = environment | {"QMD_RUN_DIR": str(tmp_path / "run")}

    def qmd(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qmd", *arguments], env=env, capture_output=True, text=True, timeout=60
        )

    started = qmd("mcp", "--http", "--daemon", "--port", "0")
    try:
        assert started.returncode == 0, started.stderr
        import httpx

        status = json.loads(qmd("serve", "status", "--json").stdout)
        hello = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        }
        reply = httpx.post(
            f"{status['url']}/mcp",
            json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello},
            headers={"Accept": "application/json, text/event-stream"},
            timeout=30,
        )
        assert reply.status_code == 200
        assert "serverInfo" in reply.text
        near = subprocess.run(
            [sys.executable, "-c", NEAR], env=env, capture_output=True, text=True, timeout=60
        )
        assert near.stdout == "notes/kitchen/bread.md False\n", near.stderr
    finally:
        stopped = qmd("mcp", "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert qmd("mcp", "stop").returncode == 3
