"""A real server over a small index, and a real Chromium. A page that logs an error, breaks its policy or asks another
host for anything fails its test, whatever else the test looks at."""

# ruff: noqa: E501  documents and answers stand on their own lines
from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import qmd.index
from qmd.config import Places
from qmd.serve.http.app import create_app
from qmd.serve.service import Service
from qmd.types import ModelCard

REMEDY = "no Chromium was found. Run `apt-get install chromium`, or `python -m playwright install chromium`."
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")

PATIENCE_MS = 30_000
"""A machine that is busy with other things is slow, not wrong."""
expect.set_options(timeout=PATIENCE_MS)

DOCUMENTS = {
    "garden/tomatoes.md": """---
tags: [garden, balcony]
date: 2026-03-02
---

# Tomatoes on the balcony

Sow indoors in March, on the sill.

## Watering

Water the tomatoes in the morning, at the root.
Never wet the **leaves**; wet leaves invite mildew.

## Harvest

Last year: 11 kg. The rest became [[soup]].
""",
    "garden/zucchini.md": "---\ntags: [garden]\ndate: 2024-05-01\n---\n\n# Zucchini\n\nOne plant is enough. Water it more than tomatoes.\n",
    "kitchen/soup.md": "# Soup\n\nRoast the tomatoes, then blend them with basil.\n",
    "kitchen/timer.py": "def wait_for_tomatoes(minutes):\n    return minutes * 60\n",
    "kitchen/番茄炒蛋.md": "# 番茄炒蛋\n\n先炒鸡蛋，再炒番茄，最后放盐。\n",
    "kitchen/トマト.md": "# トマトの保存\n\nトマトは冷蔵庫に入れず、ヘタを下にして保存する。\n",
    "garden/almanac.md": "# Almanac\n\n"
    + "".join(
        f"Day {n}: the xylophone stood in the shed.\n" if n == 700 else f"Day {n}: quiet weather.\n"
        for n in range(1, 901)
    ),
}
HOSTILE = {
    'odd/<b>bold & "quoted".md': "# <img src=x onerror=\"window.pwned='title'\">\n\n"
    "Hostile text <script>window.pwned='script'</script> and <svg onload=\"window.pwned='svg'\"> here.\n\n"
    "A [link](javascript:window.pwned='link') and <a href=\"javascript:window.pwned='a'\">another</a>, hostile.\n\n"
    "Escape \x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07link\x1b]8;;\x07 and \u202egnp.exe\u202c hostile.\n\n"
    "<style>body{display:none}</style><iframe src=\"https://evil.example/\"></iframe> {{constructor.constructor('alert(1)')()}}\n",
}


class Letters:
    """An embedder without a model: a text's vector counts its groups of three letters."""

    card = ModelCard(name="letters", role="embedding", dim=64, languages=("en", "zh", "ja"))
    dim = 64
    max_tokens = 512
    fingerprint = "letters:64"

    def embed_documents(self, texts: Sequence[str]) -> Any:
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for at in range(max(1, len(text) - 2)):
                row[zlib.crc32(text[at : at + 3].lower().encode()) % self.dim] += 1
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    def embed_query(self, text: str) -> Any:
        return self.embed_documents([text])[0]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) // 3 + 1 for text in texts]


class Scribe:
    """Writes one sentence that its source holds and one that none does, piece by piece."""

    name = "scribe"
    answer = "Water the tomatoes in the morning, at the root [1]. Elephants like jazz."

    def write(self, messages: Any, *, stream: Callable[[str], None] | None = None, **_: Any) -> str:
        for piece in self.answer.split(" "):
            if stream is not None:
                stream(f"{piece} ")
            time.sleep(0.01)
        return self.answer


def build_index(folder: Path, files: dict[str, str]) -> Places:
    places = Places(folder / "config", folder / "data")
    with qmd.index.open(places=places, embedder=Letters()) as index:
        for name in sorted({path.split("/")[0] for path in files}):
            (folder / name).mkdir()
            for path, text in files.items():
                if path.startswith(f"{name}/"):
                    (folder / path).write_text(text, encoding="utf-8")
            index.add(folder / name)
    return places


@dataclass
class Server:
    """An address, and the service that answers there."""

    url: str
    service: Service
    stop: Callable[[], None]


def serve(places: Places, *, token: str | None = None, port: int = 0) -> Server:
    service = Service(places=places, open_embedder=lambda _: Letters(), open_writer=lambda *_: Scribe())
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    app = create_app(service, token=token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join(timeout=10)
        service.close(0.5)

    return Server(f"http://127.0.0.1:{bound.getsockname()[1]}", service, stop)


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return build_index(tmp_path_factory.mktemp("page"), DOCUMENTS | HOSTILE)


@pytest.fixture(scope="session")
def server(places: Places) -> Iterator[Server]:
    running = serve(places)
    yield running
    running.stop()


def find_chromium(own: str) -> str | None:
    """Playwright's own, else one of the system."""
    return own if Path(own).exists() else next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = find_chromium(playwright.chromium.executable_path)
        if path is None and os.environ.get("CI"):
            pytest.fail(REMEDY)
        if path is None:
            pytest.skip(REMEDY)
        launched = playwright.chromium.launch(executable_path=path)
        yield launched
        launched.close()


@dataclass
class Visit:
    """A page that is open. `expected` are pieces of console messages that the test provokes on purpose."""

    page: Page
    url: str
    expected: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def type(self, text: str) -> None:
        self.page.locator("#q").fill(text)

    def wait_hits(self) -> None:
        self.page.locator("#found:not(.waiting) [role=option]").first.wait_for()

    @property
    def titles(self) -> list[str]:
        return self.page.locator("#hits h3").all_inner_texts()

    def wait_titles(self, *titles: str) -> None:
        expect(self.page.locator("#hits h3")).to_have_text(list(titles))


@pytest.fixture
def visit(browser: Browser, server: Server, start_server: Any) -> Iterator[Callable[..., Visit]]:
    """Pages, closed before the servers that they listen to are stopped."""
    opened: list[tuple[BrowserContext, Visit]] = []

    def open_page(
        hash: str = "", *, to: str | None = None, before: Callable[[Page], None] | None = None, **context: Any
    ) -> Visit:
        made = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "locale": "en-US", "reduced_motion": "reduce"}
            | context
        )
        made.set_default_timeout(PATIENCE_MS)
        page = made.new_page()
        there = Visit(page, to or server.url)
        page.on(
            "console",
            lambda m: there.troubles.append(f"console: {m.text}") if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda e: there.troubles.append(f"error: {e}"))
        page.on("dialog", lambda d: (there.troubles.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: there.asked.append(r.url))
        if before is not None:
            before(page)
        page.goto(f"{there.url}/{hash}")
        opened.append((made, there))
        return there

    yield open_page
    for made, there in opened:
        made.close()
        others = [u for u in there.asked if not u.startswith((there.url, "data:", "blob:"))]
        assert not others, "requests left the origin"
        unexpected = [t for t in there.troubles if not any(piece in t for piece in there.expected)]
        assert not unexpected


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """More servers: `start_server(places, token=..., port=...)`."""
    started: list[Server] = []

    def start(*args: Any, **kwargs: Any) -> Server:
        started.append(serve(*args, **kwargs))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def empty_places(tmp_path: Path) -> Places:
    """An index that holds nothing yet."""
    return build_index(tmp_path, {})


PICTURES = Path(__file__).parents[3] / "examples" / "vault"


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server over notes and real pictures, looked at by the model that QMD ships."""
    folder = tmp_path_factory.mktemp("pictured")
    places = build_index(
        folder, {"album/trip.md": "# The trip\n\nWe rode the old line.\n\n![](IMG_0417.png)\n"}
    )
    for name in ("travel/IMG_0417.png", "daily/IMG_0388.png", "kitchen/loaf.png"):
        shutil.copy(PICTURES / name, folder / "album")
    with qmd.index.open(places=places, embedder=Letters()) as index:
        index.update()
        done = index.embed().pictures
        assert done is not None
        assert done.embedded == 3
    running = serve(places)
    yield running
    running.stop()
