"""What the operations of an index answer with. Frozen values; formatting them is the doors' business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qmd.types import Hit

if TYPE_CHECKING:
    from qmd.ingest.run import UpdateReport as UpdateReport


@dataclass(frozen=True, slots=True)
class EmbedReport:
    """One run of `embed`. `embedded` counts texts done now, `remaining` those still without a vector. `pictures`: the
    same of pictures, None where the index has none; `degraded`: why they were not looked at."""

    model: str
    embedded: int
    remaining: int
    seconds: float
    interrupted: bool = False
    pictures: PictureReport | None = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PictureReport:
    """Pictures looked at now; those that cannot be (damaged); those left, whose files changed or are away."""

    model: str
    embedded: int
    refused: int
    remaining: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PictureStatus:
    """Pictures of an index: all, those with a vector of the model in force, those it could not look at."""

    model: str | None
    total: int
    done: int
    refused: int


@dataclass(frozen=True, slots=True)
class AddReport:
    """What `add` did. `embed` is None where vectors were not asked for or no model could be opened."""

    collection: str
    root: str
    update: UpdateReport
    embed: EmbedReport | None = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentText:
    """A document, or the lines of it that were asked for. Lines count from 1, `end_line` is inclusive.

    `lines` is the length of the whole document, so `end_line < lines` says that more follows.
    """

    docid: str
    file: str
    collection: str
    path: str
    title: str
    text: str
    line: int
    end_line: int
    lines: int
    context: str | None = None


@dataclass(frozen=True, slots=True)
class NotShown:
    """A document that `multi_get` matched and left out, with the reason (too large, not found)."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of `ls`: a document. `modified` is seconds since the epoch."""

    docid: str
    file: str
    collection: str
    path: str
    title: str
    size_bytes: int
    modified: float


@dataclass(frozen=True, slots=True)
class Context:
    """Text attached to a collection ("/" for all of them) and a path prefix, returned with the hits below
    it.
    """

    collection: str
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class LinkedPlace:
    """One end of a link: `target` as written on `line` of the linking note, and the note at the other end (None: there
    is none)."""

    target: str
    line: int
    file: str | None
    title: str | None
    kind: str
    anchor: str | None = None


@dataclass(frozen=True, slots=True)
class Links:
    """The links of a note: out of it, into it, and those that lead nowhere. `similar`: notes near in meaning that no
    link joins to it, best first."""

    file: str
    title: str
    out: tuple[LinkedPlace, ...]
    into: tuple[LinkedPlace, ...]
    broken: tuple[LinkedPlace, ...]
    similar: tuple[Hit, ...] = ()
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InvertedFile:
    """What search uses instead of a scan past the scan's range: `rows` of the matrix, in `nlist` lists of which
    `nprobe` are looked into. recall: of the ten nearest of each of `sample` of the user's own vectors, the share found.
    trained_rows: rows there were when the lists were made."""

    rows: int
    nlist: int
    nprobe: int
    recall: float
    sample: int
    trained_rows: int
    version: int = 1


@dataclass(frozen=True, slots=True)
class ModelVectors:
    """The vectors of one model in the index. `done` of `total` chunk texts have one."""

    name: str
    fingerprint: str
    dim: int
    done: int
    total: int
    configured: bool
    inverted: InvertedFile | None = None


@dataclass(frozen=True, slots=True)
class CollectionStatus:
    """A collection as `status` and `collection list` show it. `missing` says that its folder is not there."""

    name: str
    root: str
    documents: int
    include: bool
    missing: bool
    patterns: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """The state of an index. Sizes in bytes; `pending` counts chunk texts without a vector of the model in
    force; `dim`: to what length its vectors are cut, None where they are not.
    """

    database: str
    size_bytes: int
    config_dir: str
    data_dir: str
    collections: tuple[CollectionStatus, ...]
    documents: int
    chunks: int
    model: str
    pending: int
    vectors: tuple[ModelVectors, ...] = ()
    contexts: tuple[Context, ...] = ()
    languages: Mapping[str, int] = field(default_factory=dict)
    pictures: PictureStatus | None = None
    dim: int | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of `check`: what was looked at, how it stands, and what to do where it does not stand well."""

    name: str
    state: Literal["ok", "warning", "problem"]
    message: str
    remedy: str | None = None
    figures: Mapping[str, object] | None = None
