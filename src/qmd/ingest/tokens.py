"""Estimate how many WordPiece tokens a text has, from classes of neighbouring characters. Knows no vocabulary.

The tokenizer of the embedding model would cost more time than all the rest of reading. An upper estimate is enough to
cut by: every pair of neighbouring characters adds the weight of its two classes, so the estimate of any slice is a
difference of two running sums. The weights were fitted by quantile regression (benchmarks/ingest_tokens.py).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from qmd.ingest.token_weights import WEIGHTS

UNIT = 256
"""The running sums count in 1/256 of a token."""

CLASSES = 15
(
    SPACE,
    VOWEL,
    CONSONANT,
    RARE,
    UPPER,
    DIGIT,
    PUNCT,
    LATIN,
    HAN,
    KANA,
    HANGUL,
    OTHER,
    NOTHING,
    SYMBOL,
    MARKUP,
) = range(CLASSES)

_WINDOW = 1 << 20


def _ascii_classes() -> bytes:
    table = bytearray([NOTHING]) * 256
    for code in range(33, 127):
        table[code] = PUNCT
    for char in "-=_*#`.~+":
        table[ord(char)] = MARKUP
    for char in " \t\n\r":
        table[ord(char)] = SPACE
    for char in "abcdefghijklmnopqrstuvwxyz":
        table[ord(char)] = VOWEL if char in "aeiou" else RARE if char in "jkqvwxyz" else CONSONANT
        table[ord(char.upper())] = UPPER
    for char in "0123456789":
        table[ord(char)] = DIGIT
    return bytes(table)


_ASCII = _ascii_classes()


@cache
def _all_classes() -> NDArray[np.uint8]:
    """Class of every code point: (0x110000,) uint8."""
    table = np.full(0x110000, OTHER, dtype=np.uint8)
    table[:128] = np.frombuffer(_ASCII, dtype=np.uint8)[:128]

    def fill(first: int, last: int, value: int) -> None:
        table[first : last + 1] = value

    fill(0x80, 0x9F, NOTHING)
    fill(0xA0, 0xBF, PUNCT)
    fill(0xC0, 0x24F, LATIN)
    fill(0xD7, 0xD7, SYMBOL)
    fill(0xF7, 0xF7, SYMBOL)
    fill(0x300, 0x36F, NOTHING)
    fill(0x1E00, 0x1EFF, LATIN)
    fill(0x2000, 0x200A, SPACE)
    fill(0x200B, 0x200F, NOTHING)
    fill(0x2010, 0x205E, PUNCT)
    fill(0x2060, 0x206F, NOTHING)
    fill(0x20A0, 0x2BFF, SYMBOL)
    fill(0x2E80, 0x2FDF, SYMBOL)
    fill(0x3000, 0x3000, SPACE)
    fill(0x3001, 0x303F, PUNCT)
    fill(0x3040, 0x30FF, KANA)
    fill(0x31F0, 0x31FF, KANA)
    fill(0x1100, 0x11FF, HANGUL)
    fill(0x3130, 0x318F, HANGUL)
    fill(0xAC00, 0xD7AF, HANGUL)
    for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F)):
        fill(first, last, HAN)
    fill(0xFE00, 0xFE0F, NOTHING)
    fill(0xFEFF, 0xFEFF, NOTHING)
    fill(0xFF01, 0xFF0F, PUNCT)
    fill(0xFF10, 0xFF19, DIGIT)
    fill(0xFF1A, 0xFF20, PUNCT)
    fill(0xFF3B, 0xFF40, PUNCT)
    fill(0xFF5B, 0xFF65, PUNCT)
    fill(0xFF66, 0xFF9F, KANA)
    fill(0xFFF0, 0xFFFF, NOTHING)
    fill(0x1F000, 0x1FAFF, SYMBOL)
    return table


_PAIR = np.asarray(WEIGHTS, dtype=np.uint16)  # (CLASSES * CLASSES,), left class major


def classes(text: str) -> NDArray[np.uint8]:
    """Class of every character: (len(text),) uint8."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii").translate(_ASCII), dtype=np.uint8)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return _all_classes()[codes]


def pairs(text: str, before: str = " ") -> NDArray[np.uint8]:
    """Index of every character's pair (class of the one before it, its own): (len(text),) uint8."""
    own = classes(text)
    left = np.empty_like(own)
    if own.size:
        left[0] = classes(before)[0]
        left[1:] = own[:-1]
    left *= CLASSES
    left += own
    return left


def running_sum(text: str) -> NDArray[np.int64]:
    """Estimate of text[:i] in 1/UNIT tokens for i = 0 ... len(text): (len(text) + 1,) int64."""
    sums = np.zeros(len(text) + 1, dtype=np.int64)
    np.cumsum(_PAIR[pairs(text)], out=sums[1:])
    return sums


def measure_lines(text: str) -> tuple[list[int], list[int]]:
    """Where lines start, and the running estimate there.

    Returns two lists of n + 1 entries for n lines: character offsets (the last is len(text)) and 1/UNIT tokens. Lines
    end at "\\n" only. Works through windows, so that a huge text costs its lines and not its characters.
    """
    starts = [0]
    sums = [0]
    total = 0
    for first in range(0, len(text), _WINDOW):
        window = text[first : first + _WINDOW]
        if window.isascii():
            raw = window.encode("ascii")
            breaks = np.flatnonzero(np.frombuffer(raw, dtype=np.uint8) == 10)
            own = np.frombuffer(raw.translate(_ASCII), dtype=np.uint8)
        else:
            codes = np.frombuffer(window.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            breaks = np.flatnonzero(codes == 10)
            own = _all_classes()[codes]
        pair = np.empty_like(own)
        pair[0] = SPACE
        pair[1:] = own[:-1]
        pair *= CLASSES
        pair += own
        weights = _PAIR[pair]
        running = np.cumsum(weights, dtype=np.int64)
        starts.extend((breaks + (first + 1)).tolist())
        sums.extend((running[breaks] + total).tolist())
        total += int(running[-1])
    if starts[-1] != len(text):
        starts.append(len(text))
        sums.append(total)
    return starts, sums
