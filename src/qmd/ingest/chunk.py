"""Cut a text into chunks along its structure. Knows lines, headings and atoms, and no file format.

A section that fits is one chunk; neighbouring small sections under one parent share a chunk; a section
that is too large is cut at its best boundaries: before a blank line rather than inside a paragraph, never
inside a fence or a table that fits. A line that is too long by itself is cut behind a sentence.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

from qmd.ingest.outline import Heading, Outline
from qmd.ingest.tokens import UNIT, measure_lines, running_sum
from qmd.types import Chunk

MAX_DEPTH = 32
"""Headings deeper than this are treated as if they were this deep."""

_CHARS_PER_TOKEN = 24
_SENTENCE = re.compile(r"[。！？；]['”’」』）】]*|[.!?][\"')\]]*(?=\s)")
_PAUSE = re.compile(r"[，、：,;:)\]}>](?!\d)|\s+")


def cut(text: str, outline: Outline, limit: int, overlap: float = 0.0) -> tuple[Chunk, ...]:
    """Cut `text` into chunks of at most `limit` estimated tokens.

    overlap: share of the limit (0 to 0.5) that a chunk repeats of the one before it, within one section; 0 means that
    no character is in two chunks. Every character that is not blank is in a chunk.
    """
    if limit < 8:
        raise ValueError(f"chunk_tokens is {limit}; expected at least 8.")
    if not 0.0 <= overlap <= 0.5:
        raise ValueError(f"chunk_overlap is {overlap}; expected 0 to 0.5.")
    starts, sums = measure_lines(text)
    return _Cutter(text, starts, sums, outline, limit * UNIT, int(limit * UNIT * overlap)).run()


class _Cutter:
    def __init__(
        self, text: str, starts: list[int], sums: list[int], outline: Outline, limit: int, overlap: int
    ) -> None:
        self.text = text
        self.starts = starts  # character offset of every line, then len(text)
        self.sums = sums  # running estimate there, in 1/UNIT tokens
        self.headings = outline.headings
        self.atom_first = [a.first for a in outline.atoms]
        self.atom_end = [a.end for a in outline.atoms]
        self.limit = limit - overlap
        self.overlap = overlap
        self.chunks: list[Chunk] = []
        self.following: list[int] = []

    def run(self) -> tuple[Chunk, ...]:
        lines = len(self.starts) - 1
        if lines == 0:
            return ()
        if self.sums[lines] <= self.limit:
            self._keep(0, lines, ())
            return tuple(self.chunks)
        self.following = _section_ends(self.headings)
        self._section(0, lines, 0, len(self.headings), ())
        return tuple(self.chunks)

    def _section(self, first: int, end: int, i: int, j: int, path: tuple[str, ...]) -> None:
        """Lines first ... end, under `path`, whose inner sections are the headings i ... j."""
        sums, limit = self.sums, self.limit
        if sums[end] - sums[first] <= limit:
            self._keep(first, end, path)
            return
        group, group_path = first, path
        at = self.headings[i].line if i < j else end
        if sums[at] - sums[first] > limit:
            self._split(first, at, path)
            group = at
        while i < j:
            following = self.following[i]
            stop = self.headings[following].line if following < j else end
            child = (*path, self.headings[i].title)
            if sums[stop] - sums[group] <= limit:
                group_path = child if group == at else path
            else:
                lead = at
                if group < at:
                    if (sums[at] - sums[group]) * 4 <= limit:
                        lead = group  # a bare heading or a line or two goes with what it introduces
                    else:
                        self._keep(group, at, group_path)
                if sums[stop] - sums[lead] <= limit:
                    group, group_path = lead, child
                else:
                    self._section(lead, stop, i + 1, following, child)
                    group = stop
            at, i = stop, following
        if group < end:
            self._keep(group, end, group_path)

    def _keep(self, first: int, end: int, path: tuple[str, ...], part: bool = False) -> None:
        start, stop = self.starts[first], self.starts[end]
        body = self.text[start:stop].rstrip()
        if not body:
            return
        stop = start + len(body)
        if body[0].isspace():
            blank = body.rfind("\n", 0, len(body) - len(body.lstrip()))
            if blank >= 0:
                first += body.count("\n", 0, blank + 1)
                start += blank + 1
        last = first + self.text.count("\n", start, stop)
        tokens = -(-(self.sums[end] - self.sums[first]) // UNIT)
        self.chunks.append(Chunk(start, stop, first + 1, last + 1, path, tokens, part))

    def _split(self, first: int, end: int, path: tuple[str, ...]) -> None:
        """Cut lines that hold no further heading and are together too large."""
        sums, starts, text = self.sums, self.starts, self.text
        at = first
        while at < end:
            line_end = starts[at + 1]
            if sums[at + 1] - sums[at] < UNIT and not text[starts[at] : line_end].strip():
                at += 1
                continue
            rest = sums[end] - sums[at]
            begin = self._back(at, first)
            if rest <= self.limit:
                self._keep(begin, end, path, self._inside(at))
                return
            fits = bisect_right(sums, sums[at] + self.limit, at, end + 1) - 1
            if fits <= at:
                self._split_line(at, path)
                at += 1
                continue
            stop = self._boundary(at, fits, rest)
            self._keep(begin, stop, path, self._inside(at) or self._inside(stop))
            at = stop

    def _back(self, at: int, first: int) -> int:
        """Where a chunk that starts at line `at` starts with its overlap."""
        if not self.overlap or at == first:
            return at
        return min(at, max(first, bisect_left(self.sums, self.sums[at] - self.overlap, first, at)))

    def _inside(self, line: int) -> bool:
        """Whether a cut before `line` would go through an atom."""
        k = bisect_left(self.atom_first, line) - 1
        return k >= 0 and line < self.atom_end[k]

    def _boundary(self, at: int, fits: int, rest: int) -> int:
        """The best line in (at, fits] to cut before."""
        k = bisect_left(self.atom_first, fits) - 1
        if k >= 0 and fits < self.atom_end[k]:
            if self.atom_first[k] > at:
                fits = self.atom_first[k]
            else:
                return fits  # the atom is larger than a chunk: it can only be cut between its lines
        sums, starts, text = self.sums, self.starts, self.text
        pieces = -(-rest // self.limit)
        ideal = sums[at] + rest / pieces
        low = max(at + 1, bisect_left(sums, sums[at] + self.limit // 3, at, fits))
        best, best_score = fits, -1.0
        scale, has_atoms = 0.7 / (self.limit * self.limit), bool(self.atom_first)
        here, weight = starts[fits], sums[fits]
        for line in range(fits, low - 1, -1):
            previous = starts[line - 1]
            if here - previous <= 1 or (here - previous < 80 and text[previous:here].isspace()):
                score = 12.0 if text[here : here + 1].isspace() else 20.0
            elif best_score > 6.0:
                here, weight = previous, sums[line - 1]
                continue
            elif text[here : here + 2] in _ITEMS:
                score = 6.0
            else:
                score = 2.0 if text[here - 2 : here - 1] in _ENDS else 1.0
            score *= 1.0 - scale * (weight - ideal) ** 2
            if score > best_score and not (has_atoms and self._inside(line)):
                best, best_score = line, score
            here, weight = previous, sums[line - 1]
        return best

    def _split_line(self, line: int, path: tuple[str, ...]) -> None:
        """Cut one line that is too large by itself."""
        text, at, end = self.text, self.starts[line], self.starts[line + 1]
        part = self._inside(line + 1) or self._inside(line)
        width = self.limit // UNIT * _CHARS_PER_TOKEN
        left = self.sums[line + 1] - self.sums[line]
        while at < end:
            window = text[at : min(end, at + width)]
            running = running_sum(window)
            pieces = max(1, -(-left // self.limit))
            goal = min(self.limit, left // pieces + UNIT * 8)
            size = int(running.searchsorted(goal, side="right")) - 1
            if at + size < end:
                size = _break_in(window, max(1, size))
            piece = window[:size]
            body = piece.rstrip()
            if body:
                start = at + len(body) - len(body.lstrip())
                tokens = -(-int(running[size]) // UNIT)
                self.chunks.append(
                    Chunk(start, at + len(body), line + 1, line + 1, path, max(1, tokens), part)
                )
            left -= int(running[size])
            at += size


_ITEMS = frozenset(("- ", "* ", "+ ", "1.", "2.", "3.", "4.", "5.", "6.", "7.", "8.", "9.", "| ", "> "))
_ENDS = frozenset(".!?:;。！？；：")


def _break_in(window: str, most: int) -> int:
    """Length of the piece to take from a window of one line: at most `most`, behind a sentence if there is one."""
    low = most // 3
    for pattern in (_SENTENCE, _PAUSE):
        best = 0
        for match in pattern.finditer(window, low, most + 1):
            if match.end() <= most:
                best = match.end()
        if best > low:
            return best
    while most > 1 and most < len(window) and _joins(window[most]):
        most -= 1
    return max(1, most)


def _joins(char: str) -> bool:
    """Whether a character belongs to the one before it: combining marks, joiners, variation selectors."""
    code = ord(char)
    return (
        0x300 <= code < 0x370
        or 0x200C <= code <= 0x200D
        or 0xFE00 <= code <= 0xFE0F
        or 0x1F3FB <= code <= 0x1F3FF
    )


def _section_ends(headings: list[Heading]) -> list[int]:
    """For every heading the index of the next one at the same or a higher place in the tree."""
    ends = [len(headings)] * len(headings)
    open_: list[int] = []
    for i, heading in enumerate(headings):
        level = min(heading[1], MAX_DEPTH)
        while open_ and min(headings[open_[-1]][1], MAX_DEPTH) >= level:
            ends[open_.pop()] = i
        open_.append(i)
    return ends
