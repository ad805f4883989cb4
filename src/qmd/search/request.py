"""What a search is asked, and the models it may use. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from qmd.types import Filter

if TYPE_CHECKING:
    from qmd.llm.image_text import ImageTextModel
    from qmd.llm.protocols import Embedder, Generator, Reranker

Mode = Literal["keyword", "vector", "hybrid"]
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Request:
    """A search. `limit` counts hits; weights and `rrf_k` matter where lists are fused.

    expand, rerank: None lets the pipeline decide (a sure first hit needs no expansion; a configured reranker is used).
    budget_ms: time that the stages may take together, from their measured costs; None: no limit.
    fold: near-duplicates of a hit are named in it in place of being hits. recency: how much more a document of today
    counts (0.2: a fifth), halved every `half_life_days`. boosts: collection -> factor of its scores. deeper: factor of
    the lists' depth. cite: give each hit a quote. vectors: scan all, or look into an inverted file (`search.inverted`).
    """

    text: str
    mode: Mode
    limit: int
    filter: Filter = field(default_factory=Filter)
    min_score: float | None = None
    full: bool = False
    explain: bool = False
    intent: str | None = None
    expand: bool | None = None
    rerank: bool | None = None
    candidate_limit: int = 20
    budget_ms: float | None = None
    all_chunks: bool = False
    fold: bool = True
    recency: float = 0.0
    half_life_days: float = 30.0
    boosts: Mapping[str, float] = field(default_factory=dict)
    keyword_weight: float = 1.0
    vector_weight: float = 1.0
    rrf_k: int = 60
    rerank_weight: float = 0.7
    deeper: int = 1
    cite: bool = True
    vectors: Literal["exact", "ivf", "auto"] = "auto"


@dataclass(frozen=True, slots=True)
class Door(Generic[M]):
    """A model that may be used: its name, how to open it, and whether it is open already (then it costs no loading)."""

    name: str
    open: Callable[[], M]
    ready: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Models:
    """The models a search may use; None: not configured."""

    embedder: Door[Embedder]
    reranker: Door[Reranker] | None = None
    expander: Door[Generator] | None = None
    pictures: Door[ImageTextModel] | None = None
