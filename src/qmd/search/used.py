"""Which passages answers were written from, and how often: what is worth computing before the next question.

One JSON file beside the index. Losing it loses nothing but that.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qmd.store.connect import beside

if TYPE_CHECKING:
    from qmd.search.claims import Source

KEPT = 500
"""Passages remembered; the least used go first."""
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Used:
    """A passage of a document, lines counted from 1, and in how many answers it was a source."""

    file: str
    line: int
    end_line: int
    times: int


def usage_file(database: Path) -> Path:
    """Where the counts of an index are kept."""
    return beside(database, ".used.json")


def count_used(path: Path, sources: Sequence[Source]) -> None:
    """Count the sources of one answer. A folder that cannot be written to stays as it is."""
    counts = {(u.file, u.line, u.end_line): u.times for u in most_used(path, KEPT)}
    for s in sources:
        key = (s.file, s.line, s.end_line)
        counts[key] = counts.get(key, 0) + 1
    rows = [[*key, times] for key, times in sorted(counts.items(), key=lambda x: -x[1])[:KEPT]]
    temporary = path.with_suffix(".part")
    with contextlib.suppress(OSError):
        with open(
            os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as file:
            json.dump({"format_version": FORMAT_VERSION, "used": rows}, file)
        temporary.replace(path)


def most_used(path: Path, limit: int) -> list[Used]:
    """The passages used most, most used first; none where nothing was counted or the file is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["format_version"] == FORMAT_VERSION:
            return [Used(str(f), int(a), int(b), int(n)) for f, a, b, n in tree["used"][:limit]]
    return []
