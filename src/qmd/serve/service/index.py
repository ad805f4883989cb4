"""The index as a service has it: the same door, its models and its matrix shared by all threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from qmd.index import Index
from qmd.search.pipeline import Models
from qmd.search.request import Door
from qmd.serve.service.vectors import ServedVectors

if TYPE_CHECKING:
    from qmd.llm.protocols import Embedder, Generator, Reranker
    from qmd.serve.service.lanes import Lane
    from qmd.serve.service.models import Kept, SharedEmbedder, SharedGenerator, SharedReranker


class ServedIndex(Index):
    """Asks whether a model is loaded of who keeps it: it may have been let go since."""

    @classmethod
    def over(
        cls,
        opened: Index,
        embedder: tuple[Kept[Embedder], SharedEmbedder],
        reranker: tuple[Kept[Reranker], SharedReranker] | None,
        expander: tuple[Kept[Generator], SharedGenerator] | None,
        matrices: Lane,
    ) -> ServedIndex:
        """The same store, configuration and places, with shared models; its matrix is renewed in `matrices`."""
        index = cls(
            opened.store,
            opened.config,
            opened.places,
            cast("Embedder", embedder[1]),  # their facts are read-only: they are the models'
            None if reranker is None else cast("Reranker", reranker[1]),
        )
        opened.store.vectors = ServedVectors(opened.store.vectors, matrices)
        index.served = (embedder, reranker, expander)
        return index

    served: tuple[
        tuple[Kept[Embedder], SharedEmbedder],
        tuple[Kept[Reranker], SharedReranker] | None,
        tuple[Kept[Generator], SharedGenerator] | None,
    ]

    def retire(self) -> None:
        """Another one takes over: this one closes when nobody uses it any more."""
        self._image_text = None  # it knows the way back here, and a circle would wait for the collector

    def _models(self) -> Models:
        names, (embedder, reranker, expander) = self.config.models, self.served
        return Models(
            Door(names.embedding, lambda: cast("Embedder", embedder[1]), lambda: embedder[0].loaded),
            None
            if reranker is None
            else Door(
                names.reranker or "", lambda: cast("Reranker", reranker[1]), lambda: reranker[0].loaded
            ),
            None
            if expander is None
            else Door(
                names.expansion or "", lambda: cast("Generator", expander[1]), lambda: expander[0].loaded
            ),
            self._pictures_door(),
        )
