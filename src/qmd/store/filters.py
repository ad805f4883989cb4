"""Compile a `Filter` into SQL over the documents table. Knows no search."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from qmd.errors import UsageError
from qmd.store.cjk import fold_letters
from qmd.types import Filter

_TAGS = """WITH RECURSIVE every(tag) AS (SELECT min(tag) FROM tags
        UNION ALL SELECT (SELECT min(tag) FROM tags WHERE tag > e.tag) FROM every e WHERE e.tag IS NOT NULL),
    folded(tag, name) AS (SELECT tag, qmd_fold_letters(tag) FROM every WHERE tag IS NOT NULL LIMIT -1)
    SELECT tag FROM folded WHERE name = ? OR (name >= ? AND name < ?)"""
"""Tags are kept as they are written; each is read, and folded, once."""


@dataclass(frozen=True, slots=True)
class Condition:
    """SQL over the alias `d` (documents), with its parameters."""

    sql: str
    parameters: tuple[object, ...]

    @property
    def documents(self) -> str:
        return f"SELECT d.id FROM documents d WHERE {self.sql}"


def compile_filter(wanted: Filter) -> Condition | None:
    """None when there is no condition. Raises UsageError for a date that is none."""
    parts: list[str] = []
    values: list[object] = []
    if wanted.collections:
        marks = ", ".join("?" * len(wanted.collections))
        parts.append(f"d.collection_id IN (SELECT id FROM collections WHERE name IN ({marks}))")
        values.extend(wanted.collections)
    if wanted.path:
        sql, globs = path_condition(wanted.path)
        parts.append(sql)
        values.extend(globs)
    for tag in wanted.tags:
        name = fold_letters(tag.lstrip("#").rstrip("/"))
        parts.append(f"d.id IN (SELECT document_id FROM tags WHERE tag IN ({_TAGS}))")
        values.extend((name, f"{name}/", f"{name}0"))  # "0" follows "/": the range is every nested tag
    for column in ("type", "lang"):
        value = getattr(wanted, column)
        if value:
            parts.append(f"d.{column} = ? COLLATE NOCASE")
            values.append(value)
    if wanted.title:
        parts.append("instr(qmd_fold_letters(d.title), ?)")
        values.append(fold_letters(wanted.title))
    for bound, sign in ((wanted.after, ">="), (wanted.before, "<")):
        if bound:
            parts.append(f"d.day {sign} ?")
            values.append(_iso(bound))
    return Condition(" AND ".join(parts), tuple(values)) if parts else None


def spellings(path: str) -> list[str]:
    """A path as given, composed (NFC) and decomposed (NFD, names from a Mac): they look alike."""
    if path.isascii():
        return [path]
    return list(dict.fromkeys((path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))))


def path_condition(pattern: str) -> tuple[str, list[str]]:
    """A name over `d.path`, which also means its folder, or a glob; `*` and `**` cross folders, `**/` may be nothing.

    Brackets are read as a part of the name, too: `app/[id]/*` finds what lies in `app/[id]`.
    """
    pattern = pattern.removeprefix("./").strip("/") if pattern != "/" else "*"
    parts: list[str] = []
    values: list[str] = []
    for name in spellings(pattern):
        parts.append("d.path = ? OR (d.path >= ? AND d.path < ?)")
        values += [name, f"{name}/", f"{name}0"]
        globs = list(dict.fromkeys((name, name.replace("[", "[[]")))) if any(c in name for c in "*?[") else []
        globs += [glob[3:] for glob in globs if glob.startswith("**/")]
        globs += [glob.replace("/**/", "/") for glob in globs if "/**/" in glob]
        parts += ["d.path GLOB ?"] * len(globs)
        values += globs
    return f"({' OR '.join(parts)})", values


def _iso(bound: str) -> str:
    digits = bound.replace("-", "")[:8]
    if not (digits.isdigit() and len(bound) >= 4):
        raise UsageError(f"{bound!r} is not a date. Write 2026, 2026-01 or 2026-01-31.")
    return bound
