"""The OpenAPI document, made from the routes and the signatures that they parse by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.routing import Route

from qmd import __version__
from qmd.index import Index
from qmd.serve.http import openai, rerank
from qmd.serve.http.fields import fields_of
from qmd.serve.http.routes_models import EMBED_FIELDS
from qmd.serve.http.routes_search import ASK_REFUSED, Mode

Fields = Mapping[str, Any]


def describe(app: Starlette) -> dict[str, Any]:
    """OpenAPI 3.1 of every route of the application but those of agents and of the command line."""
    paths: dict[str, Any] = {}
    for route in app.routes:
        if not isinstance(route, Route) or route.path.startswith(("/call/", "/mcp")):
            continue
        told = (route.endpoint.__doc__ or "").strip().split("\n\n")
        operation: dict[str, Any] = {
            "operationId": f"{route.endpoint.__name__}{route.path.replace('/', '_').rstrip('_')}",
            "summary": told[0].replace("\n    ", " "),
            "responses": {
                "200": {"description": "as the summary says", "content": {_type_of(route.path): {}}},
                "4XX": {"$ref": "#/components/responses/Failure"},
                "5XX": {"$ref": "#/components/responses/Failure"},
            },
        }
        fields = _BODIES.get(route.path)
        if fields is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": _schema(fields())}},
            }
        names = [part.split(":")[0].strip("{}") for part in route.path.split("/") if part.startswith("{")]
        queries = _QUERIES.get(route.path, {})
        if names or queries:
            operation["parameters"] = [
                *({"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names),
                *({"name": n, "in": "query", "schema": schema_of(kind)} for n, kind in queries.items()),
            ]
        method = "post" if "POST" in (route.methods or ()) else "get"
        paths.setdefault(route.path.replace(":whole}", "}"), {})[method] = operation
    failure = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "QMD", "version": __version__, "description": "Search your own documents."},
        "paths": paths,
        "components": {
            "responses": {
                "Failure": {
                    "description": "What went wrong; 429 comes with Retry-After.",
                    "content": {"application/json": {"schema": failure}},
                }
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def schema_of(kind: Any) -> dict[str, Any]:
    return msgspec.json.schema(kind)


def _schema(fields: Fields) -> dict[str, Any]:
    required = [name for name in ("query", "question", "input", "inputs") if name in fields]
    either = {"anyOf": [{"required": ["query"]}, {"required": ["image"]}]}
    return {
        "type": "object",
        "additionalProperties": False,
        **(either if "image" in fields else {"required": required}),
        "properties": {name: schema_of(kind) for name, kind in fields.items()},
    }


def _query_fields() -> Fields:
    return {**fields_of(Index.query), "mode": Mode, "image": str}


def _ask_fields() -> Fields:
    return {name: kind for name, kind in fields_of(Index.ask).items() if name not in ASK_REFUSED}


def _rerank_fields() -> Fields:
    return {**rerank.TEI, **rerank.COHERE}


_BODIES: Mapping[str, Callable[[], Fields]] = {
    "/query": _query_fields,
    "/search": _query_fields,
    "/vsearch": lambda: {**fields_of(Index.vsearch), "image": str},
    "/expand": lambda: {"query": str},
    "/ask": _ask_fields,
    "/embed": lambda: EMBED_FIELDS,
    "/rerank": _rerank_fields,
    "/v1/rerank": lambda: rerank.COHERE,
    "/v2/rerank": lambda: rerank.COHERE,
    "/v1/embeddings": lambda: openai.FIELDS,
}
_QUERIES: Mapping[str, Fields] = {
    **{path: {"shape": Literal["records", "hits"]} for path in ("/query", "/search", "/vsearch")},
    "/documents": {
        "pattern": str,
        "path": str,
        "limit": int,
        "offset": int,
        "max_lines": int,
        "max_bytes": int,
    },
    "/tags": {"limit": int},
    "/documents/{collection}/{path:whole}": {"from_line": int, "max_lines": int},
}


def _type_of(path: str) -> str:
    special = {
        "/": "text/html",
        "/metrics": "text/plain",
        "/ask": "text/event-stream",
        "/events": "text/event-stream",
    }
    return special.get(path, "image/*" if path.startswith("/raw/") else "application/json")
