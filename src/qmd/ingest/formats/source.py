"""Source code and data files: an outline of definitions and top-level keys, from line patterns. Parses no language."""

from __future__ import annotations

import re

from qmd.ingest.outline import Heading, Outline

_C_LIKE = (
    r"^(?P<i>[ \t]{0,8})(?P<t>(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|"
    r"pub(?:\([a-z]+\))?|"
    r"unsafe|sealed|override|data|open|partial|inline|virtual|extern|const|declare)[ \t]+){0,6}"
    r"(?:class|interface|enum|struct|trait|impl|fn|func|function|type|namespace|module|mod|object|record|union|"
    r"protocol|extension)\b"
    r"[^\n{;=]{1,160})"
)
_C_FUNCTION = (
    r"|^(?P<f>(?!(?:if|for|while|switch|return|else|do|typedef|using)\b)"
    r"[A-Za-z_][\w:<>,*& \t]{0,120}[ \t*&]~?[\w:~]{1,80}\([^;\n]{0,160}\)?)[ \t]*(?:\{|\n\{|\n[ \t]*\{|,\n)"
)
_JS_CONST = (
    r"|^(?P<c>(?:export[ \t]+)?(?:const|let|var)[ \t]+[\w$]{1,80})[ \t]*=[ \t]*"
    r"(?:async[ \t]*)?(?:function|\([^\n]{0,120}=>|class)"
)
_OUTLINES = {
    "python": r"^(?P<i>[ \t]{0,8})(?P<t>(?:async[ \t]+)?(?:def|class)[ \t]+\w[^\n:(]{0,120})",
    "ruby": r"^(?P<i>[ \t]{0,8})(?P<t>(?:def|class|module)[ \t]+[^\n;(]{1,120})",
    "shell": r"^(?P<i>)(?P<t>(?:function[ \t]+)?[\w-]{1,80}[ \t]*\(\))",
    "lua": r"^(?P<i>[ \t]{0,4})(?P<t>(?:local[ \t]+)?function[ \t]+[^\n(]{1,120})",
    "sql": r"^(?P<i>)(?P<t>(?i:create|alter)[ \t]+[^\n(;]{1,120})",
    "lisp": r"^(?P<i>)\((?P<t>(?:def|define)[\w*-]*[ \t]+[^\n()]{1,120})",
    "perl": r"^(?P<i>)(?P<t>(?:sub|package)[ \t]+[\w:]{1,120})",
    "c": _C_LIKE + _C_FUNCTION,
    "javascript": _C_LIKE + _JS_CONST,
    "css": r"^(?P<i>)(?P<t>[^\s{}/@*][^\n{}]{0,120}?)[ \t]*\{",
}
_PATTERNS = {name: re.compile(pattern, re.M) for name, pattern in _OUTLINES.items()}
_FAMILY = {
    "typescript": "javascript",
    "elixir": "ruby",
    "css": "css",
    "scss": "css",
    "clojure": "lisp",
    "scheme": "lisp",
}
_ATTACHED = re.compile(r"[ \t]*(?:@|//|/\*|\*|#\[|#(?!include|define|if|end|else)|--)")
_KEYS = {
    "json": re.compile(r'^(?P<i>[ \t]{0,4})"(?P<t>[^"\n]{1,120})"[ \t]*:', re.M),
    "yaml": re.compile(
        r"^(?P<t>[^\s#\-:'\"{}\[\]][^\n:]{0,120}|'[^'\n]{1,120}'|\"[^\"\n]{1,120}\"):(?=[ \t\n]|\Z)", re.M
    ),
    "toml": re.compile(r"^\[{1,2}(?P<t>[^\[\]\n]{1,120})\]{1,2}", re.M),
    "ini": re.compile(r"^\[(?P<t>[^\[\]\n]{1,120})\]", re.M),
}


def read_code(text: str, language: str) -> Outline:
    """Outline of source code: definitions, with the comments and decorators right above them."""
    pattern = _PATTERNS.get(_FAMILY.get(language, language), _PATTERNS["c"])
    outline = Outline(fields={"language": language})
    line = at = 0
    taken = -1
    for match in pattern.finditer(text):
        groups = match.groupdict()
        title = groups.get("t") or groups.get("f") or groups.get("c")
        if not title:
            continue
        line += text.count("\n", at, match.start())
        at = match.start()
        indent = len((groups.get("i") or "").expandtabs(4))
        first = _with_comment(text, match.start(), line, taken)
        outline.headings.append(Heading(first, 1 + indent // 2, " ".join(title.split())))
        taken = line
    return outline


def _with_comment(text: str, start: int, line: int, taken: int) -> int:
    """The first line of the comment or decorator block that ends right above `line`."""
    for _ in range(60):
        if line - 1 <= taken or start == 0:
            break
        before = text.rfind("\n", 0, start - 1) + 1
        if start - before > 400 or not _ATTACHED.match(text, before, start):
            break
        start, line = before, line - 1
    return line


def read_data(text: str, kind: str) -> Outline:
    """Outline of a data file: top-level keys or tables. Nothing is loaded, so nothing can expand."""
    found = list(_KEYS[kind].finditer(text))
    if kind == "json" and found:
        least = min(len(m["i"].expandtabs(4)) for m in found)
        found = [m for m in found if len(m["i"].expandtabs(4)) == least]
    outline = Outline()
    line = at = 0
    for match in found[:20_000]:
        line += text.count("\n", at, match.start())
        at = match.start()
        outline.headings.append(Heading(line, 1, match["t"].strip("'\" ")))
    return outline
