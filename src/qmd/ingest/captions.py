"""What notes say of the pictures they show: alternative texts, words of links, the heading they stand under.

Runs after an update that changed something, in collections that hold pictures, and writes only the pictures whose words
changed.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

from qmd.errors import StoreDamaged
from qmd.ingest.formats.picture import describe, is_picture
from qmd.store.documents import StoredDocument
from qmd.store.pictures import KIND
from qmd.store.store import Store

MOST_CAPTIONS = 12
_MARKDOWN = re.compile(
    r"!?\[(?P<alt>[^\]\n]{0,1000}+)\]\(\s*<?(?P<target>[^)\s>]{1,1000}+|[^)>]{1,1000}+)>?"
    r"(?:\s+[\"'(](?P<title>[^\"')]{0,1000}+)[\"')])?\s*\)"
)
_WIKI = re.compile(
    r"!?\[\[(?P<target>[^\]|#\n]{1,1000}+)(?:#[^\]|\n]{0,1000}+)?(?:\|(?P<alt>[^\]\n]{0,1000}+))?\]\]"
)
_HTML = re.compile(r"<(?:img|a)\b[^>]{0,4000}+>", re.I)
_ATTRIBUTE = re.compile(r"\b(src|href|alt|title)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", re.I)
_ORG = re.compile(r"\[\[(?:file:)?(?P<target>[^\]\n]{1,1000}+)\](?:\[(?P<alt>[^\]\n]{0,1000}+)\])?\]")
_HEADING = re.compile(r"(?:#{1,6}|\*{1,6})\s+(.+)")
_SIZE = re.compile(r"\d+(x\d+)?")


def write_captions(store: Store, collection: str) -> int:
    """Bring the words of a collection's pictures up to date. Gives how many were written."""
    documents = store.list_documents(collection)
    pictures = [document for document in documents if document.type == KIND]
    if not pictures:
        return 0
    said = _captions(store, documents, pictures)
    changed: list[tuple[StoredDocument, Sequence[str]]] = []
    for picture in pictures:
        now = describe(picture.path, picture.fields, said.get(picture.id, ()), picture.date)
        stored = store.document(picture.id)
        if stored is None or stored.text != now.text:
            changed.append((picture, said.get(picture.id, ())))
    for start in range(0, len(changed), 500):
        with store.writing() as writer:
            for picture, captions in changed[start : start + 500]:
                writer.put_document(
                    collection,
                    picture.path,
                    size=picture.size,
                    mtime_ns=picture.mtime_ns,
                    hash=picture.hash,
                    document=describe(picture.path, picture.fields, captions, picture.date),
                )
    return len(changed)


def _captions(
    store: Store, documents: Sequence[StoredDocument], pictures: Sequence[StoredDocument]
) -> dict[int, list[str]]:
    """picture id -> what is said of it, in the order of the notes."""
    paths = {picture.path.casefold(): picture.id for picture in pictures}
    names: dict[str, list[int]] = defaultdict(list)
    for picture in pictures:
        names[posixpath.basename(picture.path).casefold()].append(picture.id)
    notes = {document.id: document for document in documents if document.type != KIND}
    lines: dict[int, set[int]] = defaultdict(set)
    for note, link in store.documents.links_naming({posixpath.splitext(name)[1] for name in names}):
        if note in notes and is_picture(unquote(link.target)):
            lines[note].add(link.line)
    found: dict[int, list[str]] = defaultdict(list)
    for note in sorted(lines, key=lambda id: notes[id].path):
        try:
            stored = store.document(note)
        except StoreDamaged:
            continue
        text = ((stored.text if stored is not None else None) or "").split("\n")
        headings = store.chunk_rows.headings(note)
        for line in sorted(lines[note]):
            if not 1 <= line <= len(text):
                continue
            for target, words in _said(text[line - 1]):
                shown = _resolve(target, notes[note].path, paths, names)
                if shown is None:
                    continue
                heading = _heading_above(text, line) or _heading(headings, line) or notes[note].title
                for caption in (*words, heading):
                    if caption and caption not in found[shown] and len(found[shown]) < MOST_CAPTIONS:
                        found[shown].append(caption)
    return found


def _said(line: str) -> Iterator[tuple[str, list[str]]]:
    """(target, words) of every link of a line, in any of the notes' languages."""
    for pattern in (_MARKDOWN, _WIKI, _ORG):
        for match in pattern.finditer(line):
            parts = match.groupdict()
            alt = parts.get("alt") or ""
            words = [] if _SIZE.fullmatch(alt.strip()) else [alt]
            yield (
                parts["target"],
                [" ".join(w.split()) for w in (*words, parts.get("title") or "") if w.strip()],
            )
    for match in _HTML.finditer(line):
        values = {name.lower(): html.unescape(a or b) for name, a, b in _ATTRIBUTE.findall(match[0])}
        target = values.get("src") or values.get("href")
        if target:
            yield target, [" ".join(values[w].split()) for w in ("alt", "title") if values.get(w, "").strip()]


def _resolve(
    target: str, note: str, paths: Mapping[str, int], names: Mapping[str, Sequence[int]]
) -> int | None:
    """The picture that a link means: from the note's folder, from the collection's, or by a name that is its alone."""
    wanted = unquote(target).split("#")[0].strip().replace("\\", "/").casefold()
    if "://" in wanted:
        return None
    folder = posixpath.dirname(note).casefold()
    for base in (folder, ""):
        found = paths.get(posixpath.normpath(posixpath.join(base, wanted.lstrip("/"))))
        if found is not None:
            return found
    named = names.get(posixpath.basename(wanted), ())
    return named[0] if len(named) == 1 else None


def _heading_above(text: Sequence[str], line: int) -> str:
    """The nearest heading above a line of Markdown or Org: a chunk may hold several."""
    for above in range(line - 1, -1, -1):
        found = _HEADING.match(text[above])
        if found:
            return found[1].rstrip().rstrip("#").rstrip()
    return ""


def _heading(headings: Sequence[tuple[int, int, tuple[str, ...]]], line: int) -> str:
    for first, last, path in headings:
        if first <= line <= last and path:
            return path[-1]
    return ""
