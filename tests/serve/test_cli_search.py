"""What `search`, `vsearch` and `query` ask the Python door, and how they answer in every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from qmd.errors import NotFound
from qmd.types import Hits

GOLDEN = Path(__file__).parent / "golden"
FORMATS = ("cli", "json", "jsonl", "csv", "md", "xml", "files")
FIELDS = ["docid", "score", "file", "line", "title", "context", "snippet", "collection"]


@pytest.mark.parametrize("format", FORMATS)
def test_golden(fake: Any, qmd: Any, format: str) -> None:
    """Set QMD_WRITE_GOLDEN=1 to write the files anew, then read the difference."""
    said = qmd("search", "Lisbon", "--format", format).out
    file = GOLDEN / f"hits.{format}"
    if os.environ.get("QMD_WRITE_GOLDEN"):
        file.write_bytes(said.encode())
    assert said.encode() == file.read_bytes()


@pytest.mark.parametrize("format", FORMATS[1:])
def test_short_flags_are_the_long_ones(fake: Any, qmd: Any, format: str) -> None:
    assert qmd("search", "x", f"--{format}").out == qmd("search", "x", "--format", format).out


def test_last_format_wins(fake: Any, qmd: Any) -> None:
    assert qmd("search", "x", "--csv", "--json").out == qmd("search", "x", "--json").out
    assert qmd("search", "x", "--json", "--format", "csv").out == qmd("search", "x", "--csv").out
    assert qmd("search", "x", "--json", "--csv", "--json").out == qmd("search", "x", "--json").out
    assert qmd("search", "x", "--csv", "--format", "cli").out == qmd("search", "x").out


def test_json_hit(fake: Any, qmd: Any) -> None:
    first, second, third = json.loads(qmd("search", "x", "--json").out)
    assert list(first) == FIELDS
    assert first["docid"] == "#abc123"
    assert second["docid"] == "#def456"
    assert first["score"] == 0.8123
    assert "context" not in second
    assert third["file"] == "qmd://日本/caf\ufffd.md"


def test_every_machine_format_is_valid_utf8_and_parses(fake: Any, qmd: Any) -> None:
    for format in FORMATS:
        qmd("query", "x", "--format", format).out.encode("utf-8", "strict")
    lines = [json.loads(line) for line in qmd("query", "x", "--jsonl").out.splitlines()]
    assert lines == json.loads(qmd("query", "x", "--json").out)
    rows = list(csv.reader(io.StringIO(qmd("query", "x", "--csv").out)))
    assert rows[0] == ["docid", "score", "file", "title", "context", "line", "snippet"]
    assert {len(row) for row in rows} == {7}
    assert rows[1][6] == lines[0]["snippet"]
    tree = ElementTree.fromstring(qmd("query", "x", "--xml").out)
    assert [e.get("name") for e in tree] == [line["file"] for line in lines]
    assert tree[0].text is not None
    assert tree[0].text.strip() == lines[0]["snippet"]
    files = list(csv.reader(io.StringIO(qmd("query", "x", "--files").out)))
    assert [row[2] for row in files] == [line["file"] for line in lines]


def test_csv_runs_no_formula(fake: Any, qmd: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(qmd("search", "x", "--csv").out)))
    assert rows[1]["title"] == "'=cmd|' /C calc'!A0"
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row.values())


def test_xml_of_characters_that_xml_cannot_hold(fake: Any, qmd: Any) -> None:
    hit = dataclasses.replace(fake.hits[0], title='a\x00b\x1b"<\n>', snippet="x\x0by\ufffe ]]>")
    fake.hits = Hits((hit,))
    element = ElementTree.fromstring(qmd("search", "x", "--xml").out)[0]
    assert element.get("title") == 'a\ufffdb\ufffd"<\n>'
    assert element.text == "\nx\ufffdy\ufffd ]]>\n"


def test_nothing_from_a_document_steers_the_terminal(fake: Any, qmd: Any) -> None:
    said = qmd("search", "x").out
    assert "before red link gnp.exe bell" in said
    assert not any(c in said for c in "\x1b\x07\u202e\u202c")


def test_machine_formats_keep_the_text_as_it_is(fake: Any, qmd: Any) -> None:
    assert json.loads(qmd("search", "x", "--json").out)[1]["snippet"] == fake.hits[1].snippet


def test_every_flag_reaches_the_door_under_its_own_name(fake: Any, qmd: Any) -> None:
    flags = "-n 3 -c notes -c archive --min-score 0.3 --path a/*.md --tag x --tag y --after 2024-01-01"
    flags += " --before 2024-02-01 --all --full --explain --type markdown --lang en --title plan"
    for way in ("search", "vsearch", "query"):
        qmd(way, "two", "words", *flags.split())
        assert fake.asked(way) == {
            "limit": 3,
            "collections": ("notes", "archive"),
            "min_score": 0.3,
            "path": "a/*.md",
            "tags": ("x", "y"),
            "title": "plan",
            "type": "markdown",
            "lang": "en",
            "after": "2024-01-01",
            "before": "2024-02-01",
            "all": True,
            "full": True,
            "explain": True,
        }
        assert [args for name, args, _ in fake.calls if name == way][-1] == ("two words",)


def test_what_was_not_said_is_left_to_the_door(fake: Any, qmd: Any) -> None:
    qmd("search", "x")
    assert fake.asked("search") == {}
    assert not fake.opened["create"]


def test_full_gives_body_in_place_of_snippet(fake: Any, qmd: Any) -> None:
    (first, *_) = json.loads(qmd("search", "x", "--full", "--json").out)
    assert first["body"].startswith("whole\n")
    assert "snippet" not in first
    header = qmd("search", "x", "--full", "--csv").out.splitlines()[0]
    assert header == "docid,score,file,title,context,line,body"


def test_line_numbers_count_from_the_place(fake: Any, qmd: Any) -> None:
    (first, *_) = json.loads(qmd("search", "x", "--line-numbers", "--json").out)
    assert first["snippet"].splitlines()[0].startswith("12: Take")
    (first, *_) = json.loads(qmd("search", "x", "--full", "--line-numbers", "--json").out)
    assert first["body"].startswith("1: whole\n2: ")


def test_context_lines_are_read_around_the_place(fake: Any, qmd: Any) -> None:
    fake.hits = Hits((fake.hits[0], dataclasses.replace(fake.hits[0], line=2)))
    hits = json.loads(qmd("search", "x", "--context-lines", "3", "--json", "--line-numbers").out)
    assert [line.split(":")[0] for line in hits[0]["snippet"].splitlines()] == [str(n) for n in range(9, 16)]
    assert [line.split(":")[0] for line in hits[1]["snippet"].splitlines()] == [str(n) for n in range(1, 6)]
    assert hits[0]["line"] == 12
    assert qmd("search", "x", "--context-lines", "3", "--full").code == 2


def test_explain_is_shown(fake: Any, qmd: Any) -> None:
    hit = dataclasses.replace(fake.hits[0], explain={"bm25": 7.25, "ranks": [1, 3], "rrf": {"total": 0.031}})
    fake.hits = Hits((hit,))
    assert json.loads(qmd("query", "x", "--explain", "--json").out)[0]["explain"] == hit.explain
    assert "Explain: bm25=7.25 ranks=[1, 3] rrf=(total=0.031)" in qmd("query", "x", "--explain").out
    assert "bm25=7.25" in qmd("query", "x", "--explain", "--md").out


def test_degraded_stands_in_every_hit_and_is_said(fake: Any, qmd: Any) -> None:
    fake.hits = dataclasses.replace(fake.hits, degraded=("vectors: none yet",))
    said = qmd("query", "x", "--json")
    assert [h["degraded"] for h in json.loads(said.out)] == [["vectors: none yet"]] * 3
    assert said.err == ""
    assert "Note: degraded: vectors: none yet" in qmd("query", "x").err
    assert "**degraded:** vectors: none yet" in qmd("query", "x", "--md").out
    assert 'degraded="vectors: none yet"' in qmd("query", "x", "--xml").out


@pytest.mark.parametrize(
    "format, empty",
    [
        ("cli", ""),
        ("json", "[]\n"),
        ("jsonl", ""),
        ("csv", "docid,score,file,title,context,line,snippet\n"),
        ("md", ""),
        ("files", ""),
    ],
)
def test_no_hits_is_no_error(fake: Any, qmd: Any, format: str, empty: str) -> None:
    fake.hits = Hits(())
    said = qmd("search", "xyz", "--format", format)
    assert (said.code, said.out) == (0, empty)
    assert ("Nothing found for 'xyz'" in said.err) == (format not in ("json", "jsonl"))


def test_no_hits_with_conditions_names_them(fake: Any, qmd: Any) -> None:
    fake.hits = Hits((), degraded=("vectors: none yet",))
    err = qmd("search", "xyz", "-c", "notes", "--min-score", "0.9").err
    assert "--collection, --min-score" in err
    assert ElementTree.fromstring(qmd("search", "xyz", "--xml").out).tag == "results"
    assert "vectors: none yet" in qmd("search", "xyz", "--json").err


def test_full_path(fake: Any, qmd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = qmd("search", "x", "--full-path", "--json")
    names = [h["file"] for h in json.loads(said.out)]
    assert names[0] == str(fake.root / "travel/lisbon.md")
    assert names[1] == fake.hits[1].file
    assert "2 of 3 files are gone" in said.err
    monkeypatch.chdir(fake.root)
    assert json.loads(qmd("search", "x", "--full-path", "--json").out)[0]["file"] == "./travel/lisbon.md"


def test_links_only_when_wanted(fake: Any, qmd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMD_EDITOR_URI", "editor://open?file={path}&line={line}")
    assert "\x1b]8" not in qmd("search", "x").out
    said = qmd("search", "x", "--links").out
    target = f"\x1b]8;;editor://open?file={fake.root}/travel/lisbon.md&line=12\x1b\\"
    assert f"{target}qmd://notes/travel/lisbon.md:12\x1b]8;;\x1b\\" in said
    assert "\x1b" not in qmd("search", "x", "--no-links").out
    assert "\x1b" not in qmd("search", "x", "--links", "--md").out.replace(fake.hits[1].snippet, "")


def test_similar_hits_are_linked_too(fake: Any, qmd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMD_EDITOR_URI", "editor://open?file={path}&line={line}")
    assert "\x1b]8" not in qmd("similar", "x").out
    assert f"editor://open?file={fake.root}/travel/lisbon.md&line=12" in qmd("similar", "x", "--links").out


def test_a_picture_is_not_asked_what_nobody_would_look_at(fake: Any, qmd: Any) -> None:
    assert qmd("query", "--image", "a.png", "darker", "-n", "3", "--path", "*.png", "--json").code == 0
    assert fake.asked("query_image") == {"limit": 3, "path": "*.png"}
    for more in (
        ["--tag", "x"],
        ["--min-score", "0.9"],
        ["--after", "2024-01-01"],
        ["--full"],
        ["--no-rerank"],
    ):
        said = qmd("query", "--image", "a.png", *more)
        assert said.code == 2
        assert more[0].replace("no-", "") in said.err


def test_no_index(fake: Any, qmd: Any) -> None:
    fake.raises["open"] = NotFound("there is no index. Run `qmd add FOLDER`.")
    said = qmd("search", "x")
    assert (said.code, said.out) == (3, "")
    assert said.err == "qmd: there is no index. Run `qmd add FOLDER`.\n"


def test_needs_a_query(fake: Any, qmd: Any) -> None:
    said = qmd("search")
    assert said.code == 2
    assert "QUERY" in said.err


def test_what_the_pipeline_is_told(fake: Any, qmd: Any) -> None:
    assert qmd("query", "x", "--no-expand", "--no-rerank", "-C", "7", "--budget-ms", "50").code == 0
    asked = fake.asked("query")
    assert asked == {"expand": False, "rerank": False, "candidate_limit": 7, "budget_ms": 50.0}
    qmd("query", "x", "--intent", "y", "--rerank", "--expand", "--all-chunks", "--reread")
    asked = fake.asked("query")
    assert asked == {"intent": "y", "rerank": True, "expand": True, "all_chunks": True, "reread": True}
    qmd("search", "x", "--recency", "0.5", "--boost", "a=b=2", "--boost", "notes=.5")
    assert fake.asked("search") == {"recency": 0.5, "boosts": {"a=b": 2.0, "notes": 0.5}}
    assert qmd("search", "x", "--boost", "notes").code == 2
    assert qmd("search", "x", "--no-rerank").code == 2
    qmd("vsearch", "x", "--rerank")
    assert fake.asked("vsearch") == {"rerank": True}


def test_stale_hits_copies_and_abstention_are_said(fake: Any, qmd: Any) -> None:
    hit = dataclasses.replace(
        fake.hits[0], stale="changed", duplicates=("qmd://notes/copy.md:3",), quote="Take the tram."
    )
    fake.hits = Hits((hit,), any_relevant=0.1, nothing_relevant=True)
    said = qmd("query", "x")
    assert said.code == 0
    assert "Nothing here seems to answer this" in said.err
    assert "1 of 1 files changed" in said.err
    assert "Stale: the file changed" in said.out
    assert "Also in: qmd://notes/copy.md:3" in said.out
    (record,) = json.loads(qmd("query", "x", "--json").out)
    assert record["stale"] == "changed"
    assert record["duplicates"] == ["qmd://notes/copy.md:3"]
    assert record["nothing_relevant"] is True
    assert record["citation"] == {
        "line": 12,
        "end_line": 14,
        "quote": "Take the tram.",
        "heading_path": ["Lisbon, in spring", "Getting there"],
    }
    assert "**stale:** changed" in qmd("query", "x", "--md").out
