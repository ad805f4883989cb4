"""Precision policy, token batches, and embedding servers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd.errors import ModelError
from qmd.llm import open_embedder
from qmd.llm.batches import BUSY_TOKENS, pad_rows, plan_batches
from qmd.llm.catalog import CATALOG
from qmd.llm.providers import available_devices, place_model


def test_the_precision_follows_the_processor() -> None:
    jina, qwen = CATALOG["Xenova/jina-embeddings-v2-base-zh"], CATALOG["onnx-community/Qwen3-0.6B-ONNX"]
    reranker = CATALOG["zhiqing/Qwen3-Reranker-0.6B-seq-cls-ONNX"]
    assert place_model(jina, ("cpu",)).variant.precision == "int8"
    assert place_model(jina, ("cuda", "cpu")).variant.precision == "fp16"
    assert place_model(qwen, ("cuda", "cpu")).variant.precision == "q4f16"
    assert place_model(reranker, ("cuda", "cpu")).variant.precision == "fp32"


def test_int8_on_cuda_is_replaced_or_moved_and_said() -> None:
    jina = CATALOG["Xenova/jina-embeddings-v2-base-zh"]
    placed = place_model(jina, ("cuda", "cpu"), precision="int8")
    assert (placed.device, placed.variant.precision) == ("cuda", "fp16")
    assert "int8" in placed.note
    only = CATALOG["thomasht86/Qwen3-Reranker-0.6B-int8-ONNX"]
    moved = place_model(only, ("cuda", "cpu"))
    assert (moved.device, moved.providers) == ("cpu", ("CPUExecutionProvider",))
    assert "instead of cuda" in moved.note


def test_what_is_not_there_is_refused() -> None:
    jina = CATALOG["Xenova/jina-embeddings-v2-base-zh"]
    with pytest.raises(ModelError, match="not available"):
        place_model(jina, ("cpu",), device="cuda")
    with pytest.raises(ModelError, match="no q4 files"):
        place_model(jina, ("cpu",), precision="q4")
    assert available_devices(["CPUExecutionProvider", "CUDAExecutionProvider"]) == ("cuda", "cpu")
    assert "cpu" in available_devices()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 2000), st.integers(1, 40))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, rows: int) -> None:
    batches = list(plan_batches(lengths, token_budget=budget, max_rows=rows))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        sizes = {lengths[i] for i in batch}
        assert len(sizes) == 1 or max(sizes) < BUSY_TOKENS


def test_rows_are_padded_right_or_left() -> None:
    ids, mask = pad_rows([[1, 2, 3], [4]], 9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pad_rows([[1, 2, 3], [4]], 9, left=True)[0].tolist() == [[1, 2, 3], [9, 9, 4]]


class EmbeddingServer(ThreadingHTTPServer):
    """Vectors are letter counts; `failures` answers with 503 that often; `dims` may lie."""

    daemon_threads = True
    failures = 0
    status = 200
    dims = 26
    paths: list[str]
    keys: list[str | None]


class Embeddings(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, EmbeddingServer)
        server.paths.append(self.path)
        server.keys.append(self.headers.get("Authorization"))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rows = [[float(t.lower().count(chr(97 + i))) * 3 for i in range(server.dims)] for t in body["input"]]
        if server.failures:
            server.failures -= 1
            self.send_response(503)
            answer: Any = {"error": "busy"}
        else:
            self.send_response(server.status)
            data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
            answer = {"embeddings": rows} if "/api/" in self.path else {"data": data[::-1]}
        raw = json.dumps(answer).encode()
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    server = EmbeddingServer(("127.0.0.1", 0), Embeddings)
    server.paths, server.keys = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/v1", "/api/embed"])
def test_a_url_is_an_embedder(server: EmbeddingServer, path: str) -> None:
    embedder = open_embedder(f"http://127.0.0.1:{server.server_port}{path}?model=letters")
    vectors = embedder.embed_documents(["aab", "zzz", "a" * 4000 + "b" * 4000])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[0, :2], np.array([2, 1]) / 5**0.5, atol=1e-6)
    assert vectors[2, 1] > 0.5
    assert embedder.embed_documents([]).shape == (0, 26)
    assert set(server.paths) == {"/v1/embeddings" if path == "/v1" else "/api/embed"}


def test_the_key_is_sent_and_a_refusal_is_not_repeated(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMD_EMBEDDING_API_KEY", "secret")
    address = f"http://127.0.0.1:{server.server_port}"
    embedder = open_embedder(
        f"{address}/v1/embeddings?model=jina-embeddings-v3"
    )  # as Jina's and OpenAI's are written
    assert set(server.keys) == {"Bearer secret"}
    assert set(server.paths) == {"/v1/embeddings"}
    assert "secret" not in embedder.fingerprint
    assert embedder.fingerprint != open_embedder(f"{address}/v1?model=other").fingerprint
    server.status = 401
    asked = len(server.paths)
    with pytest.raises(ModelError, match="HTTP 401"):
        embedder.embed_query("abc")
    assert len(server.paths) == asked + 1


def test_a_password_in_the_address_is_never_shown(server: EmbeddingServer) -> None:
    embedder = open_embedder(f"http://me:hush@127.0.0.1:{server.server_port}/v1?model=letters")
    assert "hush" not in embedder.runs_on
    assert embedder.embed_query("half of a pair: \ud800").shape == (26,)
    plain = open_embedder(f"http://127.0.0.1:{server.server_port}/v1?model=letters")
    assert embedder.fingerprint == plain.fingerprint  # another password is no other model
    server.status = 401
    with pytest.raises(ModelError) as told:
        embedder.embed_query("abc")
    assert "hush" not in str(told.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:port/v1?model=m", "http://[bad/v1?model=m"])
def test_an_address_that_is_none_is_a_model_error(address: str) -> None:
    with pytest.raises(ModelError, match="embedding server"):
        open_embedder(address)


def test_a_busy_server_is_asked_again_and_a_wrong_one_refused(server: EmbeddingServer) -> None:
    embedder = open_embedder(f"http://127.0.0.1:{server.server_port}/v1?model=letters")
    server.failures = 2
    assert embedder.embed_query("abc").shape == (26,)
    server.failures = 3
    with pytest.raises(ModelError, match="HTTP 503"):
        embedder.embed_query("abc")
    server.dims = 20
    with pytest.raises(ModelError, match="expected"):
        embedder.embed_query("abc")
    with pytest.raises(ModelError, match="names no model"):
        open_embedder("http://127.0.0.1:1/v1")
