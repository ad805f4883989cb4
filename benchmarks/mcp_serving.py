"""MCP on standard input: from the start of the process to its first answer, and what a call takes afterwards.

The peer is the TypeScript original (npm @tobilu/qmd), where `--peer` names its folder; it gets the same files, and only
calls that need no model, because it has none without a download. Both are started in turn, five times.

    python benchmarks/mcp_serving.py [--corpus FOLDER] [--index DATA_FOLDER] [--peer node_modules/@tobilu/qmd] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environment import Spread, append_result

REPO = Path(__file__).resolve().parents[1]
REPEATS = 5
CALLS = 60
WORDS = (
    "memory",
    "permission",
    "file",
    "configure",
    "network",
    "error",
    "install",
    "table",
    "thread",
    "time",
)

HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}


class Server:
    """One MCP server process, spoken to in lines."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.begin = time.perf_counter()
        self._process = subprocess.Popen(
            command, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._number = 0

    def ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._number += 1
        message = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError("the server ended")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                if "error" in answer or answer["result"].get("isError"):
                    raise RuntimeError(line.decode()[:500])
                result: dict[str, Any] = answer["result"]
                return result

    def tool(self, name: str, **arguments: Any) -> dict[str, Any]:
        return self.ask("tools/call", {"name": name, "arguments": arguments})

    def since_start(self) -> float:
        return time.perf_counter() - self.begin

    def cpu_s(self) -> float:
        """Of the living process, by the kernel's account."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass
class Figures:
    """Values of each repeat, by what was measured."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def spreads(self) -> dict[str, Spread]:
        return {name: Spread.of(values) for name, values in self.values.items()}


def typed(words: str, kind: str = "lex") -> dict[str, Any]:
    return {"searches": [{"type": kind, "query": words}], "limit": 10, "rerank": False}


def measure(command: Sequence[str], env: Mapping[str, str], figures: Figures, *, ours: bool) -> None:
    """One repeat: a fresh process for each first answer, then calls in a warm one."""
    server = Server(command, env)
    server.ask("initialize", HELLO)
    figures.add("start to initialize, s", server.since_start())
    figures.add("the same, CPU s", server.cpu_s())
    server.tool("query", **typed(WORDS[0]))
    figures.add("start to first keyword answer, s", server.since_start())
    figures.add("the same (keyword), CPU s", server.cpu_s())
    took: dict[str, list[float]] = {}
    for number in range(CALLS):
        words = f"{WORDS[number % len(WORDS)]} {WORDS[(number * 7 + 3) % len(WORDS)]}"
        _time(
            took,
            "query, lex",
            lambda w=words: server.tool("query", **typed(w)),
        )
    found = server.tool("query", **typed(WORDS[1]))
    files = [hit["file"] for hit in found["structuredContent"]["results"]]
    for number in range(CALLS):
        name = f"{files[number % len(files)]}:1:40"
        _time(took, "get", lambda n=name: server.tool("get", file=n))
    server.end()
    if ours:
        server = Server(command, env)
        server.ask("initialize", HELLO)
        server.tool("query", query="how do I change the permissions of a file")
        figures.add("start to first hybrid answer, s", server.since_start())
        figures.add("the same (hybrid), CPU s", server.cpu_s())
        for number in range(CALLS):
            words = f"how does {WORDS[number % len(WORDS)]} work with {WORDS[(number * 7 + 3) % len(WORDS)]}"
            _time(took, "query, hybrid", lambda w=words: server.tool("query", query=w))
        for _ in range(10):
            _time(took, "status", lambda: server.tool("status"))
        server.end()
    for name, values in took.items():
        figures.add(f"{name}: median of calls, ms", statistics.median(values))


def _time(took: dict[str, list[float]], name: str, call: Any) -> None:
    begin = time.perf_counter()
    call()
    took.setdefault(name, []).append(1000 * (time.perf_counter() - begin))


def sdk_import(figures: Figures) -> None:
    """What importing the official SDK's server alone costs: the reason for a wire of our own on standard input."""
    program = (
        "import time; t = time.process_time(); import mcp.server.stdio, mcp.server.lowlevel; "
        "print(time.process_time() - t)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    figures.add("import of the official SDK, CPU s", float(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=REPO / "examples" / "vault")
    parser.add_argument(
        "--index", type=Path, help="a data folder with an index already made; it is only read"
    )
    parser.add_argument("--peer", type=Path, help="folder of the npm package @tobilu/qmd")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="qmd-mcp-"))
    try:
        run(options, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def run(options: argparse.Namespace, home: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QMD_", "XDG_"))}
    data = options.index or home / "data"
    env = {
        **kept,
        "HOME": str(home),
        "QMD_DATA_DIR": str(data),
        "QMD_CONFIG_DIR": str(home / "config"),
        "QMD_NO_DAEMON": "1",
        "PYTHONPATH": str(REPO / "src"),
    }
    command = [sys.executable, "-m", "qmd", "mcp"]
    if options.index is None:
        subprocess.run(
            [sys.executable, "-m", "qmd", "add", str(options.corpus), "--name", "corpus"], env=env, check=True
        )
    peer: list[str] = []
    if options.peer is not None:
        peer = ["node", str(options.peer / "dist" / "cli" / "qmd.js")]
        subprocess.run(
            [*peer, "collection", "add", str(options.corpus), "--name", "corpus"], env=env, check=True
        )
        peer.append("mcp")
    ours, theirs = Figures(), Figures()
    measure(command, env, Figures(), ours=True)  # warms the file cache
    server = Server(command, env)
    server.ask("initialize", HELLO)
    held = server.tool("status")["structuredContent"]
    server.end()
    corpus = {
        "documents": held["totalDocuments"],
        "chunks": held["chunks"],
        "without_vector": held["needsEmbedding"],
    }
    print(corpus)
    for _ in range(REPEATS):
        measure(command, env, ours, ours=True)
        sdk_import(ours)
        if peer:
            measure(peer, env, theirs, ours=False)
    told = theirs.spreads()
    print(f"{'':48} {'QMD':>24} {'original':>24}")
    for name, spread in ours.spreads().items():
        print(f"{name:48} {spread!s:>24} {told.get(name, '-')!s:>24}")
    if options.save:
        figures = {"qmd": ours.spreads(), "original": told, "corpus": corpus}
        append_result("mcp_serving", figures, ["mcp"])


if __name__ == "__main__":
    main()
