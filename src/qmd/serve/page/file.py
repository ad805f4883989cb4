"""Read `index.html` and write the Content-Security-Policy that allows its own style and script by hash."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from qmd.errors import NotFound

_INLINE = re.compile(rb"<(?P<tag>script|style)>(?P<content>.*?)</(?P=tag)>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """The bytes to send and the policy to send with them."""

    content: bytes
    policy: str


@cache
def read_page() -> Page:
    """The page of this installation. Raises NotFound where it was left out."""
    try:
        content = files("qmd.serve").joinpath("page", "index.html").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("this installation has no search page; POST /query answers.") from None
    return Page(content, policy_for(content))


def policy_for(content: bytes) -> str:
    """Nothing but this page's inline style and script, and its own origin. Images of a server with a token come by
    fetch (`blob:`), the icon is in the page (`data:`). Trusted Types: a string can never become markup."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for found in _INLINE.finditer(content):
        digest = base64.b64encode(hashlib.sha256(found["content"]).digest()).decode()
        hashes[found["tag"].decode()].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
