"""`/v1/embeddings` and `/v1/models` in OpenAI's shapes, so that its clients work unchanged."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from qmd.errors import NotFound, UsageError, hide_password
from qmd.llm.cut import cut_rows
from qmd.llm.protocols import Vectors
from qmd.serve.http.fields import convert, read_object, refuse_unknown
from qmd.serve.http.replies import reply, while_connected
from qmd.serve.http.routes_models import check_texts
from qmd.serve.service.service import Service

FIELDS: dict[str, Any] = {
    "input": str | list[str],
    "model": str,
    "encoding_format": Literal["float", "base64"],
    "dimensions": int | None,
    "user": str | None,
    "input_type": Literal["query", "document"],
}


async def embeddings(request: Request) -> Response:
    """Vectors of texts. `input_type` is an addition of ours: a question may need a prefix that documents have not."""
    service: Service = request.app.state.service
    body = await read_object(request)
    refuse_unknown(body.keys(), FIELDS)
    wanted = body.get("input")
    if isinstance(wanted, list) and wanted and not isinstance(wanted[0], str):
        raise UsageError(
            "field 'input': token numbers belong to another model's tokenizer. Send texts "
            "(LangChain: check_embedding_ctx_length=False)."
        )
    given = {name: convert(name, value, FIELDS[name]) for name, value in body.items()}
    if "input" not in given:
        raise UsageError("field 'input' is missing.")
    texts = [given["input"]] if isinstance(given["input"], str) else given["input"]
    check_texts(texts, service)

    def work() -> tuple[Vectors, int, str]:
        embedder, configured = service.embedder, service.config.models.embedding
        check_model(given.get("model"), (embedder.card.name, configured, hide_password(configured)))
        several = embedder.embed_queries if given.get("input_type") == "query" else embedder.embed_documents
        vectors = several(texts)
        dimensions = given.get("dimensions")
        if dimensions is not None and dimensions != embedder.dim:
            lengths = [n for n in embedder.card.dims if n < embedder.dim]
            if dimensions not in lengths:
                known = ", ".join(map(str, (embedder.dim, *lengths)))
                raise UsageError(f"{embedder.card.name} gives vectors of {known} numbers, not {dimensions}.")
            vectors = cut_rows(vectors, dimensions)
        return vectors, sum(embedder.count_tokens(texts)), embedder.card.name

    vectors, tokens, name = await while_connected(request, service.call(work))
    rows: list[Any]
    if given.get("encoding_format") == "base64":
        rows = [base64.b64encode(np.ascontiguousarray(row, "<f4").tobytes()).decode() for row in vectors]
    else:
        rows = vectors.tolist()
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return reply({"object": "list", "data": data, "model": name, "usage": usage}, indent=False)


async def models(request: Request) -> Response:
    """The models that answer here."""
    service: Service = request.app.state.service
    names = [service.config.models.embedding, service.config.models.reranker]
    rows = [
        {"id": hide_password(name), "object": "model", "created": int(service.started), "owned_by": "qmd"}
        for name in names
        if name
    ]
    return reply({"object": "list", "data": rows})


def check_model(asked: str | None, served: tuple[str, ...]) -> None:
    """A request cannot load a model: it may name the one that is served, or "default". Raises NotFound."""
    if asked not in (None, "", "default", *served):
        raise NotFound(f"the model {asked!r} is not served here; {served[0]!r} is, also as 'default'.")
