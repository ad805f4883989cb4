"""Formats, chunks, and hostile content."""

import time

import pytest
from checks import check_document
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd.ingest.formats.markup import read_org
from qmd.ingest.outline import Atom
from qmd.ingest.parse import FORMATS, parse
from qmd.ingest.walk import Skipped
from qmd.types import Document


def read(path: str, text: str | bytes, limit: int = 60, overlap: float = 0.0) -> Document:
    data = text.encode() if isinstance(text, str) else text
    document = parse(path, data, chunk_tokens=limit, chunk_overlap=overlap)
    assert isinstance(document, Document), document
    check_document(document, limit, overlap)
    return document


NOTE = """---
title: Übersicht
tags: [a/b, plain]
aliases: [One, Two]
date: 2024-03-01
n: 3
---
# Top

See [[Other note#Part|shown]] and ![[picture.png]] and [link](some%20file.md#x). #nested/tag `#not`

```py
# no heading
[[no]] #nope
```
"""


def test_obsidian_note() -> None:
    d = read("n.md", NOTE, 220)
    assert (d.title, d.tags, d.aliases, d.date) == (
        "Übersicht",
        ("a/b", "plain", "nested/tag"),
        ("One", "Two"),
        "2024-03-01",
    )
    assert d.fields["n"] == 3
    assert [(x.target, x.kind, x.anchor, x.line) for x in d.links] == [
        ("Other note", "wikilink", "Part", 10),
        ("picture.png", "embed", None, 10),
        ("some file.md", "link", "x", 10),
    ]


def test_heading_path_and_whole_fence() -> None:
    fence = "```\n" + "line of code here\n\n" * 9 + "```\n"
    text = (
        "# A\n\n"
        + "word word word. " * 30
        + "\n\n## B\n\n"
        + "intro words here. " * 6
        + "\n\n"
        + fence
        + "\n## C\n\nend\n"
    )
    d = read("a.md", text, 60)
    holding = [c for c in d.chunks if "line of code" in d.text[c.start : c.end]]
    assert len(holding) == 1
    assert holding[0].heading_path == ("A", "B")
    assert not holding[0].cut


def test_fence_larger_than_a_chunk_says_so() -> None:
    d = read("a.md", "```\n" + "some code to run\n" * 90 + "```\n", 60)
    assert len(d.chunks) > 2
    assert all(c.cut for c in d.chunks)


def test_chinese_is_cut_behind_sentences() -> None:
    d = read("z.txt", "这是一个关于文件权限的句子。" * 60, 60)
    assert d.lang == "zh"
    assert all(d.text[: c.end].endswith("。") for c in d.chunks)


@pytest.mark.parametrize(
    "path, text, kind, titles",
    [
        ("a.rst", "Top\n===\n\nx\n\nSub\n---\n\ny\n", "rst", "Top"),
        ("a.org", "#+TITLE: T\n* TODO One :x:\ntext\n", "org", "T"),
        ("ls.1", ".TH LS 1\n.SH NAME\nls \\- list\n.SH OPTIONS\n\\fB\\-l\\fR long\n", "man", "ls - list"),
        ("a.py", "import x\n\n\nclass A:\n    def f(self):\n        pass\n", "code", "a"),
        ("a.json", '{\n  "name": 1\n}\n', "json", "a"),
        ("a.html", "<title>T</title><h1>H</h1><script>bad</script><p>x<p>y", "html", "T"),
        ("a.ipynb", '{"cells":[{"cell_type":"markdown","source":["# N\\n"]}]}', "notebook", "N"),
    ],
)
def test_formats(path: str, text: str, kind: str, titles: str) -> None:
    d = read(path, text)
    assert (d.type, d.title) == (kind, titles)
    assert "bad" not in d.text
    assert "\\f" not in d.text


def test_encodings() -> None:
    japanese = "ファイルの権限を変更する方法について説明します。\n" * 9
    for name in ("utf-8-sig", "utf-16", "shift_jis", "euc_jp"):
        assert "権限を変更" in read("j.txt", japanese.encode(name)).text, name
    assert "文件权限" in read("z.txt", ("如何设置文件权限，请看下面的说明。\n" * 9).encode("gb18030")).text


BOMB = (
    "---\na: &a [x,x,x,x]\n"
    + "".join(
        f"{c}: &{c} [*{p},*{p},*{p},*{p},*{p}]\n" for p, c in zip("abcdefghi", "bcdefghij", strict=True)
    )
    + "---\nhi\n"
)
HOSTILE = {
    "nul": b"a\0b",
    "broken": b"ok text \xff\xfe\xc3 more\n" * 5,
    "quotes": b">" * 100_000,
    "lists": b"- " * 100_000,
    "brackets": b"[" * 100_000,
    "stars": b"*a **b " * 20_000,
    "nested": "".join("  " * i + "- a\n" for i in range(1000)).encode(),
    "bomb": BOMB.encode(),
    "flow": b"---\na: " + b"[" * 30_000 + b"\n---\nx\n",
    "seq": b"---\n" + b"- " * 30_000 + b"\n---\nx\n",
    "json": b"[" * 200_000,
    "ipynb": b'{"cells":' + b"[" * 100_000,
    "divs": b"<div>" * 100_000 + b"x",
    "line": b"word " * (64 * 1024 * 1024 // 5),
    "blank": b"\n" * 1_000_000,
    "headings": b"# a\n" * 50_000,
    "form": ((b"_" * 60 + b"\n") * 66 + b"Name\n") * 100,
    "tags": "".join(f"#话题{i} 今天天气不错\n" for i in range(40_000)).encode(),
    "wide heading": b" " * 1000 + b"x\n# a" + b" " * 60_000 + b"b\n",
    "wide field": b"---\na: [x" + b" " * 60_000 + b"y\n---\nx\n",
    "begins": b"".join(b"#+BEGIN_%d\nx\n" % i for i in range(20_000)),
}


@pytest.mark.parametrize(
    "ending", ["md", "rst", "org", "html", "ipynb", "json", "yaml", "py", "c", "1", "txt"]
)
@pytest.mark.parametrize("name", [n for n in HOSTILE if n != "line"])
def test_hostile(name: str, ending: str) -> None:
    begin = time.process_time()
    result = parse(f"x.{ending}", HOSTILE[name], chunk_tokens=220)
    assert time.process_time() - begin < 30
    if isinstance(result, Document):
        check_document(result, 220)
    else:
        assert isinstance(result, Skipped)
        assert result.reason


def test_one_huge_line() -> None:
    d = parse("x.txt", HOSTILE["line"], chunk_tokens=220)
    assert isinstance(d, Document)
    assert d.chunks[-1].end >= len(d.text) - 1


MARKS = [
    "# ",
    "## ",
    "\n",
    "\n\n",
    "```",
    "~~~",
    "| a | b |\n|---|---|\n",
    "> ",
    "- ",
    "[[",
    "]]",
    "#t",
    "`",
    "<b>",
    "---\n",
    "。",
    "漢字",
    " w" * 40,
    "\r\n",
    "\t",
    "* ",
    "===",
]


@settings(max_examples=700, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=12)), max_size=40),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from([0.0, 0.25]),
)
def test_any_text(parts: list[str], ending: str, overlap: float) -> None:
    data = "".join(parts).encode("utf-8", "replace")
    result = parse(f"x.{ending}", data, chunk_tokens=24, chunk_overlap=overlap)
    if isinstance(result, Document):
        check_document(result, 24, overlap)


@settings(max_examples=700, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["md", "rst", "html", "ipynb", "txt", "7"]))
def test_any_bytes(data: bytes, ending: str) -> None:
    result = parse(f"x.{ending}", data, chunk_tokens=24)
    if isinstance(result, Document):
        check_document(result, 24)


@settings(max_examples=700, deadline=None)
@given(st.text(alphabet="ab: -[]{}&*!|>?'\"\n#~0.1<,", max_size=120))
def test_any_front_matter(source: str) -> None:
    result = parse("x.md", f"---\n{source}\n---\nbody\n".encode(), chunk_tokens=24)
    assert isinstance(result, Document)
    check_document(result, 24)


@pytest.mark.parametrize(
    "value", ["!!bool maybe", "!!int ''", "!!timestamp soon", "!!float x", "!!python/none ''"]
)
def test_tags_that_yaml_cannot_construct_leave_plain_lines(value: str) -> None:
    document = read("x.md", f"---\ndone: {value}\ntitle: Kiwi\n---\nbody\n")
    assert (document.title, document.fields["done"]) == ("Kiwi", value.strip("'"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_private_key_is_left_out_in_any_encoding(encoding: str) -> None:
    data = "\n-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n".encode(encoding)
    skipped = parse("notes.md", data, chunk_tokens=60)
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "secret: a private key"


@pytest.mark.parametrize(
    ("encoding", "title"),
    [("big5", "這是一個"), ("gb2312", "这是测试"), ("shift_jis", "これはテスト"), ("euc-kr", "이것은 파일")],
)
def test_a_page_is_believed_which_encoding_it_has(encoding: str, title: str) -> None:
    menu = "<div class='nav'>menu home about</div>" * 50
    page = f'<html><head><meta charset="{encoding}"><title>{title}</title></head><body>{menu}<p>x</p></body></html>'
    assert read("x.html", page.encode(encoding), 60).title == title


def test_tags_between_code_of_more_than_one_byte_a_letter() -> None:
    document = read("a.md", "# 标题\n\n#话题 `代码 #no` #第二 中文 `#nein` #third\n\n```\n#never\n```\n")
    assert document.tags == ("话题", "第二", "third")


def test_org_blocks_end_at_the_next_end_of_their_name() -> None:
    text = "#+BEGIN_A\nx\n#+begin_b\ny\n#+END_B\nz\n#+BEGIN_C\n#+END_B\n#+END_C\n"
    assert read_org(text).atoms == [Atom(2, 5), Atom(6, 9)]
