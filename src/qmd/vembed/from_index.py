"""Training pairs from an index: what its documents say about themselves, without any judgement by a person.

A title asks for its text, a heading for its section, a sentence for the passage it stands in, a link's words for the
document they lead to, a caption for its picture; and, where the user keeps them, a search for the document that was
opened after it. Negatives are what a search finds for the query in other documents;
`find` does the searching, this module knows none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, get_args
from urllib.parse import unquote

from qmd.store.chunks import ChunkRow
from qmd.store.documents import StoredDocument
from qmd.store.store import Store
from qmd.vembed.convert import IMAGE_SUFFIXES

PairKind = Literal["title", "heading", "sentence", "link", "caption", "search"]
PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)
SENTENCES_A_CHUNK = 6
SHORTEST_SENTENCE = 80
"""Characters, a CJK character counting as two. Shorter ones say too little to ask for one document."""
SHORTEST_TEXT = 60
WHOLE_DOCUMENT = 2500
"""Characters up to which a title or sentence asks for the whole document: chunks of one text in a batch would teach
that the one is wrong for the other's sentences (measured: half of what there is to gain)."""
GENERIC_HEADINGS = 2
"""A heading in more documents than this asks for none of them; it is asked together with the title."""

_HEADING = re.compile(r"^#{1,6}\s.*$\n?", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"!\[([^\]\n]+)\]\(<?([^)>\s]+)>?[^)\n]*\)")
_LINK = re.compile(
    r"(?<!!)\[([^\]\n]+)\]\(<?([^)>\s]+)>?[^)\n]*\)|(?<!!)\[\[([^\]|#\n]+)(?:#[^\]|\n]*)?(?:\|([^\]\n]+))?\]\]"
)
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n\s*\n")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")

Find = Callable[[str, int], Sequence[str]]
"""(query, limit) -> docids, best first."""


def pairs_of_index(
    store: Store,
    *,
    kinds: Sequence[PairKind] = PAIR_KINDS,
    collections: Sequence[str] = (),
    keep: Callable[[StoredDocument], bool] | None = None,
    find: Find | None = None,
    negatives: int = 0,
    skip: int = 2,
    searches: Sequence[tuple[str, str]] = (),
) -> Iterator[dict[str, object]]:
    """Lines of training data, in the order of the documents; no line twice.

    collections: all when empty; keep: which documents may be used, for a split into parts. With `find` each text pair
    gets up to `negatives` texts of documents that the search put in places after `skip`: the first may well be right.
    searches: (question, docid) of hits that were opened; documents that are gone teach nothing.
    """
    documents = [
        document
        for document in store.list_documents()
        if (not collections or document.collection in collections) and (keep is None or keep(document))
    ]
    chunks = {document.id: _chunks(store, document) for document in documents}
    openings = {d.docid: _opening(chunks[d.id], d.title) for d in documents if chunks[d.id]}
    roots = {collection.name: Path(collection.root) for collection in store.collections()}
    targets = _targets(documents)
    repeated = Counter(
        heading
        for rows in chunks.values()
        for heading in {row.heading_path[-1] for row in rows if row.heading_path}
    )
    asked: dict[str, list[str]] = {}
    for question, docid in searches if "search" in kinds else ():
        asked.setdefault(docid, []).append(question)
    seen: set[tuple[object, object]] = set()
    for document in documents:
        for line in _pairs(
            document,
            chunks[document.id],
            kinds,
            repeated,
            targets,
            openings,
            roots,
            asked.get(document.docid, ()),
        ):
            key = (line["query"], line["positive"])
            if key in seen:
                continue
            seen.add(key)
            if find is not None and negatives and line["mode"] == "t2t":
                own = {document.docid, targets.get(str(line.pop("target", "")), "")}
                found = [
                    openings[d]
                    for d in find(str(line["query"]), negatives + skip + 3)[skip:]
                    if d not in own and d in openings
                ]
                if wrong := [text for text in dict.fromkeys(found) if text and text != line["positive"]][
                    :negatives
                ]:
                    line["negatives"] = wrong
            line.pop("target", None)
            yield line


def _chunks(store: Store, document: StoredDocument) -> list[ChunkRow]:
    return list(store.chunks(store.chunk_rows.of_document(document.id)).values())


def _pairs(
    document: StoredDocument,
    rows: Sequence[ChunkRow],
    kinds: Sequence[PairKind],
    repeated: Counter[str],
    targets: dict[str, str],
    openings: dict[str, str],
    roots: dict[str, Path],
    asked: Sequence[str],
) -> Iterator[dict[str, object]]:
    def text_pair(query: str, positive: str, **more: object) -> Iterator[dict[str, object]]:
        query = query.strip()
        if query and _width(positive) >= SHORTEST_TEXT and query != positive.strip():
            yield {"query": query, "positive": positive, "mode": "t2t", **more}

    whole = "\n\n".join(_without_title(_HEADING.sub("", row.text), document.title) for row in rows).strip()
    short = len(whole) <= WHOLE_DOCUMENT
    if rows:
        for question in (*([document.title] if "title" in kinds else ()), *asked):
            yield from text_pair(question, whole if short else openings[document.docid])
    for row in rows:
        text = _without_title(_HEADING.sub("", row.text), document.title)
        if "heading" in kinds and row.heading_path and row.heading_path[-1] != document.title:
            heading = row.heading_path[-1]
            known = repeated[heading] <= GENERIC_HEADINGS
            yield from text_pair(heading if known else f"{document.title}: {heading}", text)
        if "sentence" in kinds:
            for sentence in _sentences(text):
                yield from text_pair(sentence, whole if short else text)
        if "link" in kinds:
            for match in _LINK.finditer(row.text):
                shown, path, wiki, alias = match.groups()
                target = _target(unquote(path) if path else wiki, document.path, targets)
                if target and target != document.docid and openings.get(target):
                    yield from text_pair(_plain(shown or alias or wiki), openings[target], target=target)
        if "caption" in kinds:
            for match in _PICTURE.finditer(row.text):
                picture = roots[document.collection] / PurePosixPath(document.path).parent / unquote(match[2])
                if picture.suffix.lower() in IMAGE_SUFFIXES and picture.is_file():
                    yield {"query": match[1].strip(), "positive": str(picture.resolve()), "mode": "t2i"}


def _opening(rows: Sequence[ChunkRow], title: str) -> str:
    return _without_title(_HEADING.sub("", rows[0].text), title)


def _without_title(text: str, title: str) -> str:
    """Some texts repeat their title in the first line; the answer must not be the question."""
    first, _, rest = text.strip().partition("\n")
    return rest.strip() if first.strip() == title else text.strip()


def _sentences(text: str) -> list[str]:
    """The first sentences of some length, in plain words."""
    found = [_plain(part) for part in _END.split(_FENCE.sub("", text))]
    return [part for part in found if SHORTEST_SENTENCE <= _width(part) <= 400][:SENTENCES_A_CHUNK]


def _plain(text: str) -> str:
    """Markdown without its marks."""
    text = _PICTURE.sub("", text)
    text = _LINK.sub(lambda m: m[1] or m[4] or m[3] or "", text)
    return " ".join(re.sub(r"[*_`>#|]+", " ", text).split())


def _width(text: str) -> int:
    return len(text) + len(_WIDE.findall(text))


def _targets(documents: Sequence[StoredDocument]) -> dict[str, str]:
    """Path, path without suffix, and name without suffix (where only one document has it) -> docid."""
    names = Counter(PurePosixPath(document.path).stem.casefold() for document in documents)
    found: dict[str, str] = {}
    for document in documents:
        path = PurePosixPath(document.path)
        if names[path.stem.casefold()] == 1:
            found[path.stem.casefold()] = document.docid
        found[str(path.with_suffix("")).casefold()] = document.docid
        found[str(path).casefold()] = document.docid
    return found


def _target(written: str, path: str, targets: dict[str, str]) -> str | None:
    """The document that a link leads to: from the folder it stands in, from the root, or by name."""
    written = written.split("#")[0].casefold().strip()
    if not written or "://" in written:
        return None
    parts: list[str] = list(PurePosixPath(path.casefold()).parent.parts)
    for part in PurePosixPath(written).parts:
        if part == ".." and parts:
            parts.pop()
        elif part not in (".", "..", "/"):
            parts.append(part)
    return targets.get("/".join(parts)) or targets.get(written.lstrip("/"))
