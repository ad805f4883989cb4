"""Every other command: what it asks the Python door, what it says, with which exit code it ends."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from qmd.errors import ModelError, ModelMismatch, NotFound, StoreBusy, UsageError
from qmd.serve.cli.screen import Style


# ---- get, multi-get, ls
def test_get_numbers_lines_and_names_the_document(fake: Any, qmd: Any) -> None:
    said = qmd("get", "notes/travel/lisbon.md", "--from", "5", "-l", "2").out
    assert said == (
        "qmd://notes/travel/lisbon.md  #abc123  lines 5-6 of 40\n"
        "Context: Trips, 2015 to today\n---\n\n5: line 5\n6: line 6\n"
    )
    assert fake.asked("get") == {"from_line": 5, "max_lines": 2}


def test_get_whole_has_no_range_in_its_header(fake: Any, qmd: Any) -> None:
    lines = qmd("get", "#abc123", "--no-line-numbers").out.splitlines()
    assert lines[0] == "qmd://notes/travel/lisbon.md  #abc123"
    assert lines[-1] == "line 40"


def test_get_suffix_goes_to_the_door_as_it_is(fake: Any, qmd: Any) -> None:
    qmd("get", "qmd://notes/a.md:10:5")
    assert [args for name, args, _ in fake.calls if name == "get"] == [("qmd://notes/a.md:10:5",)]


def test_get_raw_is_the_bare_text(fake: Any, qmd: Any) -> None:
    assert qmd("get", "#abc123", "--raw", "-l", "2").out == "line 1\nline 2\n"


def test_get_json(fake: Any, qmd: Any) -> None:
    told = json.loads(qmd("get", "#abc123", "--from", "3", "-l", "1", "--json").out)
    assert told == {
        "docid": "#abc123",
        "file": "qmd://notes/travel/lisbon.md",
        "title": "Lisbon, in spring",
        "context": "Trips, 2015 to today",
        "collection": "notes",
        "line": 3,
        "end_line": 3,
        "lines": 40,
        "body": "line 3\n",
    }
    numbered = json.loads(qmd("get", "#abc123", "--from", "3", "-l", "1", "--json", "--line-numbers").out)
    assert numbered["body"].startswith("3: line 3")


def test_get_nowhere(fake: Any, qmd: Any) -> None:
    said = qmd("get", "nowhere")
    assert (said.code, said.out) == (3, "")
    assert said.err == "qmd: no document 'nowhere'. Near: notes/now.md.\n"


def test_get_full_path(fake: Any, qmd: Any) -> None:
    assert qmd("get", "x", "--full-path").out.startswith(f"{fake.root}/travel/lisbon.md  #abc123")


def test_multi_get_says_what_it_leaves_out(fake: Any, qmd: Any) -> None:
    said = qmd("multi-get", "notes/*", "--json", "-l", "7")
    shown, left_out = json.loads(said.out)
    assert shown["body"] == "line 2\nline 3\n"
    assert left_out == {
        "file": "qmd://notes/big.md",
        "skipped": True,
        "reason": "70,000 bytes, limit 65,536",
    }
    assert fake.asked("multi_get") == {"max_lines": 7, "max_bytes": 65_536}
    assert "qmd://notes/big.md: not shown: 70,000 bytes" in qmd("multi-get", "notes/*").out
    rows = list(csv.DictReader(io.StringIO(qmd("multi-get", "notes/*", "--csv").out)))
    assert [row["skipped"] for row in rows] == ["false", "true"]
    assert "> 70,000 bytes" in qmd("multi-get", "notes/*", "--md").out
    assert qmd("multi-get", "notes/*", "--files").out == (
        '#abc123,qmd://notes/travel/lisbon.md,"Trips, 2015 to today"\nqmd://notes/big.md,[SKIPPED]\n'
    )


def test_multi_get_of_nothing(fake: Any, qmd: Any) -> None:
    assert qmd("multi-get", "none/*").code == 3


def test_ls(fake: Any, qmd: Any) -> None:
    assert "qmd://notes/" in qmd("ls").out
    said = qmd("ls", "notes").out.splitlines()
    assert said[0] == "#abc123  1,234  2023-11-14  qmd://notes/travel/lisbon.md"
    (first, _) = json.loads(qmd("ls", "notes", "--json").out)
    assert first["size_bytes"] == 1234
    assert first["modified"] == "2023-11-14T22:13:20Z"
    assert qmd("ls", "notes", "--files").out.splitlines()[1] == '#def456,"qmd://notes/a, b.md"'
    assert qmd("ls", "empty").code == 3


# ---- collections and contexts
def test_collection_list(fake: Any, qmd: Any) -> None:
    lines = qmd("collection", "list").out.splitlines()
    assert lines[0].split() == ["qmd://notes/", "2", "documents", str(fake.root)]
    assert lines[1].endswith("(only when named, folder is not there)")
    assert [c["name"] for c in json.loads(qmd("collection", "ls", "--json").out)] == ["notes", "archive"]


def test_collection_show(fake: Any, qmd: Any) -> None:
    said = qmd("collection", "show", "notes").out
    assert "Context /travel:" in said
    assert "Trips, 2015 to today" in said
    assert json.loads(qmd("collection", "info", "notes", "--json").out)["contexts"][0]["text"] == "Everything"


def test_colour_moves_no_column(fake: Any, qmd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = qmd("collection", "show", "notes").out
    monkeypatch.setattr("qmd.serve.cli.screen.style", lambda: Style(True))
    painted = qmd("collection", "show", "notes").out
    assert painted != plain
    assert re.sub(r"\x1b\[\d*m", "", painted) == plain


@pytest.mark.parametrize("verb", ["show", "remove", "include", "exclude"])
def test_unknown_collection_names_the_nearest(fake: Any, qmd: Any, verb: str) -> None:
    said = qmd("collection", verb, "note")
    assert said.code == 3
    assert "Did you mean 'notes'?" in said.err
    assert not any(name.endswith("_collection") for name, _, _ in fake.calls)


@pytest.mark.parametrize(
    "line, call, args",
    [
        ("collection remove notes", "remove_collection", ("notes",)),
        ("collection rm notes", "remove_collection", ("notes",)),
        ("collection rename notes journal", "rename_collection", ("notes", "journal")),
        ("collection mv notes journal", "rename_collection", ("notes", "journal")),
        ("collection include archive", "include_collection", ("archive",)),
        ("collection exclude notes", "exclude_collection", ("notes",)),
        ("collection import", "import_original", (None,)),
    ],
)
def test_collection_verbs(fake: Any, qmd: Any, line: str, call: str, args: tuple[Any, ...]) -> None:
    said = qmd(*line.split())
    assert said.code == 0, said.err
    assert said.out
    assert (call, args, {}) in fake.calls
    json.loads(qmd(*line.split(), "--json").out)


def test_collection_add_reads_the_text_and_tells_the_next_step(fake: Any, qmd: Any) -> None:
    said = qmd(
        "collection", "add", str(fake.root), "--name", "n", "--mask", "*.md,{a,b}/*.txt", "--ignore", "x"
    )
    assert fake.asked("add_collection") == {
        "name": "n",
        "patterns": ("*.md", "{a,b}/*.txt"),
        "ignore": ("x",),
    }
    assert fake.opened["create"]
    assert said.out.startswith("n: 3 added, 9 unchanged\n")
    assert "`qmd embed`" in said.err


def test_missing_folder_is_a_usage_error(fake: Any, qmd: Any) -> None:
    for verb in (("add",), ("collection", "add")):
        said = qmd(*verb, "/no/such/folder")
        assert said.code == 2
        assert "/no/such/folder" in said.err


def test_context(fake: Any, qmd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert qmd("context", "add", "qmd://notes/travel", "Trips").out == "qmd://notes/travel: Trips\n"
    assert qmd("context", "list").out == "/  Everything\nqmd://notes/travel  Trips, 2015 to today\n"
    qmd("context", "add", "/", "All")
    monkeypatch.chdir(fake.root / "travel")
    qmd("context", "add", "Here")
    qmd("context", "add", "..", "Above")
    qmd("context", "add", str(fake.root / "travel"), "Absolute")
    assert [args for name, args, _ in fake.calls if name == "add_context"] == [
        ("qmd://notes/travel", "Trips"),
        ("/", "All"),
        ("notes/travel", "Here"),
        ("notes", "Above"),
        ("notes/travel", "Absolute"),
    ]
    qmd("context", "rm", "notes/travel")
    assert ("remove_context", ("notes/travel",), {}) in fake.calls


def test_context_outside_every_collection(
    fake: Any, qmd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said = qmd("context", "add", "Here")
    assert said.code == 3
    assert "lies in no collection" in said.err


# ---- add, update, embed
def test_add_indexes_first_then_embeds(fake: Any, qmd: Any) -> None:
    said = qmd("add", str(fake.root))
    assert [name for name, _, _ in fake.calls] == ["add", "embed", "close"]
    assert fake.asked("add")["embed"] is False
    assert said.out.splitlines() == [
        "notes: 3 added, 9 unchanged",
        "  8 skipped: 7 binary, 1 secret",
        "40 texts embedded with all-MiniLM-L6-v2 in 2 s, 20 a second.",
    ]
    assert "Searching by keyword works now" in said.err


def test_add_without_vectors(fake: Any, qmd: Any) -> None:
    told = json.loads(qmd("add", str(fake.root), "--no-embed", "--json").out)
    assert told["embed"] is None
    assert told["update"]["added"] == 3
    assert all(name != "embed" for name, _, _ in fake.calls)


def test_add_without_a_model_still_indexes_and_says_so(fake: Any, qmd: Any, no_model: Any) -> None:
    fake.raises["embed"] = no_model
    said = qmd("add", str(fake.root))
    assert said.code == 0
    assert "Note: degraded: vectors: the model file is not there" in said.err
    assert json.loads(qmd("add", str(fake.root), "--json").out)["degraded"] == [f"vectors: {no_model}"]


def test_add_with_another_model_stops(fake: Any, qmd: Any) -> None:
    fake.raises["embed"] = ModelMismatch("another model. Run `qmd embed --model-changed`.")
    assert qmd("add", str(fake.root)).code == 1


@pytest.mark.parametrize(
    "line, raising, hint",
    [
        ("add .", "add", "`qmd add .` goes on"),
        ("add .", "embed", "`qmd embed` goes on"),
        ("update", "update", "`qmd update` goes on"),
        ("embed", "embed", "`qmd embed` goes on"),
    ],
)
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    fake: Any, qmd: Any, line: str, raising: str, hint: str
) -> None:
    fake.raises[raising] = KeyboardInterrupt()
    said = qmd(*line.split())
    assert said.code == 130
    assert hint in said.err
    assert fake.calls[-1][0] == "close"


@pytest.mark.parametrize("line", ["add .", "embed"])
def test_interrupted_report_is_130(fake: Any, qmd: Any, line: str) -> None:
    fake.embedding = dataclasses.replace(fake.embedding, interrupted=True, remaining=9)
    said = qmd(*line.split())
    assert said.code == 130
    assert "9 are still to do" in said.out


def test_update(fake: Any, qmd: Any) -> None:
    said = qmd("update", "notes", "archive", "--force")
    assert [args for name, args, _ in fake.calls if name == "update"] == [(("notes", "archive"),)]
    assert fake.asked("update")["force"] is True
    assert "key.pem" not in said.out
    assert "    key.pem: secret" in qmd("update", "--skipped").out
    assert "7 texts have no vector yet" in said.err
    assert json.loads(qmd("update", "--json").out)["notes"]["skipped"][-1] == {
        "path": "key.pem",
        "reason": "secret",
    }


def test_embed(fake: Any, qmd: Any) -> None:
    assert qmd("embed", "--model-changed").code == 0
    assert fake.asked("embed")["model_changed"] is True
    fake.embedding = dataclasses.replace(fake.embedding, embedded=0)
    assert qmd("embed").out == "All vectors are there (all-MiniLM-L6-v2).\n"
    assert json.loads(qmd("embed", "--json").out)["model"] == "all-MiniLM-L6-v2"


# ---- status, check, cleanup, init
def test_status(fake: Any, qmd: Any) -> None:
    said = qmd("status").out
    assert "1,002 documents, 4,000 chunks" in said
    assert "7 texts have no vector yet" in said
    assert re.search(r"old-model \(\d+d\): 10 vectors of an unused model", said)
    assert "folder is not there" in said
    assert json.loads(qmd("status", "--json").out)["pending"] == 7


def test_check_fails_only_on_a_problem(fake: Any, qmd: Any) -> None:
    said = qmd("check")
    assert said.code == 0
    assert "warning  vectors: 7 texts have none\n         Run `qmd embed`.\n" in said.out
    fake.checks.append(dataclasses.replace(fake.checks[0], name="database", state="problem"))
    assert qmd("check").code == 1
    assert qmd("doctor", "--json").code == 1


def test_cleanup(fake: Any, qmd: Any) -> None:
    assert qmd("cleanup").out == (
        "Size before: 2.1 MB\nSize after: 123.5 kB\nOrphan vectors: 3,000\nKeyword rebuilt: yes\n"
        "Notes: none\n"
    )
    assert json.loads(qmd("cleanup", "--json").out)["size_after"] == 123_456


def test_init(qmd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qmd.config import Config, find_places, load_config

    monkeypatch.chdir(tmp_path)
    assert "Made" in qmd("init").out
    config = tmp_path / ".qmd" / "config.yaml"
    assert load_config(config) == Config()
    assert find_places().project == tmp_path / ".qmd"
    config.write_text("search: {limit: 3}\n")
    assert json.loads(qmd("init", "--json").out)["created"] is False
    assert config.read_text() == "search: {limit: 3}\n"
    ignored = (tmp_path / ".qmd" / ".gitignore").read_text().splitlines()
    assert ignored == ["*", "!.gitignore", "!config.yaml"]


@pytest.mark.parametrize("named", [False, True])
def test_a_daemon_trusts_a_project_s_configuration_no_more_than_its_starter(
    qmd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    from types import SimpleNamespace

    from qmd import index

    for name in ("QMD_CONFIG_DIR", "QMD_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    index.open(tmp_path / ".qmd" / "index.sqlite").close()
    monkeypatch.chdir(tmp_path)
    started: list[str] = []

    def start(arguments: list[str], spot: object) -> SimpleNamespace:
        started.extend(arguments)
        return SimpleNamespace(url="http://127.0.0.1:1", pid=1)

    monkeypatch.setattr("qmd.serve.daemon.start", start)
    flag = ["--config-dir", str(tmp_path / ".qmd")]
    assert qmd("serve", "--daemon", *(flag if named else [])).code == 0
    assert ("--config-dir" in started) == named
    assert started[started.index("--data-dir") + 1] == str(tmp_path / ".qmd")


def test_init_refuses_the_home_folder(qmd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert qmd("init").code == 2
    assert not (tmp_path / ".qmd").exists()


# ---- failures
@pytest.mark.parametrize(
    "error, code", [(StoreBusy("busy. Wait."), 1), (NotFound("no."), 3), (UsageError("no."), 2)]
)
def test_errors_are_one_message_or_one_line_of_json(fake: Any, qmd: Any, error: Any, code: int) -> None:
    fake.raises["status"] = error
    said = qmd("status")
    assert (said.code, said.out, said.err) == (code, "", f"qmd: {error}\n")
    said = qmd("status", "--json")
    assert said.out == ""
    assert json.loads(said.err) == {
        "error": {"type": type(error).__name__, "message": str(error), "exit_code": code}
    }


def test_debug_shows_the_traceback(fake: Any, qmd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMD_DEBUG", "1")
    fake.raises["status"] = StoreBusy("busy. Wait.")
    assert "Traceback (most recent call last)" in qmd("status").err


def test_ctrl_c_that_a_library_turned_into_its_own_error(fake: Any, qmd: Any) -> None:
    failed = ImportError("initialization failed")
    failed.__context__ = KeyboardInterrupt()
    fake.raises["status"] = ModelError("no model")
    fake.raises["status"].__cause__ = failed
    assert qmd("status").code == 130
    fake.raises["status"] = failed
    assert qmd("status").code == 130
    fake.raises["status"] = ImportError("truly")
    with pytest.raises(ImportError):
        qmd("status")


@pytest.mark.parametrize("line", ["--idle nan", "--idle -1", "--deadline inf", "--deadline 0"])
def test_times_of_the_daemon_are_times(fake: Any, qmd: Any, line: str) -> None:
    said = qmd("serve", "--daemon", *line.split())
    assert said.code == 2
    assert line.split()[0] in said.err


def test_an_error_from_the_system_names_the_file(fake: Any, qmd: Any) -> None:
    fake.raises["status"] = PermissionError(13, "Permission denied", "/data/index.sqlite")
    assert qmd("status").err == "qmd: Permission denied: /data/index.sqlite\n"


@pytest.mark.parametrize(
    "line, near",
    [
        ("serch x", "search"),
        ("collection lst", "list"),
        ("help serch", "search"),
        ("help collection lst", "list"),
        ("search x --jsn", "--json"),
        ("get x --form 3", "--from"),
        ("embed --model-change", "--model-changed"),
    ],
)
def test_unknown_words_are_errors_that_name_the_nearest(fake: Any, qmd: Any, line: str, near: str) -> None:
    said = qmd(*line.split())
    assert said.code == 2
    assert near in said.err
    assert fake.calls == []


def test_a_leading_minus_word_gets_its_remedy(fake: Any, qmd: Any) -> None:
    said = qmd("search", "wanted", "-unwanted", "--json")
    assert "quote the whole query" in json.loads(said.err)["error"]["hint"]
    assert qmd("search", "wanted -unwanted").code == 0


def test_global_options_stand_before_or_after_the_command(fake: Any, qmd: Any, tmp_path: Path) -> None:
    qmd("--index", "work", "--data-dir", str(tmp_path / "d"), "search", "x")
    before = dict(fake.opened)
    qmd("search", "x", "--index", "work", "--data-dir", str(tmp_path / "d"))
    assert before == fake.opened
    assert fake.opened["index"] == "work"
    assert fake.opened["places"].data_dir == tmp_path / "d"
    qmd("search", "x", "--config-dir", str(tmp_path / "c"))
    assert fake.opened["places"].config_dir == tmp_path / "c"


def test_broken_configuration_is_a_usage_error(fake: Any, qmd: Any, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("serch: {}\n")
    said = qmd("search", "x", "--config-dir", str(tmp_path))
    assert said.code == 2
    assert "Did you mean 'search'" in said.err
