"""Manual pages: roff source, shown line for line without its macros and font changes."""

from __future__ import annotations

import re

from qmd.ingest.frontmatter import iso_date
from qmd.ingest.outline import Heading, Outline

_REQUEST = re.compile(
    r"""\n['.][ \t]*(?:\\["\#].*|\.|
        (?:TP|PP|P|LP|RS|RE|EE|EX|PD|HP|UE|ME|YS|SY|UR|MT|Pp|El|Bl|Ed|Bd|Os|sp|br|in|ti|nf|fi|ne|ad|na|hy|nh|ft|ps|vs|ta|so|de|ds|nr|
        if|ie|el|ig|rm|rn|tr|ev|ll|cs|mk|rt|sv|ul|ce|ns|rs|ss|lg|eo|ec|cc|am|as|di|da|do|rr|af|bd|bp|pl|pn|po|wh|while|zZ|IX|TS|TE|DT|AT|UC|PU|Sp|Vb|Ve)(?![A-Za-z]).*|
        (?!TH\b|Dt\b)[A-Za-z]{1,3}(?![A-Za-z])[ \t]*)""",
    re.X,
)
_SECTION = re.compile(r"\n\.[ \t]*(SH|Sh|SS|Ss)[ \t]+([^\n]+)")
_TITLE = re.compile(r"^\.[ \t]*(?:TH|Dt)[ \t]+([^\n]*)$", re.M)
_DATE = re.compile(r"^\.[ \t]*(?:TH|Dd)[ \t]+([^\n]*)$", re.M)
_FONT = re.compile(r"\\f(?:\[[^\]\n]{0,20}\]|\(..|.)|\\s[-+]?\d+|\\[&|^%/,:)]")
_NAME = re.compile(
    r"^\.[ \t]*S[Hh][ \t]+\"?(?:NAME|名前|名称|名 称|名前\s)[^\n]*\n(?:\.[^\n]*\n)*?([^.\n][^\n]*)", re.M
)


def looks_like_roff(text: str) -> bool:
    head = text[:4000]
    return bool(_TITLE.search(head)) and ("\n.S" in text[:20000] or "\n.so " in head)


def read_man(text: str) -> Outline:
    """Outline of a manual page; `text` of the outline has the same lines as the source."""
    outline = Outline()
    for line, level, name in _sections(text):
        outline.headings.append(Heading(line, level, _strip(name.strip().strip('"'))))
    head = text[:8000]
    title = _TITLE.search(head)
    if title:
        words = title[1].replace('"', " ").split()
        summary = _NAME.search(head)
        outline.title = _strip(summary[1]) if summary else None
        if not outline.title and words:
            outline.title = _strip(words[0]) + (
                f"({words[1]})" if len(words) > 1 and words[1][:1].isdigit() else ""
            )
    date = _DATE.search(head)
    outline.date = iso_date(date[1]) if date else None
    outline.text = _strip(_REQUEST.sub("\n", "\n" + text)[1:])
    return outline


def _sections(text: str) -> list[tuple[int, int, str]]:
    found, at, line = [], 0, 0
    for match in _SECTION.finditer(text):
        line += text.count("\n", at, match.start() + 1)
        at = match.start() + 1
        found.append((line, 1 if match[1] in ("SH", "Sh") else 2, match[2]))
    return found


def _strip(text: str) -> str:
    if "\\" not in text:
        return text
    for source, shown in (
        ("\\-", "-"),
        ("\\fB", ""),
        ("\\fR", ""),
        ("\\fI", ""),
        ("\\fP", ""),
        ("\\e", "\\"),
        ("\\&", ""),
    ):
        text = text.replace(source, shown)
    if "\\(" in text:
        for source, shown in _GLYPHS:
            text = text.replace(source, shown)
    if (
        "\\f" in text
        or "\\s" in text
        or "\\|" in text
        or "\\%" in text
        or "\\^" in text
        or "\\:" in text
        or "\\/" in text
    ):
        text = _FONT.sub("", text)
    return text.replace("\\ ", " ") if "\\ " in text else text


_GLYPHS = (
    ("\\(aq", "'"),
    ("\\(dq", '"'),
    ("\\(lq", "“"),
    ("\\(rq", "”"),
    ("\\(oq", "‘"),
    ("\\(cq", "’"),
    ("\\(en", "–"),
    ("\\(em", "—"),
    ("\\(bu", "•"),
    ("\\(co", "©"),
    ("\\(ha", "^"),
    ("\\(ti", "~"),
    ("\\(ga", "`"),
    ("\\(rs", "\\"),
)
