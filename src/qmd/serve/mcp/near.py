"""An index that lets the daemon search where one runs: several agents, one loaded model.

Reading documents needs no model and is done here. Whether a daemon runs is looked at with each search, so that one may
come and go while an agent works.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from qmd.errors import QmdError
from qmd.index import Index

if TYPE_CHECKING:
    from qmd.reports import CollectionStatus, Context, DocumentText, NotShown, Status
    from qmd.search.answer import Answer
    from qmd.serve.cli.remote import RemoteIndex
    from qmd.serve.cli.session import Session
    from qmd.store.store import Store
    from qmd.types import Hits


class NearIndex:
    """What the tools ask of an index. Raises NotFound where there is none."""

    def __init__(self, session: Session) -> None:
        from qmd.serve.spot import find_spot

        self._index = session.open()
        self._spot = find_spot(self._index.places, session.index)
        self._counted: tuple[object, Status] | None = None
        self._alone = os.name != "posix" or bool(os.environ.get("QMD_NO_DAEMON"))
        self._used = time.monotonic()

    def _searcher(self) -> Index | RemoteIndex:
        if self._alone:
            return self._index
        from qmd import __version__
        from qmd.serve.spot import read_state

        state = read_state(self._spot)
        if state is None or state.version != __version__:
            return self._index
        from qmd.serve.cli.remote import RemoteIndex

        return RemoteIndex(state, lambda: self._index)

    def warm(self) -> None:
        """Open the models before the first search asks for them, unless a daemon has them. What cannot be opened is
        told by the search."""
        if self._searcher() is self._index:
            with suppress(QmdError):
                self._index.warm()

    def rest(self, idle_s: float) -> bool:
        """Let the models go if nobody has searched for `idle_s` seconds. Returns whether it did."""
        if time.monotonic() - self._used < idle_s:
            return False
        self._used = time.monotonic()
        self._index.let_go()
        from qmd.serve.memory import give_back_memory

        give_back_memory()
        return True

    def query(self, query: str, **options: Any) -> Hits:
        self._used = time.monotonic()
        return self._searcher().query(query, **options)

    def search(self, query: str, **options: Any) -> Hits:
        return self._index.search(query, **options)

    def vsearch(self, query: str, **options: Any) -> Hits:
        self._used = time.monotonic()
        return self._searcher().vsearch(query, **options)

    def ask(self, question: str, **options: Any) -> Answer:
        self._used = time.monotonic()
        try:
            return self._searcher().ask(question, **options)
        finally:
            self._used = time.monotonic()

    def get(self, ref: str, **options: Any) -> DocumentText:
        return self._index.get(ref, **options)

    def each(self, pattern: str, **options: Any) -> Iterator[DocumentText | NotShown]:
        return self._index.each(pattern, **options)

    @property
    def store(self) -> Store:
        return self._index.store

    @property
    def own(self) -> Index:
        """The index of this process."""
        return self._index

    def status(self) -> Status:
        """Counted again only when something changed."""
        store = self._index.store
        key = (store.generation, repr(store.included()), repr(store.contexts()))
        if self._counted is None or self._counted[0] != key:
            self._counted = (key, self._index.status())
        return self._counted[1]

    def list_collections(self) -> list[CollectionStatus]:
        return self._index.list_collections()

    def list_contexts(self) -> list[Context]:
        return self._index.list_contexts()

    def close(self) -> None:
        self._index.close()


AnyIndex = Index | NearIndex
