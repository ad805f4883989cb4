"""The shared vocabulary: what moves between the rooms. Frozen values, no behaviour that needs a library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

Pooling = Literal["mean", "cls", "last_token"]
Role = Literal["embedding", "reranker", "generation", "image"]
Form = Literal["encoder", "seq-cls", "causal"]
LinkKind = Literal["wikilink", "embed", "link"]

Progress = Callable[[str, int, int | None], None]
"""Called as progress(stage, done, total); `total` is None while it is not known."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link out of a document. `target` is as written, without alias or anchor; `line` counts from 1."""

    target: str
    kind: LinkKind
    line: int
    anchor: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice of a document that is indexed and found on its own.

    `start`/`end` are character offsets into `Document.text` (end exclusive); `line`/`end_line` count from 1,
    inclusive; `heading_path` is outermost first. `tokens` is an upper estimate for the embedding model.
    `cut` says that
    the chunk is a part of a fence or table that is larger than one chunk.
    """

    start: int
    end: int
    line: int
    end_line: int
    heading_path: tuple[str, ...]
    tokens: int
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file, before it is stored. `text` is what is shown, searched and cited, line for line."""

    text: str
    title: str
    type: str
    lang: str
    chunks: tuple[Chunk, ...]
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    date: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collection:
    """A named folder. `include` says whether searches that name no collection look into it."""

    name: str
    root: str
    patterns: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    include: bool = True
    documents: int = 0


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions pushed into every query, keyword and vector alike. Empty means no condition.

    `path` is a glob over the path inside the collection; `after`/`before` are ISO dates (after inclusive,
    before exclusive) over the document's date, or its modification time where it names none.
    """

    collections: tuple[str, ...] = ()
    path: str | None = None
    tags: tuple[str, ...] = ()
    type: str | None = None
    lang: str | None = None
    title: str | None = None
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One found place. `file` is `qmd://collection/path`; `line`/`end_line` count from 1; `score` rises.

    `line` is where `snippet` begins. `marks` are (start, end) character offsets of the matches in `snippet`. `quote`
    is the sentence of the snippet with most matches, word for word. `stale`: the file "changed" since it was indexed,
    or is "gone"; None: it is as indexed. `duplicates`: `file:line` of near-copies that are not hits of their own.
    `image`: what is known of a picture (format, width, height, size_bytes); None: the hit is a text.
    """

    docid: str
    score: float
    file: str
    line: int
    end_line: int
    title: str
    collection: str
    path: str
    heading_path: tuple[str, ...] = ()
    context: str | None = None
    snippet: str | None = None
    body: str | None = None
    marks: tuple[tuple[int, int], ...] = ()
    explain: Mapping[str, object] | None = None
    quote: str | None = None
    stale: Literal["changed", "gone"] | None = None
    duplicates: tuple[str, ...] = ()
    image: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Hits(Sequence[Hit]):
    """Hits, best first. `degraded` names every stage that was left out or replaced, with the reason.

    `any_relevant` is the probability that some hit answers the question, None where nothing can be said;
    `nothing_relevant` is the verdict: the hits are the nearest there is, and none of them is the answer.
    """

    hits: tuple[Hit, ...]
    degraded: tuple[str, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    any_relevant: float | None = None
    nothing_relevant: bool = False

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)


@dataclass(frozen=True, slots=True)
class ModelVariant:
    """One precision of a model: the files that make it, relative to the model's folder or repository."""

    precision: Literal["fp32", "fp16", "int8", "q4", "q4f16"]
    files: tuple[str, ...]
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A row that drives the code that loads and runs a model.

    `name` is what a user writes; `repo` is the hub repository that holds the ONNX files where that is another
    one; `package` is an installed Python package that holds them instead. `form` is how the graph is read:
    token
    vectors ("encoder"), one score a pair ("seq-cls"), or next-token logits ("causal"). `dims` are the
    Matryoshka
    sizes a vector may be cut to, largest first; empty means only `dim`. `checked` says where the file names were
    read; empty means they were not: the repository's own list decides when the model is pulled.
    """

    name: str
    role: Role
    dim: int = 0
    max_tokens: int = 512
    pooling: Pooling = "mean"
    query_prefix: str = ""
    doc_prefix: str = ""
    license: str = ""
    languages: tuple[str, ...] = ()
    variants: tuple[ModelVariant, ...] = ()
    revision: str | None = None
    repo: str = ""
    package: str = ""
    form: Form = "encoder"
    dims: tuple[int, ...] = ()
    template: str = ""
    checked: str = ""
