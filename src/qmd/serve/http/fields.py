"""From a JSON body to arguments. Field names and types are those of the Python functions.

An argument that is new there is a new field here.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request

from qmd.errors import UsageError
from qmd.serve.service.limits import Limits


@cache
def fields_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """name -> type of the parameters that JSON can express; callbacks and opened models are not among them."""
    scope = vars(sys.modules[function.__module__])
    found: dict[str, Any] = {}
    for parameter in list(inspect.signature(function).parameters.values()):
        if parameter.name == "self" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        try:
            kind = eval(parameter.annotation, dict(scope))
            msgspec.json.schema(kind)
        except (NameError, TypeError):  # a name for type checkers alone, or a type that JSON has not
            continue
        found[parameter.name] = kind
    return found


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises UsageError."""
    try:
        body = msgspec.json.decode(await request.body() or b"{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UsageError("the body must be a JSON object.")
    return body


def refuse_unknown(given: Collection[str], known: Collection[str]) -> None:
    """Raises UsageError for the first name that is not known, with the nearest that is."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."
            raise UsageError(f"unknown field {name!r}.{hint}")


def convert(name: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"field {name!r}: {error}") from None


def arguments(
    body: Mapping[str, Any], function: Callable[..., Any], *, also: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The body's fields as keyword arguments of `function`; `also` are further fields with their types."""
    known = {**fields_of(function), **(also or {})}
    refuse_unknown(body.keys(), known)
    return {name: convert(name, value, known[name]) for name, value in body.items()}


def check_search(options: dict[str, Any], limits: Limits, *, text: str = "query") -> None:
    """What a client may ask: a query of 8 KB, 1,000 hits. `all` means as many as that. Raises UsageError."""
    query = options.get(text)
    if not isinstance(query, str):
        raise UsageError(f"field {text!r} is missing.")
    if len(query.encode("utf-8", "surrogatepass")) > limits.query_bytes:
        raise UsageError(f"field {text!r} is longer than {limits.query_bytes} bytes.")
    limit = options.get("limit")
    if limit is not None and not 1 <= limit <= limits.most_hits:
        raise UsageError(f"field 'limit' is {limit}; it may be 1 to {limits.most_hits}.")
    if options.get("all"):
        del options["all"]
        options["limit"] = limits.most_hits


def number(request: Request, name: str, *, most: int, default: int | None = None) -> int | None:
    """A positive whole number of the query string. Raises UsageError."""
    value = request.query_params.get(name)
    if value is None:
        return default
    if len(value) > 12 or not value.isascii() or not value.isdigit() or not 1 <= int(value) <= most:
        raise UsageError(f"{name!r} must be a whole number from 1 to {most}.")
    return int(value)
