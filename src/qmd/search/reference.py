"""From what a person calls a document to the document: path, URI, docid, glob, list."""

from __future__ import annotations

import difflib
import heapq
import os
import re
import unicodedata
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

from qmd.errors import NotFound
from qmd.store import Store, StoredDocument

SCHEME = "qmd://"
CLOSE = 0.7
"""Least likeness of a name that is offered (difflib's ratio); names of other lengths cannot reach it."""
COMPARED = 100
_LINES = re.compile(r"(?P<ref>.+?):(?P<start>\d{1,9})(?::(?P<count>\d{1,9}))?\Z", re.DOTALL)


def resolve(store: Store, ref: str, *, near: bool = True) -> tuple[StoredDocument, int | None, int | None]:
    """(document with its text, first line, number of lines) for a path, `qmd://collection/path`, `#docid` or
    docid, each with an optional `:from` or `:from:count`. A path may lie in any collection, or be one on
    the disk.

    Raises NotFound, naming the nearest documents unless told not to look for them.
    """
    wanted = ref.strip()
    document = find(store, wanted)
    if document is not None:
        return document, None, None
    lines = _LINES.match(wanted)
    if lines is not None:
        document = find(store, lines["ref"])
        if document is not None:
            return document, int(lines["start"]), int(lines["count"]) if lines["count"] else None
        wanted = lines["ref"]
    raise NotFound(f"no document is called {ref!r}.{_near(store, wanted) if near else ''}")


def find(store: Store, ref: str) -> StoredDocument | None:
    """The document of a reference without line numbers; None where there is none."""
    try:
        ref.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    if not ref:
        return None
    if ref.startswith("#"):
        return store.find_docid(ref)
    roots = store.roots()
    path = ref.removeprefix(SCHEME).lstrip("/") if ref.startswith(SCHEME) else ref
    # An address may be percent-encoded, as programs write it; a file with the percent sign in its name comes first.
    for written in (path, unquote(path)) if ref.startswith(SCHEME) and "%" in path else (path,):
        head, _, tail = written.partition("/")
        if tail and head in roots:
            document = store.find_document(head, tail)
            if document is not None:
                return document
    if ref.startswith(SCHEME):
        return None
    relative = os.path.normpath(path) if path.startswith("./") else path
    for name in roots:
        document = store.find_document(name, relative)
        if document is not None:
            return document
    try:
        place = on_disk(path)
    except NotFound:
        return store.find_docid(ref)
    for name, root in roots.items():
        if place.is_relative_to(folder := on_disk(root)):
            document = store.find_document(name, place.relative_to(folder).as_posix())
            if document is not None:
                return document
    return store.find_docid(ref)


def on_disk(path: str | Path) -> Path:
    """The absolute path without `~` and `..`. Raises NotFound where `~name` is nobody."""
    try:
        return Path(os.path.normpath(Path(path).expanduser().absolute()))
    except RuntimeError as error:
        raise NotFound(f"{path}: there is no such home folder.") from error


def compose(text: str) -> str:
    """As names are compared (NFC): a Mac decomposes the characters of its file names."""
    return unicodedata.normalize("NFC", text)


def match(store: Store, pattern: str) -> list[StoredDocument]:
    """Documents whose `collection/path` or path matches a glob (`*` crosses folders), or lies below the
    folder it
    names; without their texts, by collection and path."""
    pattern = compose(pattern.removeprefix(SCHEME).removeprefix("./").strip("/"))
    documents = store.list_documents()
    if not pattern:
        return documents
    globs = {pattern, pattern.replace("**/", ""), f"{pattern}/*"}
    return [
        document
        for document in documents
        if any(
            fnmatchcase(name, glob)
            for name in (compose(f"{document.collection}/{document.path}"), compose(document.path))
            for glob in globs
        )
    ]


def uri(document: StoredDocument) -> str:
    return f"{SCHEME}{document.collection}/{document.path}"


def _near(store: Store, wanted: str) -> str:
    """A sentence that names up to three documents with a similar name, or where to look."""
    names = [(path, f"{collection}/{path}") for collection, path in store.documents.names()]
    if not names:
        return " The index is empty: run `qmd add PATH`."
    path = compose(wanted.removeprefix(SCHEME))
    last = path.rpartition("/")[2].casefold()
    by_name = _closest(last, [(compose(path.rpartition("/")[2]).casefold(), place) for path, place in names])
    near = by_name or _closest(path, [(compose(place), place) for _, place in names])
    named = " or ".join(f"{SCHEME}{place}" for place in near)
    return f" Did you mean {named}?" if near else " Run `qmd ls` to see what there is."


def _closest(wanted: str, names: Sequence[tuple[str, str]]) -> Sequence[str]:
    """Places of the names nearest to `wanted`: those equal but for the ending, else up to three in spelling."""
    stem = wanted.rsplit(".", 1)[0]
    found = [place for name, place in names if name.startswith(stem) and name.rsplit(".", 1)[0] == stem]
    if found:
        return found[:3]
    # Comparing spellings takes 20 us a name: only names that share most pairs of letters are compared.
    pairs = {wanted[at : at + 2] for at in range(len(wanted) - 1)} or {wanted}
    least, most = len(wanted) * CLOSE / (2 - CLOSE), len(wanted) * (2 - CLOSE) / CLOSE
    fitting = [item for item in names if least <= len(item[0]) <= most]
    alike = heapq.nlargest(COMPARED, fitting, key=lambda item: sum(pair in item[0] for pair in pairs))
    where: dict[str, list[str]] = {}
    for name, place in alike:
        where.setdefault(name, []).append(place)
    close = difflib.get_close_matches(wanted, where, n=3, cutoff=CLOSE)
    return [place for name in close for place in where[name]][:3]
