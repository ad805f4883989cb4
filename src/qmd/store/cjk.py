"""Make Chinese, Japanese and Korean findable without a dictionary: runs of their characters become bigrams.

The text that goes into the keyword index has every run ABCD replaced by `AB BC CD D`; a query for ABC becomes the
phrase `"AB BC"`. The last character stands alone too, and every single-character query is a prefix query, so that
one character is found wherever it stands. Text without such characters is not cut.
"""

from __future__ import annotations

import re
import unicodedata

# Han (with extensions and compatibility forms), Kana, half-width Kana, Hangul syllables and jamo, iteration marks.
_RANGES = (
    "\u1100-\u11ff\u3005-\u3007\u3021-\u3029\u303b\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3105-\u312f\u3131-\u318e\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97c\uac00-\ud7a3"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003fffd"
)
_RUN = re.compile(f"[{_RANGES}]+")
# Signs made of letters: NFKC would join "100㎡" to one word, and "Java™".
_SIGNS = re.compile(
    "[\u20a8\u2100\u2101\u2103\u2105\u2106\u2109\u2116\u2120-\u2122\u213b\u249c-\u24e9\u32c0-\u33ff"
    "\U0001f110-\U0001f251]"
)

_ACCENTS = re.compile("(?<=[a-z])[\u0300-\u036f]+")
_ACCENTED = re.compile("[\u00c0-\u024f\u0300-\u036f\u1e00-\u1eff]")


def has_cjk(text: str) -> bool:
    """Whether the text has a character that is indexed as bigrams."""
    return not text.isascii() and _RUN.search(text) is not None


def fold(text: str) -> str:
    """One form (NFKC) for what is written in several: full and half width, composed or not, ligatures, ² and Ⅲ.

    Texts and questions alike, whatever stands beside it. Case and accents: the tokenizer."""
    if text.isascii():
        return text
    text = text.replace("…", "...").replace("\u00a0", " ")  # all that most texts would be normalised for
    if unicodedata.is_normalized("NFKC", text):
        return text
    return unicodedata.normalize("NFKC", _SIGNS.sub(r" \g<0> ", text))


def fold_letters(text: str) -> str:
    """One form without case and without the accents that the tokenizer drops: those of Latin letters."""
    if text.isascii():
        return text.lower()
    text = fold(text).casefold()
    if not _ACCENTED.search(text):
        return text
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


def index_text(text: str) -> str:
    """What is written into the keyword index for `text`; the same object when there is nothing to do."""
    return text if text.isascii() else bigrams(fold(text))


def bigrams(text: str) -> str:
    """A text in one form, its runs of CJK characters cut into pairs."""
    return _RUN.sub(_pairs, text)


def _pairs(match: re.Match[str]) -> str:
    run = match.group()
    return f" {' '.join([run[i : i + 2] for i in range(len(run))])} "


def query_terms(text: str) -> list[str]:
    """FTS5 phrases for a text without operators, one for each word or run of CJK characters.

    "如何install" gives ['"如何"', '"install"']; a single character gives a prefix phrase: '"水"*'.
    """
    phrases: list[str] = []
    for piece in re.findall(f"[{_RANGES}]+|[^{_RANGES}]+", fold(text)):
        if _RUN.match(piece):
            if len(piece) == 1:
                phrases.append(f'"{piece}"*')
            else:
                phrases.append('"' + " ".join(piece[i : i + 2] for i in range(len(piece) - 1)) + '"')
        else:
            phrases.extend(f'"{word}"' for word in re.findall(r"\w+", piece))
    return phrases
