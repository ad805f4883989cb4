"""The link graph of a collection: what a note links to, what links to it, and which links lead nowhere."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from qmd.reports import LinkedPlace, Links
from qmd.search.reference import compose, uri

if TYPE_CHECKING:
    from qmd.store import Store, StoredDocument
    from qmd.types import Link

_OUTSIDE = ("http:", "https:", "mailto:", "ftp:", "tel:", "data:", "file:")


class LinkTargets:
    """The names that links of one collection may use: paths, file names, titles and aliases, without case."""

    def __init__(self, documents: list[StoredDocument]) -> None:
        self.by_id = {document.id: document for document in documents}
        self._paths = {_key(document.path): document for document in documents}
        self._names: dict[str, list[StoredDocument]] = {}
        for document in documents:
            stem = posixpath.splitext(_key(document.path))[0]
            for name in {stem, posixpath.basename(stem), posixpath.basename(_key(document.path))}:
                self._names.setdefault(name, []).append(document)
        self._titles: dict[str, StoredDocument] = {}
        for document in documents:
            for name in (*document.aliases, document.title):
                self._titles.setdefault(_key(name), document)

    def resolve(self, target: str, source: StoredDocument) -> StoredDocument | None:
        """The document that a link in `source` means; None where there is none.

        A path counts from the note's folder, then from the collection's; a plain name means the nearest file of that
        name, then a title or an alias.
        """
        wanted = _key(unquote(target).split("#")[0].strip()).replace("\\", "/")
        if not wanted:
            return source
        folder = posixpath.dirname(_key(source.path))
        for base in (folder, ""):
            path = posixpath.normpath(posixpath.join(base, wanted.lstrip("/")))
            for ending in ("", ".md", ".markdown"):
                if (found := self._paths.get(path + ending)) is not None:
                    return found
        named = self._names.get(wanted) or self._names.get(wanted.removesuffix(".md"))
        if not named and "/" in wanted:
            ending = "/" + wanted.removesuffix(".md")
            stem = wanted.removesuffix(".md").rsplit("/", 1)[-1]
            named = [
                d
                for d in self._names.get(stem, ())
                if f"/{posixpath.splitext(_key(d.path))[0]}".endswith(ending)
            ]
        if named:
            return min(named, key=lambda d: (posixpath.dirname(_key(d.path)) != folder, len(d.path), d.path))
        return self._titles.get(wanted)


def _key(name: str) -> str:
    return compose(name).casefold()


def read_links(store: Store, document: StoredDocument, targets: LinkTargets | None = None) -> Links:
    """Links out of and into a document, within its collection. Addresses on the web are no broken links."""
    targets = targets or LinkTargets(store.list_documents(document.collection))
    out: list[LinkedPlace] = []
    broken: list[LinkedPlace] = []
    for link in store.documents.links(document.id):
        if link.target.casefold().startswith(_OUTSIDE):
            continue
        found = targets.resolve(link.target, document)
        (broken if found is None else out).append(_place(link, found))
    incoming = [
        LinkedPlace(link.target, link.line, uri(source), source.title, link.kind, link.anchor)
        for source, link in _linking(store, document, targets.by_id)
        if source.id != document.id
        and (found := targets.resolve(link.target, source)) is not None
        and found.id == document.id
    ]
    return Links(uri(document), document.title, tuple(out), tuple(incoming), tuple(broken))


def _place(link: Link, found: StoredDocument | None) -> LinkedPlace:
    file = uri(found) if found is not None else None
    return LinkedPlace(
        link.target, link.line, file, found.title if found is not None else None, link.kind, link.anchor
    )


def _linking(
    store: Store, document: StoredDocument, documents: Mapping[int, StoredDocument]
) -> list[tuple[StoredDocument, Link]]:
    """Links of the collection whose target holds one of the document's names, to be resolved."""
    stem = posixpath.splitext(posixpath.basename(document.path))[0]
    written = {stem, document.title, *document.aliases} - {""}
    names = {unicodedata.normalize(form, name) for name in written for form in ("NFC", "NFD")}
    found = store.documents.links_naming({*names, *map(quote, names)})
    return [(documents[id], link) for id, link in found if id in documents]
