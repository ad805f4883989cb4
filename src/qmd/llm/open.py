"""From a model's name to a model that runs. Imports no runtime until a model is opened."""

from __future__ import annotations

import difflib

from qmd.errors import NotFound
from qmd.llm.catalog import CATALOG, DEFAULT_EMBEDDING
from qmd.llm.protocols import Embedder
from qmd.types import ModelCard


def find_card(name: str) -> ModelCard:
    """The catalog row of a model. Raises NotFound, naming the nearest known name."""
    card = CATALOG.get(name)
    if card is None:
        near = difflib.get_close_matches(name, CATALOG, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else " `qmd models list` shows the known names."
        raise NotFound(f"no model is named {name!r}.{hint}")
    return card


def open_embedder(
    name: str = DEFAULT_EMBEDDING, *, threads: int | None = None, dim: int | None = None
) -> Embedder:
    """Load an embedding model by name."""
    from qmd.llm.embedder import OnnxEmbedder
    from qmd.llm.files import find_packaged

    return OnnxEmbedder.open(find_packaged(find_card(name)), threads=threads, dim=dim)
