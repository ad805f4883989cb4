"""A writer behind an OpenAI-compatible server: `http://host:port/v1#model-name`. The key, if any, is in QMD_API_KEY;
a user and a password may stand in the address, which is never shown with them."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import urllib.request
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from qmd.errors import ModelError, hide_password


class RemoteWriter:
    """Streams `/chat/completions`."""

    def __init__(self, address: str, *, timeout_s: float = 120.0) -> None:
        self.name = hide_password(address)
        self.url, _, self.model = self.name.partition("#")
        self.url = self.url.rstrip("/")
        self._login = _login_of(address)
        self.timeout_s = timeout_s

    def write(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        keep: str = "",
        max_new_tokens: int = 160,
        stream: Callable[[str], None] | None = None,
    ) -> str:
        """Raises ModelError if the server cannot be reached, refuses, or answers in another form."""
        body = {
            "model": self.model or "default",
            "messages": [{"role": role, "content": text} for role, text in messages],
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "stream": True,
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get("QMD_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['QMD_API_KEY']}"
        elif self._login:
            headers["Authorization"] = self._login
        text, spoke = "", False
        try:
            request = urllib.request.Request(
                f"{self.url}/chat/completions", json.dumps(body).encode(), headers
            )
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                for raw in answer:
                    line = raw.decode("utf-8").strip()
                    if not line.startswith("data:") or line == "data: [DONE]":
                        continue
                    event = json.loads(line[5:])
                    if event.get("error"):
                        raise ValueError(f"it says {event['error']}")
                    choices = event.get("choices")
                    if not choices:  # figures of use, at the end
                        continue
                    spoke = True
                    piece = (choices[0].get("delta") or {}).get("content") or ""
                    text += piece
                    if piece and stream is not None:
                        stream(piece)
            if not spoke:
                raise ValueError("it streams no text")
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
        ) as error:
            raise ModelError(
                f"no answer from {self.url}: {error}. Is the server running, and the model known there?"
            ) from error
        return text


def _login_of(address: str) -> str | None:
    """The user and password of an address, as a header's value."""
    found = re.match(r"https?://([^/?#]*)@", address, re.IGNORECASE)
    return found and f"Basic {base64.b64encode(unquote(found[1]).encode()).decode()}"
