"""Notice that a text has begun to say again what it said, as small models do without an end."""

from __future__ import annotations

import re


def repeats_from(text: str) -> int | None:
    """Where the text begins to say again what it said: the start of the second of two equal sentences or lines (numbers
    apart) of 8 letters or more, or of the same shorter one three times one after the other. None while it does not."""
    seen: set[str] = set()
    short, times, second = "", 0, 0
    for found in re.finditer(r"[^.!?。！？\n]+[.!?。！？\n]+", text):
        said = re.sub(r"[\W\d_]+", "", found.group()).lower()
        if len(said) < 8 and not (found.group().startswith("#") and said):
            if said:  # a number of a list says nothing
                times = times + 1 if said == short else 1
                second = found.start() if times == 2 else second
                short = said
                if times == 3:
                    return second
            continue
        short, times = "", 0
        if said in seen:
            return found.start()
        seen.add(said)
    return None
