"""Names, defaults and refusals of the tools' parameters."""

from __future__ import annotations

import pytest

from qmd.errors import UsageError
from qmd.serve.mcp.schema import ASK, GET, MULTI_GET, QUERY, STATUS, TOOLS, check_arguments

# What the MCP server of @tobilu/qmd 2.8.3 takes: parameter -> (JSON type, default).
ORIGINAL = {
    "query": {
        "query": ("string", None),
        "searches": ("array", None),
        "limit": ("integer", 10),
        "minScore": ("number", 0),
        "candidateLimit": ("integer", None),
        "collections": ("array", None),
        "intent": ("string", None),
        "rerank": ("boolean", True),
    },
    "get": {
        "file": ("string", None),
        "fromLine": ("integer", None),
        "maxLines": ("integer", None),
        "lineNumbers": ("boolean", True),
    },
    "multi_get": {
        "pattern": ("string", None),
        "maxLines": ("integer", None),
        "maxBytes": ("integer", 65_536),
        "lineNumbers": ("boolean", True),
    },
    "status": {},
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_parameters_of_the_original(name: str) -> None:
    listing = TOOLS[name].listing()
    ours = listing["inputSchema"]["properties"]
    for parameter, (kind, default) in ORIGINAL[name].items():
        assert ours[parameter]["type"] == kind
        assert ours[parameter].get("default") == default
    assert listing["annotations"]["readOnlyHint"] is True
    assert listing["annotations"]["openWorldHint"] is False
    required = {"get": ["file"], "multi_get": ["pattern"]}.get(name, [])
    assert listing["inputSchema"].get("required", []) == required


def test_every_tool_is_there() -> None:
    assert list(TOOLS) == ["query", "get", "multi_get", "status", "ask"]


@pytest.mark.parametrize(
    ("tool", "name", "near"),
    [
        (QUERY, "minscore", "minScore"),
        (QUERY, "colection", "collections"),
        (QUERY, "search", "searches"),
        (GET, "from_lines", "fromLine"),
        (GET, "linenumber", "lineNumbers"),
        (MULTI_GET, "max_byte", "maxBytes"),
        (MULTI_GET, "patterns", "pattern"),
        (ASK, "max_tokens", "maxNewTokens"),
    ],
)
def test_unknown_parameters_name_the_nearest(tool: object, name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown parameter '{name}'. Did you mean '{near}'"):
        check_arguments(tool, {name: 1})  # type: ignore[arg-type]


def test_nothing_is_near_to_nonsense() -> None:
    with pytest.raises(UsageError, match=r"unknown parameter 'xqz'\. Known: query, searches"):
        check_arguments(QUERY, {"xqz": 1})
    with pytest.raises(UsageError, match="status takes no parameters"):
        check_arguments(STATUS, {"verbose": True})


def test_other_spellings_of_calls_in_the_wild() -> None:
    assert check_arguments(QUERY, {"query": "x", "min_score": 0.5})["min_score"] == 0.5
    assert check_arguments(QUERY, {"query": "x", "collection": "notes"})["collections"] == ("notes",)
    assert check_arguments(GET, {"path": "a.md", "full": True})["file"] == "a.md"
    assert check_arguments(GET, {"file": "a.md", "fromLine": 3.0})["from_line"] == 3
    assert check_arguments(GET, {"file": "a.md", "fromLine": None})["from_line"] is None


def test_one_parameter_twice() -> None:
    with pytest.raises(UsageError, match="'file' and 'path' are the same parameter"):
        check_arguments(GET, {"file": "a.md", "path": "b.md"})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"query": 5}, "'query' must be a string, not 5"),
        ({"query": "x", "limit": "ten"}, "'limit' must be a number"),
        ({"query": "x", "limit": 2.5}, "a whole number"),
        ({"query": "x", "limit": 0}, "at least 1"),
        ({"query": "x", "limit": 1_001}, "at most 1000"),
        ({"query": "x", "limit": float("nan")}, "must be a number"),
        ({"query": "x", "limit": 1e300}, "a whole number"),
        ({"query": "x", "rerank": "no"}, "true or false"),
        ({"query": "x", "collections": [1]}, "an array of strings"),
        ({"query": "x" * 8_193}, "longer than 8192 bytes"),
        ({"query": "\u4e2d" * 2_731}, "longer than 8192 bytes"),
        ({"searches": [{"type": "lex", "query": "x"}] * 11}, "at most 10"),
        ({"searches": [{"type": "fuzzy", "query": "x"}]}, "one of lex, vec, hyde"),
        ({"searches": [{"type": "lex", "query": "x", "boost": 2}]}, "unknown key 'boost'"),
        ({"searches": ["lex"]}, "an object with 'type' and 'query'"),
    ],
)
def test_wrong_values_say_what_is_right(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_arguments(QUERY, arguments)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="'file' is missing"):
        check_arguments(GET, {})
