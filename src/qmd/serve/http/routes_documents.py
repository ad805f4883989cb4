"""Documents by name: their text as it was indexed, lists of them, and the bytes of images."""

from __future__ import annotations

from itertools import islice

from starlette.requests import Request
from starlette.responses import Response

from qmd.errors import NotFound, UsageError
from qmd.index import Index
from qmd.reports import DocumentText, Entry, NotShown
from qmd.serve.cli.format_documents import document_record
from qmd.serve.cli.format_hits import hash_mark
from qmd.serve.cli.records import plain
from qmd.serve.http.fields import number, refuse_unknown
from qmd.serve.http.replies import reply, while_connected
from qmd.serve.service.lanes import check_job
from qmd.serve.service.service import Service

MOST_LINES = 1_000_000
MOST_BYTES = 1 << 20
LISTED = 1000
ANSWER_BYTES = 16 << 20
"""Text in one answer, in characters; documents beyond it are named."""


async def document(request: Request) -> Response:
    """One document, or lines of it: what `qmd get --json` prints. Only what is indexed can be named."""
    service: Service = request.app.state.service
    refuse_unknown(request.query_params.keys(), ("from_line", "max_lines"))
    first = number(request, "from_line", most=MOST_LINES)
    count = number(request, "max_lines", most=MOST_LINES)
    name, path = request.path_params["collection"], request.path_params["path"]

    def read() -> DocumentText:
        index = service.index
        found = index.store.find_document(name, path)
        if found is None:
            raise NotFound(f"no document is called {f'qmd://{name}/{path}'!r}.")
        return index.get(f"#{found.docid}", from_line=first, max_lines=count)

    found = await while_connected(request, service.call(read))
    return reply(document_record(found, line_numbers=False))


async def documents(request: Request) -> Response:
    """`?pattern=`: the texts of several, as `qmd multi-get --json`. Else a list of names, `?path=` below a place."""
    service: Service = request.app.state.service
    given = request.query_params
    if "pattern" in given:
        refuse_unknown(given.keys(), ("pattern", "max_lines", "max_bytes"))
        lines = number(request, "max_lines", most=MOST_LINES)
        size = number(request, "max_bytes", most=MOST_BYTES, default=65_536)
        pattern = given["pattern"]
        _check_length(pattern, service)

        def read() -> list[DocumentText | NotShown]:
            taken: list[DocumentText | NotShown] = []
            room = ANSWER_BYTES
            for one in islice(service.index.each(pattern, max_lines=lines, max_bytes=size), LISTED):
                check_job()
                room -= 0 if isinstance(one, NotShown) else len(one.text)
                if room < 0:
                    one = NotShown(one.file, "the answer is full; read it alone")
                taken.append(one)
            return taken

        found = await while_connected(request, service.call(read))
        return reply([document_record(one, line_numbers=False) for one in found])
    refuse_unknown(given.keys(), ("pattern", "path", "limit", "offset"))
    limit = number(request, "limit", most=LISTED, default=LISTED) or LISTED
    offset = given.get("offset", "0")
    if not (offset.isascii() and offset.isdigit() and len(offset) < 12):
        raise UsageError("'offset' must be a whole number.")
    path = given.get("path")
    _check_length(path or "", service)
    entries = await while_connected(request, service.call(_list, service, path))
    shown = entries[int(offset) : int(offset) + limit]
    return reply([entry_record(e) for e in shown], headers={"QMD-Total": str(len(entries))})


def _list(service: Service, path: str | None) -> list[Entry]:
    index: Index = service.index
    return index.ls(path)


def entry_record(entry: Entry) -> dict[str, object]:
    record: dict[str, object] = plain(entry)
    return record | {"docid": hash_mark(entry.docid)}


def _check_length(text: str, service: Service) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > service.limits.query_bytes:
        raise UsageError(f"longer than {service.limits.query_bytes} bytes.")


async def tags(request: Request) -> Response:
    """`[{"tag", "documents"}]`, the most used first; `limit` at most 1,000 (100)."""
    service: Service = request.app.state.service
    refuse_unknown(request.query_params.keys(), ("limit",))
    limit = number(request, "limit", most=LISTED, default=100) or LISTED
    found = await while_connected(request, service.call(lambda: service.index.list_tags(limit=limit)))
    return reply([{"tag": tag, "documents": count} for tag, count in found])


async def raw(request: Request) -> Response:
    """The bytes of an image that is indexed, as it lies in its folder now."""
    from qmd.serve.service.images import read_image

    service: Service = request.app.state.service
    docid = request.path_params["docid"]
    data, kind = await while_connected(request, service.call(lambda: read_image(service.index, docid)))
    return Response(data, media_type=kind, headers={"Content-Disposition": "inline"})
