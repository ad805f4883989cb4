"""`python -m qmd` as a process on a small real folder: the whole way, signals, terminals, completion."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

NOTES = {
    "travel/lisbon.md": "# Lisbon in spring\n\nTake tram 28 up to the castle.\n\n## Food\n\nCustard tarts.\n",
    "travel/kyoto.md": "---\ntags: [travel, japan]\n---\n# Kyoto\n\nTemples, gardens and a night market.\n",
    "work/passport.md": "# Papers\n\nRenewing a passport takes six weeks; bring two photographs.\n",
    "work/権限.md": "# 権限\n\nファイルの権限を変更する方法は chmod です。\n",
    "code/sort.py": "def quick_sort(items):\n    return sorted(items)\n",
    "evil.md": "# Evil\n\nsteering \x1b[31mred\x1b[0m \u202etext\n",
    "long.md": "# Long\n\n" + "".join(f"Paragraph {n} of many paragraphs.\n\n" for n in range(300)),
    "secret/id_rsa": "private",
}


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("QMD_", "XDG_", "NO_COLOR", "COVERAGE"))}
    return kept | {"HOME": str(home), "PYTHONPATH": str(SOURCE), "TERM": "xterm-256color"} | more


Call = Callable[..., subprocess.CompletedProcess[str]]


def caller(home: Path, cwd: Path) -> Call:
    def call(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qmd", *arguments],
            env=environment(home, **more),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    return call


def write_notes(folder: Path) -> None:
    for name, text in NOTES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an indexed folder `notes`; the tests that use it only read."""
    home = tmp_path_factory.mktemp("home")
    write_notes(home / "notes")
    said = caller(home, home)("add", str(home / "notes"))
    assert said.returncode == 0, said.stderr
    return home


@pytest.fixture
def qmd_in(home: Path) -> Call:
    return caller(home, home)


@pytest.fixture
def fresh(tmp_path: Path) -> tuple[Path, Call]:
    """A home of one's own, with the notes written and nothing indexed."""
    write_notes(tmp_path / "notes")
    return tmp_path, caller(tmp_path, tmp_path)


# ---- the whole way
@pytest.mark.parametrize("way", ["search", "query", "vsearch"])
def test_finds(qmd_in: Call, way: str) -> None:
    said = qmd_in(way, "renewing a passport", "--json", "-n", "3")
    assert said.returncode == 0, said.stderr
    hits = json.loads(said.stdout)
    assert hits[0]["file"] == "qmd://notes/work/passport.md"
    assert {"docid", "score", "file", "line", "title", "snippet", "collection"} <= set(hits[0])
    assert len(hits) <= 3
    assert "\x1b" not in said.stdout


def test_finds_japanese(qmd_in: Call) -> None:
    assert (
        json.loads(qmd_in("search", "権限を変更", "--json").stdout)[0]["file"] == "qmd://notes/work/権限.md"
    )


@pytest.mark.parametrize("format", ["cli", "json", "jsonl", "csv", "md", "xml", "files"])
def test_every_format_names_the_document(qmd_in: Call, format: str) -> None:
    said = qmd_in("search", "tram", "--format", format)
    assert (said.returncode, said.stderr) == (0, "")
    assert "qmd://notes/travel/lisbon.md" in said.stdout


def test_a_hit_can_be_read_by_each_of_its_names(qmd_in: Call) -> None:
    hit = json.loads(qmd_in("search", "tram", "--json").stdout)[0]
    assert "Take tram 28" in hit["snippet"]
    texts = {
        qmd_in("get", name, "--raw").stdout
        for name in (hit["docid"], hit["file"], hit["file"].removeprefix("qmd://"))
    }
    assert texts == {NOTES["travel/lisbon.md"]}
    numbered = qmd_in("get", f"{hit['file']}:{hit['line']}:1").stdout.splitlines()
    assert numbered[0].startswith(f"{hit['file']}  {hit['docid']}  lines {hit['line']}-{hit['line']} of")
    assert numbered[-1].startswith(f"{hit['line']}: ")
    around = json.loads(qmd_in("search", "tram", "--context-lines", "0", "--json").stdout)[0]
    assert around["snippet"] == NOTES["travel/lisbon.md"].splitlines()[hit["line"] - 1]


def test_line_numbers_of_snippets_are_those_of_the_file(qmd_in: Call) -> None:
    for query, name in (
        ("tram", "travel/lisbon.md"),
        ("custard", "travel/lisbon.md"),
        ("photographs", "work/passport.md"),
    ):
        hit = json.loads(qmd_in("search", query, "--line-numbers", "--json").stdout)[0]
        lines = NOTES[name].splitlines()
        for line in hit["snippet"].splitlines():
            number, _, text = line.partition(": ")
            if text and number.isdigit():
                assert lines[int(number) - 1] == text


def test_multi_get(qmd_in: Call) -> None:
    found = json.loads(qmd_in("multi-get", "notes/travel/*.md", "--json").stdout)
    assert sorted(f["file"] for f in found) == ["qmd://notes/travel/kyoto.md", "qmd://notes/travel/lisbon.md"]
    ids = ",".join(f["docid"] for f in found)
    assert json.loads(qmd_in("multi-get", ids, "--json").stdout) == found


def test_conditions(qmd_in: Call) -> None:
    def files(*options: str) -> list[str]:
        said = qmd_in("search", "paragraph OR temples tram passport sorted", "--json", "--all", *options)
        assert said.returncode == 0, said.stderr
        return sorted({h["file"].removeprefix("qmd://notes/") for h in json.loads(said.stdout)})

    assert "travel/kyoto.md" in files()
    assert files("--path", "work/*") == ["work/passport.md"]
    assert files("--tag", "japan") == ["travel/kyoto.md"]
    assert files("--type", "code") == ["code/sort.py"]
    japanese = qmd_in("search", "権限", "--lang", "ja", "--files").stdout
    assert "qmd://notes/work/権限.md" in japanese
    assert qmd_in("search", "権限", "--lang", "en", "--json").stdout == "[]\n"
    assert files("--before", "1990-01-01") == []


def test_unknown_collection_is_an_error(qmd_in: Call) -> None:
    said = qmd_in("search", "tram", "-c", "nope")
    assert said.returncode == 3
    assert "nope" in said.stderr
    assert "Traceback" not in said.stderr


def test_ls_and_status(qmd_in: Call, home: Path) -> None:
    assert "qmd://notes/" in qmd_in("ls").stdout
    listed = qmd_in("ls", "notes").stdout
    assert "qmd://notes/travel/lisbon.md" in listed
    assert "id_rsa" not in listed
    state = json.loads(qmd_in("status", "--json").stdout)
    assert state["documents"] == len(NOTES) - 1
    assert state["collections"][0]["root"] == str(home / "notes")
    assert str(home) in qmd_in("status").stdout


def test_check(qmd_in: Call) -> None:
    results = json.loads(qmd_in("check", "--json").stdout)
    assert results
    assert not [r for r in results if r["state"] == "problem"]


def test_check_on_a_bare_machine_makes_no_index(fresh: tuple[Path, Call]) -> None:
    home, qmd = fresh
    said = qmd("check", "--json")
    assert said.returncode == 0, said.stderr
    states = {r["name"]: r for r in json.loads(said.stdout)}
    assert states["database"]["state"] == "warning"
    assert "qmd add" in states["database"]["remedy"]
    assert not (home / ".local").exists()


def test_life_of_an_index(fresh: tuple[Path, Call]) -> None:
    home, qmd = fresh
    notes = home / "notes"
    said = qmd("add", "notes", "--no-embed", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["update"]["added"] == len(NOTES) - 1
    degraded = json.loads(qmd("query", "tram", "--json").stdout)
    assert degraded[0]["degraded"]
    (notes / "new.md").write_text("# Zeppelin\n\nAn airship.\n")
    (notes / "travel" / "lisbon.md").unlink()
    told = json.loads(qmd("update", "--json").stdout)["notes"]
    assert (told["added"], told["removed"]) == (1, 1)
    assert json.loads(qmd("search", "airship", "--json").stdout)[0]["title"] == "Zeppelin"
    assert json.loads(qmd("search", "tram", "--json").stdout) == []
    assert qmd("embed").returncode == 0
    assert "degraded" not in json.loads(qmd("query", "airship", "--json").stdout)[0]
    assert qmd("context", "add", "qmd://notes/work", "Papers of mine").returncode == 0
    assert json.loads(qmd("search", "passport", "--json").stdout)[0]["context"] == "Papers of mine"
    assert qmd("context", "rm", "notes/work").returncode == 0
    assert qmd("collection", "rename", "notes", "journal").returncode == 0
    assert json.loads(qmd("search", "passport", "--json").stdout)[0]["collection"] == "journal"
    assert qmd("collection", "exclude", "journal").returncode == 0
    assert json.loads(qmd("search", "passport", "--json").stdout) == []
    assert json.loads(qmd("search", "passport", "--json", "-c", "journal").stdout)
    assert qmd("cleanup").returncode == 0
    assert qmd("collection", "remove", "journal").returncode == 0
    assert json.loads(qmd("collection", "list", "--json").stdout) == []


def test_named_indexes_and_folders_by_flag(fresh: tuple[Path, Call]) -> None:
    home, qmd = fresh
    assert qmd("add", "notes", "--no-embed", "--index", "other", "--data-dir", "d").returncode == 0
    assert (home / "d" / "other.sqlite").is_file()
    assert json.loads(
        qmd("search", "tram", "--json", "--index", "other", QMD_DATA_DIR=str(home / "d")).stdout
    )
    missing = qmd("search", "tram", "--data-dir", "d")
    assert missing.returncode == 3
    assert "qmd add" in missing.stderr
    assert not (home / "d" / "index.sqlite").exists(), "a search makes no index"


def test_project_index(fresh: tuple[Path, Call]) -> None:
    home, _ = fresh
    notes = home / "notes"
    qmd = caller(home, notes)
    assert qmd("init").returncode == 0
    assert qmd("add", ".", "--no-embed").returncode == 0
    assert (notes / ".qmd" / "index.sqlite").is_file()
    deeper = caller(home, notes / "travel")
    assert json.loads(deeper("search", "tram", "--json").stdout)
    assert not [e for e in json.loads(qmd("ls", "notes", "--json").stdout) if ".qmd" in e["path"]]
    assert not (home / ".local").exists()


def test_import_of_the_original(fresh: tuple[Path, Call]) -> None:
    home, qmd = fresh
    original = home / ".config" / "qmd" / "index.yml"
    original.parent.mkdir(parents=True)
    original.write_text(
        f"global_context: All of it\ncollections:\n  mine:\n    path: {home}/notes\n    pattern: '**/*.md'\n"
        "    context:\n      /travel: Trips\n"
    )
    told = json.loads(qmd("collection", "import", "--json").stdout)
    assert told == {"collections": ["mine"]}
    assert qmd("update").returncode == 0
    hit = json.loads(qmd("search", "tram", "--json").stdout)[0]
    assert hit["file"] == "qmd://mine/travel/lisbon.md"
    assert "Trips" in hit["context"]
    assert json.loads(qmd("search", "quick_sort", "--json").stdout) == []


# ---- pipes, signals, terminals
@pytest.mark.parametrize(
    "line", ["search tram", "get notes/long.md", "--help", "completion bash", "status --json"]
)
def test_a_closed_pipe_is_quiet(home: Path, line: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "qmd", *line.split()],
        env=environment(home),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_streams_that_are_not_there_or_not_utf8_break_nothing(home: Path) -> None:
    def run(line: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        command = ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m qmd {line}"]
        return subprocess.run(command, env=environment(home, **more), cwd=home, capture_output=True)

    shown = run("query --help", PYTHONIOENCODING="cp1252")
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b'qmd query "???' in shown.stdout
    assert run("search tram >&-").returncode == 0
    assert run("search nothinglikethis 2>&-").returncode == 0
    assert run("status <&- >&- 2>&-").returncode == 0


class Screen:
    """A process on a pseudo terminal of its own."""

    def __init__(self, command: Sequence[str], home: Path, cwd: Path, **more: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execvpe(command[0], list(command), environment(home, **more))
        self.shown = ""

    def read_until(self, pattern: str, timeout_s: float = 60.0) -> str:
        end = time.monotonic() + timeout_s
        while not re.search(pattern, self.shown):
            assert time.monotonic() < end, f"{pattern!r} never came: {self.shown[-2000:]!r}"
            if select.select([self.fd], [], [], 0.2)[0] and not self._more():
                break
        return self.shown

    def _more(self) -> bool:
        try:
            data = os.read(self.fd, 65_536)
        except OSError:
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def finish(self, timeout_s: float = 60.0) -> int:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.1)[0]:
                self._more()
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                while select.select([self.fd], [], [], 0)[0] and self._more():
                    pass
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"did not end: {self.shown[-2000:]!r}")


@pytest.fixture
def on_screen(home: Path) -> Callable[..., str]:
    def run(*arguments: str, **more: str) -> str:
        screen = Screen([sys.executable, "-m", "qmd", *arguments], home, home, **more)
        assert screen.finish() == 0, screen.shown
        return screen.shown

    return run


def test_a_terminal_gets_colour_and_no_escape_from_a_document(on_screen: Callable[..., str]) -> None:
    shown = on_screen("search", "steering", "--no-links")
    assert "\x1b[36mqmd://notes/evil.md" in shown
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown
    for format in ("--json", "--md", "--csv", "--xml", "--files"):
        assert "\x1b" not in on_screen("search", "steering", format)
    assert "\x1b[31m" not in on_screen("get", "notes/evil.md")
    assert "\x1b" not in on_screen("get", "notes/evil.md", "--raw")
    assert "\x1b" not in on_screen("search", "steering", NO_COLOR="1")


def test_links_on_terminals_that_link(on_screen: Callable[..., str], home: Path) -> None:
    assert "\x1b]8;;" not in on_screen("search", "tram")
    shown = on_screen("search", "tram", TERM_PROGRAM="vscode")
    assert f"\x1b]8;;vscode://file/{home}/notes/travel/lisbon.md:" in shown
    assert "\x1b]8;;" not in on_screen("search", "tram", "--no-links", TERM_PROGRAM="vscode")


def test_ctrl_c_keeps_the_text_and_says_how_to_go_on(fresh: tuple[Path, Call]) -> None:
    home, qmd = fresh
    for n in range(60):
        (home / "notes" / f"copy{n}.md").write_text(NOTES["long.md"].replace("many", f"copy {n}"))
    screen = Screen([sys.executable, "-m", "qmd", "add", "notes"], home, home)
    screen.read_until(r"Searching by keyword works now")
    assert json.loads(qmd("search", "tram", "--json").stdout), "the text is found while vectors are made"
    screen.read_until(r"of [\d,]+ \(\d+%\)")
    screen.send("\x03")
    assert screen.finish() == 130
    assert "`qmd embed` goes on" in screen.shown
    assert "Traceback" not in screen.shown
    assert json.loads(qmd("search", "tram", "--json").stdout)


# ---- completion, start-up
@pytest.fixture(scope="module")
def bash(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    binaries = tmp_path_factory.mktemp("bin")
    (binaries / "qmd").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m qmd "$@"\n')
    (binaries / "qmd").chmod(0o755)
    return environment(home, PATH=f"{binaries}:{os.environ['PATH']}")


def completed(env: dict[str, str], line: str) -> list[str]:
    """What bash's own completion offers at the end of a line."""
    words = line.split(" ")
    script = f"""
        eval "$(qmd completion bash)"
        COMP_WORDS=({" ".join(shlex.quote(w) for w in words)})
        COMP_CWORD={len(words) - 1}
        function=$(complete -p qmd | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function qmd
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    said = subprocess.run(
        ["bash", "--norc", "-c", script], env=env, capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr
    return said.stdout.split()


@pytest.mark.parametrize(
    "line, offered",
    [
        ("qmd sea", ["search"]),
        ("qmd collection re", ["remove", "rename"]),
        ("qmd search --min", ["--min-score"]),
        ("qmd search --format j", ["json", "jsonl"]),
        ("qmd search -c no", ["notes"]),
        ("qmd get notes/tr", ["notes/travel/kyoto.md", "notes/travel/lisbon.md"]),
        ("qmd --index ", ["index"]),
    ],
)
def test_bash_completes(bash: dict[str, str], line: str, offered: list[str]) -> None:
    assert sorted(completed(bash, line)) == offered


def test_tab_in_a_real_shell(bash: dict[str, str], home: Path) -> None:
    screen = Screen(["bash", "--norc", "-i"], home, home, PATH=bash["PATH"], PS1="$ ")
    screen.send('eval "$(qmd completion bash)"; echo rea""dy\n')
    screen.read_until("ready")
    screen.send("qmd upd\t")
    screen.read_until("qmd update ")
    screen.send("--help\n")
    assert "Read new, changed and deleted files" in screen.read_until("Read new")
    screen.send("exit\n")
    assert screen.finish() == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(qmd_in: Call, shell: str) -> None:
    said = qmd_in("completion", shell)
    assert said.returncode == 0
    assert "_QMD_COMPLETE" in said.stdout


def loaded_by(home: Path, *arguments: str) -> set[str]:
    code = f"""
import sys
from qmd.serve.cli.app import run
code = run({list(arguments)!r})
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr
    return set(said.stderr.split())


def test_help_and_search_load_nothing_heavy(home: Path) -> None:
    heavy = {"numpy", "onnxruntime", "onnx", "torch", "tokenizers", "cmarkgfm", "huggingface_hub", "yaml"}
    asked = loaded_by(home, "--help")
    assert "qmd.serve.cli.app" in asked
    assert not asked & (heavy | {"sqlite3", "msgspec", "qmd.index", "qmd.config"})
    assert not loaded_by(home, "search", "tram") & heavy


def test_version(qmd_in: Call) -> None:
    from qmd import __version__

    assert qmd_in("--version").stdout == qmd_in("-v").stdout == f"qmd {__version__}\n"


def test_a_bug_ends_in_one_line(home: Path) -> None:
    code = (
        "import sys; sys.argv = ['qmd', 'status']; import qmd.index\n"
        "def broken(**options): raise RuntimeError('boom')\n"
        "qmd.index.open = broken\n"
        "from qmd.serve.cli import main; main()"
    )

    def run(**more: str) -> Any:
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment(home, **more),
            capture_output=True,
            text=True,
            timeout=60,
        )

    said = run()
    assert said.returncode == 1
    assert said.stderr.startswith("qmd: internal error: RuntimeError: boom.")
    assert "QMD_DEBUG=1" in said.stderr
    assert "Traceback" not in said.stderr
    assert "Traceback" in run(QMD_DEBUG="1").stderr
