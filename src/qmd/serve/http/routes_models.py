"""`POST /embed`: vectors of texts, in the shape of text-embeddings-inference."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from qmd.errors import UsageError
from qmd.serve.http.fields import convert, read_object, refuse_unknown
from qmd.serve.http.replies import reply, while_connected
from qmd.serve.service.service import Service

EMBED_FIELDS = {
    "inputs": str | list[str],
    "role": Literal["query", "document"],
    "normalize": bool,
    "truncate": bool,
}


async def embed(request: Request) -> Response:
    """`{"inputs": text or texts}` -> a list of vectors. `role` is query or document (the default)."""
    service: Service = request.app.state.service
    body = await read_object(request)
    refuse_unknown(body.keys(), EMBED_FIELDS)
    given = {name: convert(name, value, EMBED_FIELDS[name]) for name, value in body.items()}
    if "inputs" not in given:
        raise UsageError("field 'inputs' is missing.")
    if given.get("normalize") is False:
        raise UsageError("vectors are always of length 1; leave 'normalize' out.")
    texts = [given["inputs"]] if isinstance(given["inputs"], str) else given["inputs"]
    check_texts(texts, service)
    vectors = await while_connected(request, service.embed(texts, role=given.get("role", "document")))
    return reply(vectors.tolist(), indent=False)


def check_texts(texts: list[str], service: Service) -> None:
    """Raises UsageError for none, or for more than a request may hold."""
    if not texts:
        raise UsageError("there is no text to work on.")
    if len(texts) > service.limits.most_texts:
        raise UsageError(f"{len(texts)} texts; a request may hold {service.limits.most_texts}.")
