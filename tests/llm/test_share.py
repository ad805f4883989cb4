"""One process owns the model: same vectors through the socket, one server a socket, plain errors."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmd.errors import ModelError, NotFound, UsageError
from qmd.llm.engine import LLMEngine
from qmd.llm.share import PROTOCOL_VERSION, ModelServer, Request, socket_path
from qmd.llm.shared import Connection, SharedEmbedder, SharedGenerator, SharedReranker, connect, name_anywhere
from qmd.types import ModelCard


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMD_MODEL_SOCKET", str(tmp_path / "m.sock"))
    monkeypatch.setenv("QMD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("QMD_MODEL_IDLE_S", "30")
    monkeypatch.setenv("PYTHONPATH", "src")
    return tmp_path


def test_two_engines_share_one_process_and_get_the_same_vectors(place: Path) -> None:
    texts = ["how to change file permissions", "bread"]
    alone = LLMEngine().embed_texts(texts)
    first, second = LLMEngine("server"), LLMEngine("auto")
    np.testing.assert_allclose(first.embed_texts(texts), alone, atol=1e-4)
    np.testing.assert_allclose(second.embed_query(texts[0]), alone[0], atol=1e-4)
    assert first.embedder.fingerprint == LLMEngine().embedder.fingerprint
    cut = LLMEngine("auto", dim=64)  # the process keeps whole vectors for whoever wants them
    assert cut.embed_query(texts[0]).shape == (64,)
    assert cut.embedder.fingerprint == LLMEngine(dim=64).embedder.fingerprint
    connection = connect(start=False)
    assert connection is not None
    info = connection.ask("status").info
    assert info["models"] == ["embedding all-MiniLM-L6-v2"]
    assert info["pid"] != os.getpid()
    assert ModelServer(socket_path()).serve() is False
    connection.ask("stop")


def test_the_process_runs_no_code_of_the_working_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path("src").absolute()))
    monkeypatch.chdir(place)
    (place / "msgspec.py").write_text("open('ran', 'w').close()\n")
    connection = connect(start=True)
    assert connection is not None
    connection.ask("stop")
    assert not (place / "ran").exists()


def test_auto_without_a_process_works_here(place: Path) -> None:
    assert LLMEngine("auto").embed_query("hello").shape == (384,)
    assert not socket_path().exists()
    with pytest.raises(UsageError, match="mode"):
        LLMEngine("both")  # type: ignore[arg-type]


def test_the_server_survives_bad_requests_and_leaves_when_idle(place: Path) -> None:
    server = ModelServer(socket_path(), idle_s=1.5)
    thread = threading.Thread(target=server.serve)
    thread.start()
    connection = None
    while connection is None:
        connection = connect(start=False)
    (reply,) = server.answers(Request(version=PROTOCOL_VERSION + 1, op="hello"))
    assert "protocol" in reply.error
    with pytest.raises(UsageError, match="no model is for 'oracle'"):
        connection.ask("hello", model="all-MiniLM-L6-v2", role="oracle")
    with pytest.raises((ModelError, NotFound), match="no model is named"):
        connection.ask("hello", model="no-such-model")
    with pytest.raises(UsageError):
        connection.ask("dance", model="all-MiniLM-L6-v2")
    garbage = Connection(socket_path())
    garbage._socket.sendall(b"\x03\x00\x00\x00abc")
    assert connection.ask("status").info["pid"] == os.getpid()
    garbage.close()
    connection.close()
    thread.join(20)
    assert not thread.is_alive()
    assert not socket_path().exists()


class _Slow:
    def embed_documents(self, texts: list[str]) -> np.ndarray:
        time.sleep(1.5)
        return np.ones((len(texts), 2), np.float32)


def test_a_long_request_is_no_idle_time(place: Path) -> None:
    server = ModelServer(socket_path(), idle_s=0.4, open_embedder=lambda name: _Slow())  # type: ignore[arg-type,return-value]
    thread = threading.Thread(target=server.serve)
    thread.start()
    while (connection := connect(start=False)) is None:
        time.sleep(0.02)
    assert connection.ask("embed", model="slow", texts=["half of a pair: \ud800"]).shape == [1, 2]
    thread.join(20)
    assert not thread.is_alive()


def test_where_there_are_no_unix_sockets_auto_works_here(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("socket.AF_UNIX")
    assert connect(start=False) is None
    with pytest.raises(ModelError, match="standalone"):
        connect(start=True)


def test_a_path_too_long_for_a_socket_is_said_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMD_MODEL_SOCKET", str(place / ("long" * 30) / "m.sock"))
    monkeypatch.setattr("qmd.llm.shared.START_TIMEOUT_S", 1.0)
    with pytest.raises(ModelError, match=r"too long for a Unix socket\. Set QMD_MODEL_SOCKET"):
        connect(start=True)
    assert connect(start=False) is None


def test_a_reranker_is_shared_and_idle_models_are_unloaded(place: Path, tiny_model: Any) -> None:
    folder = str(tiny_model("bert-seq-cls")[0])
    server = ModelServer(socket_path(), idle_s=6.0)
    thread = threading.Thread(target=server.serve)
    thread.start()
    while connect(start=False) is None:
        time.sleep(0.02)
    here = LLMEngine().reranker(folder)
    shared = LLMEngine("auto").reranker(folder)
    assert isinstance(shared, SharedReranker)
    assert shared.fingerprint == here.fingerprint
    np.testing.assert_allclose(shared.score("bread", ["a", "b"]), here.score("bread", ["a", "b"]), atol=1e-5)
    connection = connect(start=False)
    assert connection is not None
    assert connection.ask("status").info["models"] == [f"reranker {folder}"]
    for _ in range(60):  # asking for the status keeps the process, not the model
        if not connection.ask("status").info["models"]:
            break
        time.sleep(0.2)
    assert connection.ask("status").info["models"] == []
    connection.ask("stop")
    thread.join(20)
    assert not thread.is_alive()


def test_a_generator_is_shared_streams_and_can_be_left(place: Path, tiny_model: Any) -> None:
    folder = str(tiny_model("qwen3-causal")[0])
    server = ModelServer(socket_path(), idle_s=30.0)
    thread = threading.Thread(target=server.serve)
    thread.start()
    while connect(start=False) is None:
        time.sleep(0.02)
    here, shared = LLMEngine().generator(folder), LLMEngine("auto").generator(folder)
    assert isinstance(shared, SharedGenerator)
    assert shared.fingerprint == here.fingerprint
    options: Any = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    pieces = list(shared.generate("bread", **options))
    assert pieces == list(here.generate("bread", **options))
    assert len(pieces) > 2
    talk = [("system", "be brief"), ("user", "bread")]
    assert list(shared.generate_chat(talk, **options)) == list(here.generate_chat(talk, **options))
    stream = shared.generate("bread", max_new_tokens=60)
    assert next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert list(shared.generate("bread", **options)) == pieces  # the one that was left holds up nobody
    with pytest.raises(UsageError, match="must lie"):
        list(shared.generate("bread", top_p=0.0))
    connection = connect(start=False)
    assert connection is not None
    connection.ask("stop")
    thread.join(20)
    assert not thread.is_alive()


class Lengths:
    """An embedder whose vectors say how long a text is."""

    card = ModelCard("lengths", "embedding", 1, 64)
    dim, max_tokens, fingerprint = 1, 64, "lengths"

    def embed_documents(self, texts: Any) -> Any:
        return np.array([[len(text)] for text in texts], np.float32)

    def embed_query(self, text: str) -> Any:
        return self.embed_documents([text])[0]

    def count_tokens(self, texts: Any) -> list[int]:
        return [len(text) for text in texts]


def test_no_reply_is_taken_for_that_to_another_question(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ModelServer(socket_path(), open_embedder=lambda _: Lengths())
    thread = threading.Thread(target=server.serve)
    thread.start()
    connection = None
    while connection is None:
        connection = connect(start=False)
    embedder = SharedEmbedder(connection, "lengths")
    with monkeypatch.context() as patch:
        patch.setattr("qmd.llm.shared.receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            embedder.embed_query("four")
    assert embedder.embed_query("thirteen") == [8]
    connection.ask("stop")
    thread.join(20)
    assert not thread.is_alive()
    connection.close()
    with pytest.raises(ModelError, match="went away"):
        embedder.embed_query("four")


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_a_model_of_this_folder_is_that_of_this_folder_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "model").mkdir(parents=True)
    for name in ("./m", "me/model", "models/x.gguf"):
        assert name_anywhere(name) == str(tmp_path / name)
    assert name_anywhere("~/m") == str(Path.home() / "m")
    assert name_anywhere("~nosuch/m") == str(tmp_path / "~nosuch/m")
    for name in (
        "all-MiniLM-L6-v2",
        "owner/name",
        "owner/name@v1",
        "owner/name-GGUF:Q4_K_M",
        "http://h:80/v1?model=a",
    ):
        assert name_anywhere(name) == name
