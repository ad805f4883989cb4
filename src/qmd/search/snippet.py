"""Pick the lines of a chunk that show why it was found, and mark the words. Knows texts and words only."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from qmd.store.cjk import has_cjk

LINES = 4
CHARACTERS = 400
_FRONT = re.compile(r"---[ \t]*\n(?:(.*?)\n)??(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S)
_WORD = re.compile(r"[^\W_]+")
_REST = re.compile(r"[^\W_]*")


@dataclass(frozen=True, slots=True)
class Snippet:
    """`line` and `end_line` are where it stands in the document; `marks` are offsets into `text`; `found`: which words
    the whole passage holds."""

    text: str
    line: int
    end_line: int
    marks: tuple[tuple[int, int], ...]
    found: frozenset[str] = frozenset()


class Marker:
    """Finds words in lines. One for a search: what it learns about a word holds for every line after.

    words: as looked for (CJK: bigrams); stems: the index's forms.
    """

    def __init__(self, words: Sequence[str], stems: Sequence[str]) -> None:
        self._plain = {fold(word) for word in words}
        kept = [(stem, stem.removesuffix("i"), len(stem) + 5) for stem in stems if len(stem) > 2]
        self._stems: dict[str, list[tuple[str, str, int]]] = {}
        for entry in kept:
            self._stems.setdefault(entry[1][:2], []).append(entry)
        self._cjk = [word.lower() for word in words if has_cjk(word)]
        self._kinds: dict[str, str | None] = {}
        starts = {*self._plain, *(start for _, start, _ in kept)} - {""}
        self._starts = [s for s in starts if not any(s != other and s.startswith(other) for other in starts)]

    def find_in(self, lines: Sequence[str], text: str) -> list[list[tuple[int, int, str]]]:
        """The matches of each line of `text`."""
        if not text.isascii():
            return [self.find(line) for line in lines]
        ends = list(accumulate(len(line) + 1 for line in lines))
        found: list[list[tuple[int, int, str]]] = [[] for _ in lines]
        for start, end, kind in self._find_ascii(text):
            number = bisect_right(ends, start)
            before = ends[number - 1] if number else 0
            found[number].append((start - before, end - before, kind))
        return found

    def _find_ascii(self, text: str) -> list[tuple[int, int, str]]:
        """Looks at the places where a word may begin and at nothing else."""
        lowered = text.lower()
        out: list[tuple[int, int, str]] = []
        for begin in self._starts:
            at = lowered.find(begin)
            while at >= 0:
                end = at + len(begin)
                if at == 0 or not lowered[at - 1].isalnum():
                    rest = _REST.match(lowered, end)
                    end = rest.end() if rest is not None else end
                    kind = self._kind(lowered[at:end])
                    if kind is not None:
                        out.append((at, end, kind))
                at = lowered.find(begin, end)
        out.sort()
        return out

    def find(self, line: str) -> list[tuple[int, int, str]]:
        """(start, end, which word) of every match, by start."""
        if line.isascii():
            return self._find_ascii(line)
        out: list[tuple[int, int, str]] = []
        kinds = self._kinds
        for match in _WORD.finditer(line) if line else ():
            word = match.group()
            if word not in kinds:
                kinds[word] = self._kind(fold(word))
            kind = kinds[word]
            if kind is not None:
                out.append((*match.span(), kind))
        if self._cjk:
            lowered = line.lower() if len(line.lower()) == len(line) else line
            for word in self._cjk:
                at = lowered.find(word)
                while at >= 0:
                    out.append((at, at + len(word), word))
                    at = lowered.find(word, at + 1)
            out.sort()
        return out

    def _kind(self, word: str) -> str | None:
        if word in self._plain:
            return word
        for stem, start, longest in self._stems.get(word[:2], ()):
            if len(word) <= longest and word.startswith(start):
                return stem
        return None


def cut_snippet(text: str, first_line: int, marker: Marker) -> Snippet:
    """The run of at most LINES lines with the most different words, then the most matches, then the earliest.

    text: a chunk that begins at line `first_line`. Without a match it is the first lines that say something.
    """
    lines = text.split("\n")
    found = marker.find_in(lines, text)
    best, best_key = 0, (0, 0)
    for start in range(len(lines)):
        if not found[start]:
            continue
        size, kinds, matches = 0, set[str](), 0
        for number in range(start, min(start + LINES, len(lines))):
            size += len(lines[number])
            if number > start and size > CHARACTERS:
                break
            kinds |= {kind for _, _, kind in found[number]}
            matches += len(found[number])
        if (len(kinds), matches) > best_key:
            best, best_key = start, (len(kinds), matches)
    if best_key == (0, 0):
        best = next((i for i, line in enumerate(lines) if _WORD.search(line)), 0)
    return _window(lines, found, best, first_line)


def front_matter(text: str) -> int:
    """Characters of the YAML block that opens a Markdown text; 0 where there is none."""
    match = _FRONT.match(text) if text.startswith("---") else None
    return match.end() if match else 0


def _window(
    lines: Sequence[str], found: Sequence[Sequence[tuple[int, int, str]]], best: int, first_line: int
) -> Snippet:
    shown: list[str] = []
    marks: list[tuple[int, int]] = []
    length = 0
    for number in range(best, min(best + LINES, len(lines))):
        line, cut = lines[number], 0
        room = CHARACTERS - length
        if shown and (room <= 0 or len(line) > room):
            break
        if len(line) > room:  # one long line: the part around its first match
            first = found[number][0][0] if found[number] else 0
            cut = max(0, min(first - room // 4, len(line) - room))
            line = line[cut : cut + room]
        marks += [
            (a - cut + length, b - cut + length)
            for a, b, _ in found[number]
            if a >= cut and b <= cut + len(line)
        ]
        shown.append(line)
        length += len(line) + 1
    while len(shown) > 1 and not shown[-1].strip():
        shown.pop()
    return Snippet(
        "\n".join(shown),
        first_line + best,
        first_line + best + len(shown) - 1,
        _merge(marks),
        frozenset(kind for line in found for _, _, kind in line),
    )


def fold(word: str) -> str:
    """Without case and accents, as the keyword index compares words."""
    if word.isascii():
        return word.lower()
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))


def _merge(marks: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(marks):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
