"""Matryoshka vectors: the first `dim` numbers of a model's vectors, at unit length again. Knows no model."""

from __future__ import annotations

from qmd.errors import ModelError
from qmd.llm.derived import Derived, unit_rows
from qmd.llm.protocols import Embedder, Vectors
from qmd.types import ModelCard


class CutEmbedder(Derived):
    """`base`, cut to `dim` numbers."""

    def __init__(self, base: Embedder, dim: int) -> None:
        super().__init__(base, card=base.card, dim=dim, mark=f"/{dim}")

    def adapt(self, rows: Vectors) -> Vectors:
        return cut_rows(rows, self.dim)


def cut_embedder(embedder: Embedder, dim: int | None) -> Embedder:
    """`embedder` with vectors of `dim` numbers; itself where that is what it gives, or None is asked for.

    Raises ModelError for more numbers than the model has.
    """
    if dim is None or dim == embedder.dim:
        return embedder
    if not 0 < dim < embedder.dim:
        raise ModelError(
            f"{embedder.card.name} gives vectors of {embedder.dim} numbers, {dim} were asked for. "
            "Choose fewer, or leave `dim` out."
        )
    return CutEmbedder(embedder, dim)


def cut_rows(rows: Vectors, dim: int) -> Vectors:
    """(n, d) -> (n, dim), rows of unit length."""
    return unit_rows(rows[:, :dim])


def is_cut(fingerprint: str) -> bool:
    """Whether a fingerprint is that of a cut embedder."""
    return fingerprint.rpartition("/")[2].isdigit()


def doubt_of(card: ModelCard, dim: int | None) -> str:
    """What is to be said of vectors cut to a length that the model was not trained for; empty where it was."""
    if dim is None or dim == card.dim or dim in card.dims:
        return ""
    known = f"it was for {', '.join(map(str, card.dims))}" if card.dims else "its card lists no lengths"
    return (
        f"{card.name} was not trained for vectors of {dim} numbers ({known}): search by meaning may find less"
    )
