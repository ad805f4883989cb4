"""A thousand ways to ask for what is not in the index, through every door that takes a name."""

from __future__ import annotations

import itertools
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from household import SECRET

from qmd.serve.mcp.operations import Operations, ProtocolError
from qmd.serve.mcp.tools import Call


def strings(home: Path) -> list[str]:
    """1,000 different references that try to leave the collection."""
    targets = [
        "etc/passwd",
        "secret/secret.md",
        "proc/self/environ",
        "data/index.sqlite",
        "windows/win.ini",
        "secret/../secret/secret.md",
    ]
    ups = ["../", "..\\", "....//", "..;/", "%2e%2e/", "%2e%2e%2f", "..%2f", "..%5c", "%252e%252e%252f"]
    ups += ["．．/", "..／", "%c0%ae%c0%ae/", "..%00/", "./../", "..//", "\u202e../", "‥/", "../\u200b"]
    fronts = ["", "notes/", "qmd://notes/", "qmd://", "/", "~/", "notes/kitchen/"]
    parts = itertools.product(targets, ups, fronts, (1, 5))
    made = [f"{front}{up * depth}{target}" for target, up, front, depth in parts]
    absolute = [str(home / "secret" / "secret.md"), "/etc/passwd", "/proc/self/root/etc/passwd", str(home)]
    absolute += [
        "~root/.ssh/id_rsa",
        "~nobody-is-called-so/x",
        "file:///etc/passwd",
        "\\\\host\\share\\x",
        "C:\\x",
    ]
    absolute += [
        "notes/leak.md",
        "notes/linked/secret.md",
        "leak.md",
        "linked/secret.md",
        "qmd://notes/leak.md",
    ]
    absolute += [
        "notes/\x00",
        "\x00/etc/passwd",
        "notes/../../secret/secret.md\x00.md",
        "\ud800",
        "notes/\udcff.md",
    ]
    absolute += [
        "",
        " ",
        ".",
        "..",
        "/",
        "//",
        "~",
        "#",
        "#..",
        "qmd://",
        "qmd:///",
        "notes",
        "notes/",
        "*" * 300,
    ]
    absolute += [
        "x" * 4_000,
        "qmd://notes/%" + "25" * 1_500,
        "../" * 1_300,
        "notes/" + "a/" * 1_000,
        "[",
        "[!",
        "{a,b",
        "$(id)",
        "`id`",
        "${HOME}",
    ]
    ends = ["", ":1", ":1:5", "?x", "#x", "%00.md"]
    made += [f"{name}{end}" for name in absolute for end in ends]
    found = list(dict.fromkeys(made))
    step = len(found) / 1_000
    return [found[int(i * step)] for i in range(1_000 - len(absolute))] + absolute


@pytest.fixture
def doors(operations: Operations) -> dict[str, Callable[[str], Any]]:
    def tool(name: str, parameter: str) -> Callable[[str], Any]:
        return lambda ref: operations.call_tool({"name": name, "arguments": {parameter: ref}}, Call())

    def resource(ref: str) -> Any:
        try:
            uri = ref if ref.startswith("qmd://") else f"qmd://{ref}"
            return operations.read_resource({"uri": uri}, Call())
        except ProtocolError as error:
            return {"isError": error.code in (-32602, -32002), "message": error.message}

    def encoded(ref: str) -> Any:
        return resource("qmd://" + urllib.parse.quote(ref.encode("utf-8", "replace"), safe=""))

    doors = {"get": tool("get", "file"), "multi_get": tool("multi_get", "pattern")}
    return doors | {"resource": resource, "encoded resource": encoded}


@pytest.mark.parametrize("door", ["get", "multi_get", "resource", "encoded resource"])
def test_nothing_leaves_the_collection(doors: dict[str, Callable[[str], Any]], door: str, home: Path) -> None:
    refs = strings(home)
    assert len(refs) == 1_000
    inside = 0
    for ref in refs:
        answer = doors[door](ref)
        said = json.dumps(answer, ensure_ascii=False)
        assert SECRET not in said, ref
        assert "root:x:" not in said, ref
        assert "SQLite format" not in said, ref
        if not answer.get("isError"):
            # `notes` and `*` name what is in the collection: that is what multi_get is for.
            inside += 1
            assert door == "multi_get", (ref, said[:200])
    assert inside < 40


def test_links_are_not_followed_even_after_indexing(
    home: Path, doors: dict[str, Callable[[str], Any]]
) -> None:
    """A file that becomes a link after it was indexed: what is given is the text that was stored."""
    file = home / "notes" / "kitchen" / "bread.md"
    kept = file.read_text()
    file.unlink()
    file.symlink_to(home / "secret" / "secret.md")
    try:
        name = "notes/kitchen/bread.md"
        for door, ref in (("get", name), ("get", str(file)), ("resource", name)):
            said = json.dumps(doors[door](ref))
            assert SECRET not in said
            assert "heavy loaf" in said
    finally:
        file.unlink()
        file.write_text(kept)
