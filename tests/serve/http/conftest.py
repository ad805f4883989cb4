"""A small real index, models that are deterministic stand-ins, and the service and application over them."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qmd
from qmd.config import Config, Models, Places

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from qmd.serve.http.app import create_app
from qmd.serve.service import Limits, Service
from qmd.types import ModelCard

URL = "http://127.0.0.1:8181"
HOSTILE = "# Trap\n\nignored \x1b[31mred\x1b[0m \u202egnp.exe\u202c <script>alert(1)</script> orchid\n"
NOTES = {
    "work/memory.md": "---\ntags: [c, heap]\ndate: 2024-03-01\n---\n# Memory\n\nAllocate memory on the heap.\n",
    "work/files.md": "# Files\n\nFile permissions are changed with chmod.\n",
    "home/soup.md": "# Soup\n\nBoil water, add miso.\nServe hot.\n",
    "home/cats.md": "# Cats\n\nCats fear water. Memory of a cat is short.\n",
    "home/trap.md": HOSTILE,
    "日本/スープ.md": "# 味噌汁\n\nお湯を沸かして味噌を入れる。\n",
}
MODEL = "words"


class WordEmbedder:
    """A text is the sum of its words' pseudo-random directions. `calls` holds the texts of every call."""

    def __init__(self, name: str = MODEL, pause_s: float = 0.0) -> None:
        self.card = ModelCard(name=name, role="embedding", dim=32)
        self.dim = 32
        self.max_tokens = 256
        self.fingerprint = f"{name}:32"
        self.pause_s = pause_s
        self.calls: list[list[str]] = []
        self.inside = 0
        self.most_inside = 0

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)
        self.calls.append(list(texts))
        time.sleep(self.pause_s)
        rows = np.stack([self._one(text) for text in texts])
        self.inside -= 1
        return rows

    def embed_query(self, text: str) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self.embed_documents([text])[0]
        return row

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + 2 for text in texts]

    def _one(self, text: str) -> NDArray[np.float32]:
        vector = np.full(self.dim, 1e-3)
        for word in text.lower().split():
            vector += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(self.dim)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


class LengthReranker:
    """The share of the query's words that a text holds."""

    def __init__(self) -> None:
        self.card = ModelCard(name="overlap", role="reranker")
        self.fingerprint = "overlap"
        self.calls: list[tuple[str, list[str]]] = []

    def score(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append((query, list(texts)))
        words = set(query.lower().split())
        return np.array([len(words & set(t.lower().split())) / len(words) for t in texts], np.float32)


class Parrot:
    """Writes the first source, word by word, and can be slow about it."""

    name = "parrot"

    def __init__(self) -> None:
        self.pause_s = 0.0
        self.stopped = threading.Event()
        self.written = 0

    def write(self, messages: Any, *, keep: str = "", max_new_tokens: int = 160, stream: Any = None) -> str:
        words = [f"{word} " for word in ["Boil", "water,", "add", "miso.", "[1]", "Serve", "hot.", "[1]"]]
        try:
            for word in words:
                time.sleep(self.pause_s)
                stream(word)
                self.written += 1
        except BaseException:
            self.stopped.set()
            raise
        return "".join(words)


def write_notes(folder: Path, notes: dict[str, str] | None = None) -> Path:
    for name, text in (notes or NOTES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


CONFIG = Config(models=Models(embedding=MODEL, reranker="overlap"))


def make_service(folder: Path, **options: Any) -> SimpleNamespace:
    """An index of NOTES below `folder`, and a service over it, with its models as `embedder`, `reranker`, `writer`."""
    places = Places(folder / "config", folder / "data")
    made = SimpleNamespace(embedder=WordEmbedder(), reranker=LengthReranker(), writer=Parrot(), places=places)
    made.notes = write_notes(folder / "notes")
    if not places.database().exists():
        with qmd.open(config=CONFIG, places=places, embedder=made.embedder) as index:
            index.add(made.notes, name="notes")
            index.add_context("notes/home", "The household")
    made.embedder.calls.clear()
    options.setdefault("config", CONFIG)
    made.service = Service(
        places=places,
        limits=options.pop("limits", Limits()),
        open_embedder=options.pop("open_embedder", lambda name: made.embedder),
        open_reranker=lambda name: made.reranker,
        open_writer=lambda name, folder: made.writer,
        **options,
    )
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    found = make_service(tmp_path_factory.mktemp("served"))
    yield found
    found.service.close(1)


@pytest.fixture(scope="module")
def service(made: SimpleNamespace) -> Service:
    found: Service = made.service
    return found


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=URL, raise_server_exceptions=False) as opened:
        yield opened
