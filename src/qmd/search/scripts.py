"""Which scripts a text is written in, and whether a model's languages cover them. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SCRIPTS = {
    "Han": re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]"),
    "Kana": re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]"),
    "Hangul": re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"),
    "Cyrillic": re.compile("[\u0400-\u052f]"),
    "Greek": re.compile("[\u0370-\u03ff\u1f00-\u1fff]"),
    "Arabic": re.compile("[\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Devanagari": re.compile("[\u0900-\u097f]"),
    "Thai": re.compile("[\u0e00-\u0e7f]"),
}
_LANGUAGES = {
    "Han": {"zh", "ja"},
    "Kana": {"ja"},
    "Hangul": {"ko"},
    "Cyrillic": {"ru", "uk", "bg", "sr", "be", "mk", "kk"},
    "Greek": {"el"},
    "Arabic": {"ar", "fa", "ur"},
    "Hebrew": {"he"},
    "Devanagari": {"hi", "mr", "ne"},
    "Thai": {"th"},
}


def foreign_share(text: str, languages: Sequence[str]) -> float:
    """Share of the words of `text` (for Han, Kana and Hangul: characters, two to a word) in scripts that
    none of
    `languages` is written in. No languages, or "multilingual", cover everything; Latin letters always count
    as known.
    """
    if not languages or "multilingual" in languages or text.isascii():
        return 0.0
    known = {language.split("-")[0].lower() for language in languages}
    foreign = 0.0
    rest = text
    covered = 0.0
    for script, letters in _SCRIPTS.items():
        found, rest_of = 0.0, rest
        if script in ("Han", "Kana", "Hangul"):
            found = len(letters.findall(rest)) / 2
            rest_of = letters.sub(" ", rest)
        else:
            found = sum(1 for word in re.findall(r"\w+", rest) if letters.search(word))
            rest_of = letters.sub("", rest)
        rest = rest_of
        if known & _LANGUAGES[script]:
            covered += found
        else:
            foreign += found
    covered += len(re.findall(r"[^\W\d_]+", rest))
    return foreign / (foreign + covered) if foreign else 0.0
