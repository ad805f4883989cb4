"""What a search says of itself in words, as codes that a page can say in the reader's language.

The words come from the search and are what people and agents read everywhere; here each form of them has a stable code
and its values. Words of no known form have the code "other" and stand for themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_FORMS: Mapping[str, str] = {
    "vectors-missing": r"vector: (\d+) passages have no vector yet; run `qmd embed`",
    "vectors-none": r"vector: the index has no vectors yet\. Run `qmd embed`\.",
    "vectors-other-model": r"vector: the index holds vectors of (.+) \(\d+d\), "
    r"the configuration asks for (.+) \(\d+d\)\..*",
    "other-script": r"vector: left out, (.+) reads (.+) and the question is in another script",
    "other-language": r"vector: (.+) reads (.+); expect little for this question",
    "vector-nothing": r"vector: nothing to look for",
    "inverted-failed": r"vector: the inverted file could not be made \((.+)\); all were scanned",
    "inverted-made": r"vector: made an inverted file of ([\d,]+) vectors in ([\d.]+) s",
    "inverted-torch": r"vector: an inverted file needs torch \((.+)\); all were scanned",
    "no-line": r"(keyword|vector): no (.+) line to look for",
    "spelling": r"keyword: ['\"](.+)['\"] is not in the index; searched for (.+)",
    "quoted": r"keyword: no passage has what was quoted; these have some of the words",
    "only-exclusions": r"keyword: only exclusions, nothing to look for",
    "no-model": r"(expand|rerank): no model; set `(.+)` in the configuration",
    "time-used": r"(\w+): left out, the (\d+) ms are used up",
    "too-slow": r"(\w+): left out, takes about (\d+) ms and (-?\d+) of (\d+) ms are left",
    "some-candidates": r"rerank: (\d+) of (\d+) candidates, as many as the time allows",
}
_KNOWN = {code: re.compile(form, re.S) for code, form in _FORMS.items()}


def code_of(note: str) -> dict[str, Any]:
    """`{"code", "values", "text"}` of one note."""
    for code, form in _KNOWN.items():
        found = form.fullmatch(note)
        if found is not None:
            return {"code": code, "values": list(found.groups()), "text": note}
    return {"code": "other", "values": [], "text": note}


def codes_of(notes: Iterable[str]) -> list[dict[str, Any]]:
    return [code_of(note) for note in notes]
