"""Text made safe for the format it stands in. Knows nothing of hits."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qmd.serve.cli.screen import encodable

# What XML 1.0 cannot hold, not even as a reference.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def xml(text: str) -> str:
    """Element text or attribute value. Characters that XML cannot hold become U+FFFD."""
    text = _NOT_XML.sub("\ufffd", text)
    for raw, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&apos;")):
        text = text.replace(raw, escaped)
    return text


def xml_attribute(text: str) -> str:
    """An attribute value that keeps its line breaks (a parser would turn bare ones into spaces)."""
    return xml(text).replace("\t", "&#9;").replace("\n", "&#10;").replace("\r", "&#13;")


def csv_text(text: str) -> str:
    """A text cell. One that a spreadsheet would run as a formula gets a leading apostrophe (OWASP, CSV
    injection).
    """
    return csv_cell("'" + text if text.startswith(_FORMULA) else text)


def csv_cell(text: str) -> str:
    """RFC 4180 quoting, where it is needed."""
    text = encodable(text)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text


def csv_row(cells: Iterable[str | int | float | None]) -> str:
    """Numbers as they are, text made safe; None is an empty cell."""
    return ",".join("" if c is None else csv_text(c) if isinstance(c, str) else str(c) for c in cells)


def code_span(text: str) -> str:
    """Markdown code that holds any text on one line, backticks too (CommonMark 6.1)."""
    text = " ".join(text.split("\n"))
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def code_block(text: str) -> str:
    """A fenced block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}\n{text}{'' if text.endswith(chr(10)) else chr(10)}{fence}"


def numbered(text: str, first: int) -> str:
    """`12: text`, as the line references of answers and `get` need it."""
    return "\n".join(f"{first + i}: {line}" for i, line in enumerate(text.split("\n")))
