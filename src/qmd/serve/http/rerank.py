"""Reranking in the shapes of text-embeddings-inference (`texts`) and of Cohere and Jina (`documents`)."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qmd.errors import UsageError
from qmd.serve.http.fields import convert, read_object, refuse_unknown
from qmd.serve.http.openai import check_model
from qmd.serve.http.replies import reply, while_connected
from qmd.serve.http.routes_models import check_texts
from qmd.serve.service.service import Service

TEI: dict[str, Any] = {
    "query": str,
    "texts": list[str],
    "raw_scores": bool,
    "return_text": bool,
    "truncate": bool | None,
    "truncation_direction": str,
}
COHERE: dict[str, Any] = {
    "query": str,
    "documents": list[str | dict[str, Any]],
    "model": str | None,
    "top_n": int | None,
    "return_documents": bool | None,
    "rank_fields": list[str] | None,
    "max_tokens_per_doc": int | None,
    "max_chunks_per_doc": int | None,
    "priority": int | None,
    "truncation": bool | None,
}


async def rerank(request: Request) -> Response:
    """Score texts against a query; best first."""
    service: Service = request.app.state.service
    body = await read_object(request)
    tei = "texts" in body
    known = TEI if tei else COHERE
    refuse_unknown(body.keys(), known)
    given = {name: convert(name, value, known[name]) for name, value in body.items()}
    query = given.get("query")
    if query is None:
        raise UsageError("field 'query' is missing.")
    if len(query.encode("utf-8", "surrogatepass")) > service.limits.query_bytes:
        raise UsageError(f"field 'query' is longer than {service.limits.query_bytes} bytes.")
    documents: list[str | dict[str, Any]] = given.get("texts" if tei else "documents") or []
    texts = [_text(document, given.get("rank_fields")) for document in documents]
    check_texts(texts, service)
    if given.get("raw_scores"):
        raise UsageError("scores are probabilities; leave 'raw_scores' out.")
    name = service.config.models.reranker
    check_model(given.get("model"), (name,) if name else ("none",))
    scores = [float(s) for s in await while_connected(request, service.rerank(query, texts))]
    order = sorted(range(len(texts)), key=lambda i: (-scores[i], i))
    if tei:
        return reply(
            [
                {"index": i, "score": scores[i]} | ({"text": texts[i]} if given.get("return_text") else {})
                for i in order
            ],
            indent=False,
        )
    top = given.get("top_n")
    if top is not None and top < 1:
        raise UsageError("field 'top_n' must be 1 or more.")
    back = given.get("return_documents") or False
    results = [
        {"index": i, "relevance_score": scores[i]} | ({"document": {"text": texts[i]}} if back else {})
        for i in order[:top]
    ]
    version = "2" if request.url.path.startswith("/v2/") else "1"
    meta = {"api_version": {"version": version}, "billed_units": {"search_units": 0}}
    told = {"id": str(uuid.uuid4()), "model": name, "results": results, "meta": meta}
    return reply(told | {"usage": {"total_tokens": 0}}, indent=False)


def _text(document: str | dict[str, Any], fields: list[str] | None) -> str:
    """Cohere's documents may be objects: the fields asked for, else `text`."""
    if isinstance(document, str):
        return document
    parts = [document[name] for name in fields or ("text",) if isinstance(document.get(name), str)]
    if not parts:
        raise UsageError(f"a document has no text under {' or '.join(map(repr, fields or ('text',)))}.")
    return "\n".join(parts)
