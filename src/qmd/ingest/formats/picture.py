"""Pictures as documents: what is known of one in words. Reads headers; looks at no pixel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qmd.errors import BadPicture
from qmd.ingest.frontmatter import clean, iso_date
from qmd.ingest.language import detect_language
from qmd.ingest.walk import PICTURES, Skipped
from qmd.types import Chunk, Document

MOST_CHARACTERS = 1_500
"""Of the words about one picture: about what a chunk holds."""
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")
_BETWEEN = re.compile(r"[\s_\-.+~@()\[\]{}]+")


def is_picture(path: str) -> bool:
    """By the ending of its name."""
    return path.rpartition(".")[2].lower() in PICTURES


def read_picture(path: str, data: bytes) -> Document | Skipped:
    """One picture's header becomes a document of type "image". Skipped, with the reason, for what cannot be opened."""
    from qmd.llm.pictures import read_facts

    if not data:
        return Skipped(path, "empty")
    try:
        facts = read_facts(data)
    except BadPicture as error:
        return Skipped(path, f"picture: {error}")
    fields: dict[str, object] = {"format": facts.format, "width": facts.width, "height": facts.height}
    if facts.description:
        fields["description"] = facts.description
    return describe(path, fields, (), facts.taken or iso_date(path.rpartition("/")[2]))


def describe(path: str, fields: Mapping[str, object], captions: Sequence[str], date: str | None) -> Document:
    """The document of a picture: its name, its description and what notes say of it, a line each."""
    title = words_of_name(path)
    lines = [title, str(fields.get("description") or ""), *captions]
    text = "\n".join(dict.fromkeys(" ".join(clean(line).split()) for line in lines if line.strip()))
    text = text[:MOST_CHARACTERS]
    count = text.count("\n") + 1
    chunk = Chunk(0, len(text), 1, count, (title,), max(1, len(text) // 3))
    return Document(
        text=text,
        title=title,
        type="image",
        lang=detect_language(text),
        chunks=(chunk,),
        date=date,
        fields=dict(fields),
    )


def words_of_name(path: str) -> str:
    """`img/redApple_on-table.v2.png` -> `red Apple on table v2`."""
    name = path.rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    words = " ".join(_BETWEEN.sub(" ", _CAMEL.sub(" ", stem)).split())
    return clean(words)[:300] or clean(name)[:300] or "picture"
