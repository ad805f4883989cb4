"""Compile a `Filter` into SQL over the documents table. Knows no search."""

from __future__ import annotations

from dataclasses import dataclass

from qmd.errors import UsageError
from qmd.types import Filter


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
        name = tag.lstrip("#").rstrip("/").casefold()
        parts.append("d.id IN (SELECT document_id FROM tags WHERE tag = ? OR (tag >= ? AND tag < ?))")
        values.extend((name, f"{name}/", f"{name}0"))  # "0" follows "/": the range is every nested tag
    for column in ("type", "lang"):
        value = getattr(wanted, column)
        if value:
            parts.append(f"d.{column} = ? COLLATE NOCASE")
            values.append(value)
    if wanted.title:
        parts.append("qmd_fold(d.title) LIKE ? ESCAPE '\\'")
        escaped = wanted.title.casefold().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        values.append(f"%{escaped}%")
    for bound, sign in ((wanted.after, ">="), (wanted.before, "<")):
        if bound:
            parts.append(f"d.day {sign} ?")
            values.append(_iso(bound))
    return Condition(" AND ".join(parts), tuple(values)) if parts else None


def path_condition(pattern: str) -> tuple[str, list[str]]:
    """A glob over `d.path`; `*` and `**` cross folders, `**/` may be nothing; a plain name also means its folder."""
    pattern = pattern.removeprefix("./").strip("/") if pattern != "/" else "*"
    if not any(c in pattern for c in "*?["):
        return "(d.path = ? OR (d.path >= ? AND d.path < ?))", [pattern, f"{pattern}/", f"{pattern}0"]
    globs = [pattern]
    if pattern.startswith("**/"):
        globs.append(pattern[3:])
    if "/**/" in pattern:
        globs += [glob.replace("/**/", "/") for glob in globs]
    return "(" + " OR ".join(["d.path GLOB ?"] * len(globs)) + ")", globs


def _iso(bound: str) -> str:
    digits = bound.replace("-", "")[:8]
    if not (digits.isdigit() and len(bound) >= 4):
        raise UsageError(f"{bound!r} is not a date. Write 2026, 2026-01 or 2026-01-31.")
    return bound
