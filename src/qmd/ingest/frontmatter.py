"""YAML front matter to plain fields. Bounded: no anchors expand, no types surprise, nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

MAX_CHARS = 64 * 1024
MAX_VALUES = 2000
MAX_DEPTH = 12
MAX_TEXT = 4000

_BLOCK = re.compile(r"---[ \t]*\n(?:(.*?)\n)??(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S)
_PLAIN_LINE = re.compile(r"^([A-Za-z_][\w -]{0,60}):[ \t]*(\S.*)$", re.M)
_DATE = re.compile(r"(?<!\d)(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain scalars are null, true/false, plain numbers or text; merge keys and dates stay text."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,15})$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]{1,15}\.[0-9]{1,15}$"), list("-+0123456789")
)


def split_front_matter(text: str) -> tuple[dict[str, Any], int]:
    """The fields of the block that opens a text, and its length in characters (0 where there is none)."""
    if not text.startswith("---"):
        return {}, 0
    match = _BLOCK.match(text, 0, min(len(text), MAX_CHARS))
    if match is None:
        return {}, 0
    return load_fields(match[1] or ""), match.end()


def load_fields(source: str) -> dict[str, Any]:
    """A YAML mapping as JSON-like values; where it is not valid YAML, its plain `key: value` lines."""
    tree: object = None
    if not _too_deep(source):
        try:
            tree = yaml.load(source, Loader=_Loader)
        except Exception:  # noqa: BLE001  a tag such as `!!bool maybe` raises whatever its constructor stumbles over
            tree = None
    if not isinstance(tree, dict):
        tree = {m[1]: m[2].rstrip(" \t").strip("\"'") for m in _PLAIN_LINE.finditer(source)}
    budget = [MAX_VALUES]
    plain = _plain(tree, budget, 0)
    return plain if isinstance(plain, dict) else {}


def _too_deep(source: str) -> bool:
    if re.search(r"(?:[-?:][ \t]+){24}|^[ \t]{200}", source, re.M):
        return True
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", source):
        depth += 1 if bracket in "[{" else -1
        if depth > 50:
            return True
    return False


def _plain(value: object, budget: list[int], depth: int) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth > MAX_DEPTH:
        return None
    if isinstance(value, str):
        return clean(value[:MAX_TEXT])
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        for key, inner in value.items():
            if budget[0] <= 0:
                break
            out[clean(str(key)[:200])] = _plain(inner, budget, depth + 1)
        return out
    if isinstance(value, list | tuple | set):
        items = []
        for inner in value:
            if budget[0] <= 0:
                break
            items.append(_plain(inner, budget, depth + 1))
        return items
    return clean(str(value)[:MAX_TEXT])


def clean(text: str) -> str:
    """Text without lone surrogates and NUL, as a database takes it."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def as_words(value: object, split: str = r"[,\s]+") -> list[str]:
    """A list field written as a YAML list or as one string."""
    if isinstance(value, str):
        return [w for w in re.split(split, value) if w]
    if isinstance(value, list):
        return [str(v) for v in value if isinstance(v, str | int | float) and str(v)]
    return []


def iso_date(value: object) -> str | None:
    """The first calendar date in a value, as YYYY-MM-DD."""
    match = _DATE.search(str(value)[:100]) if value is not None else None
    if match is None:
        return None
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{year:04}-{month:02}-{day:02}"
