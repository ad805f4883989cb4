"""The routes: the same answers as the command line and the Python door, in the shapes that clients expect."""

from __future__ import annotations

import ast
import base64
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from starlette.testclient import TestClient

import qmd
from qmd.search import reference
from qmd.serve.cli.format_hits import View, format_hits
from qmd.serve.http import routes_documents
from qmd.serve.http.notes import code_of
from qmd.serve.service import Service
from qmd.types import Hits

Client = TestClient


def events(text: str) -> list[tuple[str, Any]]:
    blocks = [b.split("\n") for b in text.strip().split("\n\n")]
    return [
        (b[0].removeprefix("event: "), json.loads(b[1].removeprefix("data: "))) for b in blocks if len(b) == 2
    ]


@pytest.mark.parametrize("path", ["/query", "/search"])
def test_query_answers_what_the_command_line_prints(client: Client, service: Service, path: str) -> None:
    answer = client.post(path, json={"query": "water memory", "limit": 3})
    hits = service.index.query("water memory", limit=3)
    assert len(hits) == 3
    assert answer.text == format_hits(hits, "json", View())
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "body",
    [
        {"mode": "keyword", "query": "water", "collections": ["notes"], "path": "home/*"},
        {"mode": "vector", "query": "short memory", "min_score": 0.2},
        {"query": "memory", "tags": ["heap"], "after": "2024-01", "before": "2025", "full": True},
        {"query": "味噌", "explain": True},
        {"query": "nothing at all like zzzz"},
    ],
)
def test_every_argument_of_the_python_door_is_a_field(
    client: Client, service: Service, body: dict[str, Any]
) -> None:
    options = dict(body)
    way = {"keyword": "search", "vector": "vsearch"}.get(options.pop("mode", ""), "query")
    hits: Hits = getattr(service.index, way)(options.pop("query"), **options)
    assert client.post("/query", json=body).text == format_hits(hits, "json", View())


def test_vsearch_is_the_vector_mode(client: Client) -> None:
    body = {"query": "short memory"}
    assert (
        client.post("/vsearch", json=body).json()
        == client.post("/query", json=body | {"mode": "vector"}).json()
    )


def test_the_full_shape_has_marks_and_timings(client: Client) -> None:
    value = client.post("/query?shape=hits", json={"query": "miso"}).json()
    assert set(value) >= {"hits", "degraded", "timings_ms"}
    hit = value["hits"][0]
    start, end = hit["marks"][0]
    assert hit["snippet"][start:end] == "miso"
    assert hit["path"] == "home/soup.md"
    assert hit["context"] == "The household"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"query": "x", "limt": 3}, "Did you mean 'limit'"),
        ({"query": "x", "embedder": 1}, "unknown field 'embedder'"),
        ({"limit": 3}, "'query' is missing"),
        ({"query": "x", "limit": "3"}, "'limit'"),
        ({"query": "x", "limit": 0}, "1 to 1000"),
        ({"query": "x", "limit": 1001}, "1 to 1000"),
        ({"query": "x", "mode": "magic"}, "mode"),
        ({"query": "x", "mode": []}, "mode"),
        ({"query": "x", "mode": {}}, "mode"),
        ({"image": ""}, "picture"),
        ({"query": "x", "collections": "notes"}, "'collections'"),
        ({"query": "x", "collections": ["nope"]}, "nope"),
        ({"query": "x", "after": "yesterday"}, "not a date"),
        ({"query": "x" * 8193}, "longer than 8192"),
        ({"query": "あ" * 3000}, "longer than 8192"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(client: Client, body: dict[str, Any], told: str) -> None:
    answer = client.post("/query", json=body)
    assert answer.status_code in (400, 404)
    assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"x"', b"\xff", b"[" * 100_000, b""])
def test_a_body_that_is_no_object_is_refused(client: Client, body: bytes) -> None:
    answer = client.post("/query", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_all_means_a_thousand(client: Client, monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    asked: dict[str, Any] = {}

    def search(mode: str, query: str, **options: Any) -> Hits:
        asked.update(options)
        return Hits(())

    monkeypatch.setattr(service, "search_now", search)
    client.post("/query", json={"query": "x", "all": True})
    assert asked == {"limit": 1000}


def test_documents(client: Client, service: Service) -> None:
    found = client.get("/documents/notes/work/memory.md").json()
    assert found["body"] == service.index.get("notes/work/memory.md").text
    part = client.get("/documents/notes/home/soup.md?from_line=3&max_lines=1").json()
    assert (part["body"], part["line"], part["end_line"]) == ("Boil water, add miso.", 3, 3)
    assert client.get("/documents/notes/日本/スープ.md").json()["title"] == "味噌汁"
    assert client.get("/documents/notes/home/nope.md").status_code == 404
    assert client.get("/documents/notes/home/soup.md?from_line=0").status_code == 400
    assert (
        client.get("/documents/notes/home/soup.md?from=2")
        .json()["error"]["message"]
        .startswith("unknown field")
    )


def test_lists_of_documents(client: Client) -> None:
    answer = client.get("/documents?limit=2&offset=1")
    assert answer.headers["QMD-Total"] == "6"
    assert [row["path"] for row in answer.json()] == ["home/soup.md", "home/trap.md"]
    assert {row["path"] for row in client.get("/documents?path=notes/work").json()} == {
        "work/files.md",
        "work/memory.md",
    }
    several = client.get("/documents", params={"pattern": "home/*.md", "max_lines": 1}).json()
    assert [one["body"] for one in several] == ["# Cats", "# Soup", "# Trap"]


def test_status_health_ready_metrics(client: Client, service: Service) -> None:
    assert client.get("/health").json()["status"] == "ok"
    service.warm()
    assert client.get("/ready").json() == {"status": "ready"}
    status = client.get("/status").json()
    assert status["documents"] == 6
    assert status["serve"]["models"]["embedding"] == "loaded"
    client.post("/query", json={"query": "secretword"})
    metrics = client.get("/metrics").text
    assert 'qmd_requests_total{route="query",status="200"}' in metrics
    assert 'qmd_request_seconds_bucket{route="query",le="+Inf"}' in metrics
    assert "secretword" not in metrics
    for line in metrics.splitlines():
        assert line.startswith("#") or float(line.rpartition(" ")[2]) >= 0


def test_embed_in_the_shape_of_tei(client: Client, made: SimpleNamespace) -> None:
    rows = client.post("/embed", json={"inputs": ["water", "memory heap"]}).json()
    np.testing.assert_allclose(rows, made.embedder.embed_documents(["water", "memory heap"]), atol=1e-6)
    assert client.post("/embed", json={"inputs": "water"}).json() == [rows[0]]
    assert client.post("/embed", json={"inputs": []}).status_code == 400
    assert client.post("/embed", json={"inputs": ["x"] * 3000}).status_code == 400


def test_embeddings_in_the_shape_of_openai(client: Client) -> None:
    floats = client.post("/v1/embeddings", json={"input": ["water", "heap"], "model": "default"}).json()
    packed = client.post(
        "/v1/embeddings", json={"input": ["water", "heap"], "model": "words", "encoding_format": "base64"}
    ).json()
    assert floats["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert [d["index"] for d in floats["data"]] == [0, 1]
    for plain, coded in zip(floats["data"], packed["data"], strict=True):
        row = np.frombuffer(base64.b64decode(coded["embedding"]), "<f4")
        np.testing.assert_allclose(plain["embedding"], row, atol=1e-7)
    assert client.post("/v1/embeddings", json={"input": "x", "model": "../../etc"}).status_code == 404
    assert client.post("/v1/embeddings", json={"input": [[1, 2]], "model": "words"}).status_code == 400
    assert client.post("/v1/embeddings", json={"input": "x", "dimensions": 7}).status_code == 400
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["words", "overlap"]


def test_rerank_in_three_shapes(client: Client) -> None:
    texts = ["cats fear water", "boil miso soup", "water the miso"]
    tei = client.post("/rerank", json={"query": "miso water", "texts": texts, "return_text": True}).json()
    assert [r["index"] for r in tei] == [2, 0, 1]
    assert tei[0]["score"] == 1.0
    assert tei[0]["text"] == texts[2]
    jina = client.post(
        "/v1/rerank", json={"query": "miso water", "documents": texts, "top_n": 2, "model": "overlap"}
    )
    assert [r["index"] for r in jina.json()["results"]] == [2, 0]
    cohere = client.post(
        "/v2/rerank",
        json={"query": "miso", "documents": [{"text": t} for t in texts], "return_documents": True},
    ).json()
    assert [r["document"]["text"] for r in cohere["results"]] == [
        "boil miso soup",
        "water the miso",
        "cats fear water",
    ]
    assert (
        client.post("/rerank", json={"query": "x", "documents": texts, "model": "other"}).status_code == 404
    )
    assert client.post("/rerank", json={"query": "x", "documents": [{"no": "text"}]}).status_code == 400


def test_ask_streams_sources_then_words_then_the_answer(client: Client) -> None:
    told = events(client.post("/ask", json={"question": "how do I boil miso water"}).text)
    names = [name for name, _ in told]
    assert names[0] == "sources"
    assert names[-1] == "done"
    assert set(names[1:-1]) == {"text"}
    assert told[0][1][0]["file"] == "qmd://notes/home/soup.md"
    assert "".join(piece for name, piece in told if name == "text").strip() == told[-1][1]["text"]
    assert told[-1][1]["claims"][0]["supported"] is True


def test_ask_refuses_what_would_open_other_models(client: Client) -> None:
    answer = client.post("/ask", json={"question": "x", "model": "http://evil/v1#m"})
    assert answer.status_code == 400


def test_expand_says_what_is_missing(client: Client) -> None:
    answer = client.post("/expand", json={"query": "x"})
    assert answer.status_code == 400
    assert "models.expansion" in answer.json()["error"]["message"]


def test_the_openapi_document_names_every_route_and_field(client: Client) -> None:
    import inspect

    found = client.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    for path in (
        "/query",
        "/ask",
        "/rerank",
        "/v1/embeddings",
        "/documents/{collection}/{path}",
        "/raw/{docid}",
    ):
        assert path in found["paths"]
    fields = found["paths"]["/query"]["post"]["requestBody"]["content"]["application/json"]["schema"][
        "properties"
    ]
    signature = set(inspect.signature(qmd.Index.query).parameters) - {"self"}
    assert set(fields) - {"mode", "image"} <= signature
    assert {"query", "limit", "collections", "min_score", "full", "explain"} <= set(fields)


def test_the_openapi_document_describes_what_is_answered(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/mcp" not in paths
    for path in ("/query", "/search", "/vsearch"):
        told = paths[path]["post"]
        assert [one["name"] for one in told["parameters"]] == ["shape"]
        schema = told["requestBody"]["content"]["application/json"]["schema"]
        for body in (
            {"query": "water"},
            {"image": "aGk="},
            {"image": "aGk=", "query": "at night", "limit": 2},
        ):
            jsonschema.validate(body, schema)
        for body in ({}, {"limit": 2}, {"image": 1}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(body, schema)


def test_a_picture_is_answered_in_both_shapes(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits = service.index.query("water", limit=1)
    monkeypatch.setattr(type(service.index), "query_image", lambda self, picture, text, **options: hits)
    body = {"image": base64.b64encode(b"picture").decode()}
    assert client.post("/query", json=body).text == format_hits(hits, "json", View())
    told = client.post("/query?shape=hits", json=body).json()
    assert [hit["path"] for hit in told["hits"]] == [hits[0].path]
    assert "notes" in told


def test_a_name_with_a_line_break_is_a_name(client: Client, made: SimpleNamespace) -> None:
    file = made.notes / "two\nlines.md"
    file.write_text("# Two lines\n")
    try:
        made.service.index.update()
        assert client.get("/documents/notes/two%0Alines.md").json()["title"] == "Two lines"
    finally:
        file.unlink()
        made.service.index.update()


def test_unknown_paths_and_methods(client: Client) -> None:
    assert client.get("/nope").json()["error"]["type"] == "NotFound"
    assert client.get("/query").status_code == 405


def test_events_begin_with_what_is_known(client: Client, service: Service) -> None:
    service.events.publish("index", collection="notes", stage="embed", done=3, total=9)
    service.events.publish("end")
    text = client.get("/events").text
    service.events.last.pop("end")
    assert ("index", {"collection": "notes", "stage": "embed", "done": 3, "total": 9}) in events(text)
    assert service.events.listeners == 0


def test_the_interface_says_when_something_breaks_without_the_words_of_the_query(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **options: Any) -> Hits:
        raise RuntimeError("cannot handle 'my secret'")

    monkeypatch.setattr(service, "search_now", broken)
    answer = client.post("/query", json={"query": "my secret"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_tags_most_used_first_and_bounded(client: Client) -> None:
    found = client.get("/tags").json()
    assert [row["documents"] for row in found] == sorted((row["documents"] for row in found), reverse=True)
    assert {row["tag"] for row in found} >= {"heap"}
    assert len(client.get("/tags?limit=1").json()) == 1
    padded = f"limit={'0' * 11}1{'9' * 5000}"
    for wrong in ("limit=0", "limit=1001", "limit=x", "most=3", padded):
        assert client.get(f"/tags?{wrong}").status_code == 400


def test_a_long_list_of_documents_is_read_no_further_than_it_is_shown(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    kind = type(service.index.store.documents)
    document = kind.get
    monkeypatch.setattr(kind, "get", lambda self, number: read.append(number) or document(self, number))
    monkeypatch.setattr(routes_documents, "LISTED", 2)
    assert len(client.get("/documents?pattern=notes/*").json()) == 2
    assert len(read) == 2
    monkeypatch.setattr(routes_documents, "ANSWER_BYTES", 10)
    assert all(one["skipped"] for one in client.get("/documents?pattern=notes/*").json())
    looked: list[str] = []
    monkeypatch.setattr(reference, "_near", lambda store, wanted: looked.append(wanted) or "")
    monkeypatch.setattr(routes_documents, "LISTED", 1000)
    many = ",".join(f"nothing-{n}.md" for n in range(300))
    assert len(client.get("/documents", params={"pattern": many}).json()) == 300
    assert len(looked) == 10


def test_a_hit_in_a_vault_has_its_link_in_the_full_shape(client: Client, made: SimpleNamespace) -> None:
    body = {"query": "water memory", "limit": 3}
    assert not [h for h in client.post("/query?shape=hits", json=body).json()["hits"] if "link" in h]
    vault = made.notes / ".obsidian"
    vault.mkdir()
    try:
        hits = client.post("/query?shape=hits", json=body).json()["hits"]
    finally:
        vault.rmdir()
    assert all(h["link"].startswith("obsidian://open?vault=notes&file=") for h in hits)


def test_notes_have_codes(client: Client) -> None:
    told = client.post("/query?shape=hits", json={"query": 'memroy "no such phrase"'}).json()
    assert [n["text"] for n in told["notes"]] == told["degraded"]
    assert told["degraded"]
    assert {n["code"] for n in told["notes"]} <= {"quoted", "spelling"}


def notes_of_the_search() -> list[str]:
    """Every note that the code of the search writes, with 7 for each number or word that is put in."""
    found = []
    for file in Path(reference.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        pieces = {id(p) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for p in node.values}
        for node in ast.walk(tree):
            if id(node) in pieces:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            elif isinstance(node, ast.JoinedStr):
                text = "".join(
                    str(p.value) if isinstance(p, ast.Constant) else put_in(p) for p in node.values
                )
            else:
                continue
            if re.fullmatch(r"(keyword|vector|rerank|expand): \S.+", text):
                found.append(text)
    return list(dict.fromkeys(found))


def put_in(part: ast.expr) -> str:
    assert isinstance(part, ast.FormattedValue)
    if ast.unparse(part.value) == "request.mode":
        return "keyword"
    return "'7'" if part.conversion == ord("r") else "7"


def test_every_note_of_the_search_has_a_code() -> None:
    written = notes_of_the_search()
    assert len(written) >= 9
    assert [note for note in written if code_of(note)["code"] == "other"] == []
    budget = "vector: left out, takes about 700 ms and 20 of 100 ms are left"
    assert code_of(budget) == {"code": "too-slow", "values": ["vector", "700", "20", "100"], "text": budget}
    mismatch = (
        "vector: the index holds vectors of a (3d), the configuration asks for b (4d). Run `qmd embed`."
    )
    assert code_of(mismatch)["values"] == ["a", "b"]
    assert code_of("vector: the index has no vectors yet. Run `qmd embed`.")["code"] == "vectors-none"
    assert code_of("something: else")["code"] == "other"
