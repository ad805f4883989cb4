"""The index of an agent on standard input: models opened ahead of the first search, let go when nobody searches."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from household import CONFIG, WordEmbedder

import qmd.llm
from qmd.config import Places
from qmd.serve.mcp import near, stdio
from qmd.serve.mcp.near import NearIndex
from qmd.serve.mcp.operations import Kept


class Watched(WordEmbedder):
    """Counts how often it is opened, and takes a while for that, as a model does."""

    opened = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).opened += 1
        time.sleep(0.05)


@pytest.fixture
def close_to(home: Path, places: Places, monkeypatch: pytest.MonkeyPatch) -> Any:
    Watched.opened = 0
    monkeypatch.setenv("QMD_NO_DAEMON", "1")
    monkeypatch.setattr(qmd.llm, "open_embedder", lambda name, **_: Watched())
    session = SimpleNamespace(
        index="index",
        open=lambda: qmd.index.open(places=places, config=CONFIG, create=False),
    )
    index = NearIndex(session)  # type: ignore[arg-type]
    yield index
    index.close()


def test_a_search_that_comes_while_the_model_loads_waits_for_that_one(close_to: NearIndex) -> None:
    threads = [threading.Thread(target=close_to.warm) for _ in range(4)]
    for thread in threads:
        thread.start()
    hits = close_to.query("bread")
    for thread in threads:
        thread.join()
    assert hits
    assert hits.degraded == ()
    assert Watched.opened == 1


def test_models_rest_and_come_back(close_to: NearIndex) -> None:
    assert close_to.query("bread")
    assert not close_to.rest(60)
    assert close_to._index._embedder is not None
    time.sleep(0.02)
    assert close_to.rest(0.01)
    assert close_to._index._embedder is None
    assert close_to.query("bread")
    assert Watched.opened == 2


def test_with_a_daemon_nothing_is_opened_here(close_to: NearIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(close_to, "_searcher", object)
    close_to.warm()
    assert Watched.opened == 0


def test_a_model_that_is_missing_is_told_by_the_search_and_not_before(
    close_to: NearIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qmd.errors import ModelError

    def missing(name: str, **_: object) -> None:
        raise ModelError("no such model")

    monkeypatch.setattr(qmd.llm, "open_embedder", missing)
    close_to.warm()
    hits = close_to.query("bread")
    assert hits
    assert hits.degraded == ("vector: no such model",)


def test_the_server_opens_models_at_once_and_lets_them_rest(
    close_to: NearIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "REST_EVERY_S", 0.01)
    monkeypatch.setattr(stdio, "IDLE_S", 0.05)
    rested = threading.Event()
    rest = near.NearIndex.rest

    def watched(self: NearIndex, idle_s: float) -> bool:
        done = rest(self, idle_s)
        if done:
            rested.set()
        return done

    monkeypatch.setattr(near.NearIndex, "rest", watched)
    stopped = threading.Event()
    thread = threading.Thread(target=stdio._keep_models, args=(Kept(lambda: close_to), stopped))
    thread.start()
    assert rested.wait(5)
    stopped.set()
    thread.join(5)
    assert not thread.is_alive()
    assert Watched.opened == 1
