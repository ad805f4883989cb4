"""The service: one index, shared models, lanes of work. HTTP, MCP and the command line all ask here.

What it runs is what `qmd.index.Index` does; it adds that many may ask at once. Blocking calls are made from its lanes
(`await service.call(...)`), so that no door has threads of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import qmd.index
from qmd.config import CONFIG_NAME, Config, Models, Places, find_places
from qmd.errors import ConfigError, NotFound, UsageError
from qmd.index import Index
from qmd.llm.protocols import Embedder, Generator, Reranker, Vectors
from qmd.serve.service.batching import Batcher, Run
from qmd.serve.service.counters import Counters
from qmd.serve.service.events import Events
from qmd.serve.service.index import ServedIndex
from qmd.serve.service.lanes import Job, Lane, check_job
from qmd.serve.service.limits import Abandoned, Limits, TooLate
from qmd.serve.service.models import Kept, SharedEmbedder, SharedGenerator, SharedReranker
from qmd.trust import load_config_of
from qmd.types import Hits

if TYPE_CHECKING:
    from qmd.reports import Status
    from qmd.search.answer import Answer, Writer
    from qmd.search.claims import Source

T = TypeVar("T")
WAYS = {"hybrid": "query", "keyword": "search", "vector": "vsearch"}
"""Mode of a request -> method of Index."""
LOOK_AGAIN_S = 0.5
REST_EVERY_S = 5.0


class Service:
    """Open it once; call it from any number of requests; close it.

    index, places, config: as for `qmd.index.open`; a configuration read from its file is read again when the file
    changes. The `open_` arguments are for tests and for callers with models of their own.
    Raises NotFound where there is no index.
    """

    def __init__(
        self,
        *,
        index: str = "index",
        places: Places | None = None,
        config: Config | None = None,
        limits: Limits | None = None,
        open_embedder: Callable[[str], Embedder] | None = None,
        open_reranker: Callable[[str], Reranker] | None = None,
        open_generator: Callable[[str], Generator] | None = None,
        open_writer: Callable[[str | None, Path], Writer] | None = None,
    ) -> None:
        self.name = index
        self.places = places or find_places()
        self.limits = limits or Limits()
        self.counters = Counters()
        self.events = Events()
        self.started = time.time()
        self.searches = Lane("search", self.limits.workers, self.limits.waiting)
        self.answers = Lane("answer", 1, self.limits.ask_waiting)
        self._matrices = Lane("matrix", 1, 64)
        self.ready = False
        self._open_embedder = open_embedder or _default_embedder
        self._open_reranker = open_reranker or _default_reranker
        self._open_generator = open_generator or _default_generator
        self._open_writer = open_writer or _default_writer
        self._fixed_config = config
        self._guard = threading.Lock()
        self._looked = 0.0
        self._config_stamp = _stamp(self._config_file)
        self._config = config or load_config_of(self.places)
        self._kept: list[Kept[Any]] = []
        self._database_stamp: tuple[int, int] | None = None
        self._status: tuple[tuple[int, str], Status] | None = None
        self._closing = threading.Event()
        self._open(self._config)
        self._looked = time.monotonic()
        threading.Thread(target=self._let_rest, name="qmd-rest", daemon=True).start()

    # ---- what is open
    @property
    def index(self) -> Index:
        """The index as it stands, opened anew when its file was replaced or the configuration changed."""
        if time.monotonic() - self._looked > LOOK_AGAIN_S:
            with self._guard:
                self._look()
        return self._index

    @property
    def config(self) -> Config:
        return self._config

    @property
    def database(self) -> Path:
        return self.places.database(self.name)

    @property
    def reranker(self) -> SharedReranker:
        """Raises UsageError when the configuration names none."""
        if self._reranker is None:
            raise UsageError("no reranker is configured. Set `models.reranker` in config.yaml.")
        return self._reranker[1]

    @property
    def expander(self) -> SharedGenerator:
        """Raises UsageError when the configuration names none."""
        if self._expander is None:
            raise UsageError("no expansion model is configured. Set `models.expansion` in config.yaml.")
        return self._expander[1]

    @property
    def kept(self) -> list[Kept[Any]]:
        """The models, loaded or not."""
        return list(self._kept)

    def _open(self, config: Config) -> None:
        """Changes nothing when it raises."""
        found = _file_id(self.database)
        opened = qmd.index.open(index=self.name, config=config, places=self.places, create=False)
        if config.models != self._config.models or not self._kept:
            self._open_models(config.models)
        self._config = config
        self._index = ServedIndex.over(
            opened, self._served_embedder, self._reranker, self._expander, self._matrices
        )
        self._database_stamp = found
        self._status = None

    def _renew(self, config: Config) -> None:
        """Changes nothing when it raises. Whoever still uses the former index keeps it open; it closes with them."""
        former, models, batchers = self._index, self._kept, self._batchers()
        self._open(config)
        former.retire()
        if self._kept is not models:
            for batcher in batchers:
                batcher.retire()
            for kept in models:
                kept.retire()

    def _open_models(self, models: Models) -> None:
        embedder: Kept[Embedder] = Kept("embedding", lambda: self._open_embedder(models.embedding))
        self._kept = [embedder]
        shared = partial(SharedEmbedder, embedder, lambda run: self._batcher("embed", run))
        self.embedder = shared(models.dim)
        self.whole_embedder = self.embedder if models.dim is None else shared()
        self._served_embedder = (embedder, self.embedder)
        self._reranker: tuple[Kept[Reranker], SharedReranker] | None = None
        name = models.reranker
        if name is not None:
            reranker: Kept[Reranker] = Kept("reranker", lambda: self._open_reranker(name))
            self._kept.append(reranker)
            self._reranker = (reranker, SharedReranker(reranker, lambda run: self._batcher("rerank", run)))
        self._writer: Kept[Writer] = Kept(
            "generation", lambda: self._open_writer(models.generation, self.places.data_dir)
        )
        self._kept.append(self._writer)
        self._expander: tuple[Kept[Generator], SharedGenerator] | None = None
        expansion = models.expansion
        if expansion is not None:
            expander: Kept[Generator] = Kept("expansion", lambda: self._open_generator(expansion))
            self._kept.append(expander)
            self._expander = (expander, SharedGenerator(expander))

    def _look(self) -> None:
        """What cannot be opened is tried again with the next request."""
        stamp = _stamp(self._config_file)
        if self._fixed_config is None and stamp != self._config_stamp:
            try:
                config = load_config_of(self.places)
            except ConfigError as error:  # the last good one holds until the file is good again
                self.events.publish("config", state="refused", message=str(error))
            else:
                self._renew(config)
                self.events.publish("config", state="read")
            self._config_stamp = stamp
        found = _file_id(self.database)
        if found is None:
            raise NotFound(f"there is no index at {self.database}. Run `qmd add PATH` to make one.")
        if found != self._database_stamp:
            self._renew(self._config)
        self._looked = time.monotonic()

    @property
    def _config_file(self) -> Path:
        return self.places.config_dir / CONFIG_NAME

    def _batchers(self) -> list[Batcher]:
        rerankers = [] if self._reranker is None else [self._reranker[1].batcher]
        return [self.embedder.batcher, self.whole_embedder.batcher, *rerankers]

    def _batcher(self, name: str, run: Run) -> Batcher:
        limits = self.limits
        return Batcher(
            name,
            run,
            tokens=limits.batch_tokens,
            background_tokens=limits.background_tokens,
            wait_s=limits.batch_wait_s,
            expected=lambda: self.searches.running + self.answers.running,
        )

    # ---- asking, from an event loop
    async def call(
        self,
        work: Callable[..., T],
        *args: Any,
        deadline_s: float | None = None,
        lane: Lane | None = None,
        **kwargs: Any,
    ) -> T:
        """Run blocking work in a lane. Raises Busy, TooLate, and what the work raises.

        Cancelling the task gives the work up: if it waits it never runs, if it runs it ends at its next check.
        """
        lane = lane or self.searches
        job = lane.submit(lambda: work(*args, **kwargs), deadline_s or self.limits.deadline_s)
        return await self.wait(job)

    async def wait(self, job: Job[T]) -> T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job.future), max(0.0, job.left_s))
        except TimeoutError:
            job.abandon()
            raise TooLate(job.deadline_s) from None
        except asyncio.CancelledError:
            if job.abandoned:
                raise Abandoned from None
            job.abandon()
            raise

    async def search(self, mode: str, query: str, **options: Any) -> Hits:
        """`Index.query`, `search` or `vsearch`, by mode: hybrid, keyword, vector."""
        return await self.call(self.search_now, mode, query, **options)

    async def ask(
        self,
        question: str,
        *,
        on_sources: Callable[[Sequence[Source]], None] | None = None,
        stream: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Answer:
        """`Index.ask` with the shared writer. `on_sources` and `stream` are called in a thread of the service."""
        return await self.call(
            self.ask_now,
            question,
            on_sources=on_sources,
            stream=stream,
            deadline_s=self.limits.ask_deadline_s,
            lane=self.answers,
            **options,
        )

    async def embed(self, texts: Sequence[str], *, role: str = "document") -> Vectors:
        """(n, d) float32, batched with what others ask at the same time."""
        several = self.embedder.embed_queries if role == "query" else self.embedder.embed_documents
        return await self.call(several, texts)

    async def rerank(self, query: str, texts: Sequence[str]) -> Vectors:
        """(n,) float32 probabilities. Raises UsageError without a reranker."""
        return await self.call(self.reranker.score, query, texts)

    async def status(self) -> Status:
        return await self.call(self.status_now)

    # ---- the same, blocking: for code that runs in a lane already
    def search_now(self, mode: str, query: str, **options: Any) -> Hits:
        if mode not in WAYS:
            raise UsageError(f"mode is {mode!r}; it is one of {', '.join(WAYS)}.")
        hits: Hits = getattr(self.index, WAYS[mode])(query, **options)
        return hits

    def ask_now(
        self,
        question: str,
        *,
        on_sources: Callable[[Sequence[Source]], None] | None = None,
        stream: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Answer:
        from qmd.search.answer import ask

        def pass_on(piece: str) -> None:
            check_job()  # nobody listens any more: the writer stops here
            if stream is not None:
                stream(piece)

        with self._writer.use() as writer:
            return ask(self.index, question, writer=writer, stream=pass_on, on_sources=on_sources, **options)

    def expand_now(self, query: str) -> list[str]:
        """The query and other wordings of it. Raises UsageError when no expansion model is configured."""
        from qmd.search.rerank import LLMReranker

        return LLMReranker(expansion=cast("Generator", self.expander)).expand_query(query)

    def status_now(self) -> Status:
        """`Index.status`, counted again only when the index changed."""
        index = self.index
        key = (index.store.generation, repr(index.store.included()))
        if self._status is None or self._status[0] != key:
            self._status = (key, index.status())
        return self._status[1]

    def warm(self) -> None:
        """Load what a search needs, so that the first one does not wait for it. Raises what loading raises."""
        try:
            index = self.index
            self.embedder.embed_query("warm")
            if any(
                m.fingerprint == self.embedder.fingerprint and m.count for m in index.store.vectors.models()
            ):
                index.store.vectors.matrix(self.embedder.fingerprint)
        finally:
            self.ready = True

    # ---- the end
    def close(self, drain_s: float = 5.0) -> bool:
        """Finish what was accepted, within `drain_s`, then close. Returns False when work was cut off."""
        clean = self.searches.drain(drain_s)
        clean = self.answers.drain(drain_s) and clean
        self._matrices.drain(0.0)
        self._closing.set()
        for batcher in self._batchers():
            batcher.close()
        self._index.close()
        return clean

    def _let_rest(self) -> None:
        while not self._closing.wait(min(REST_EVERY_S, max(0.05, self.limits.idle_s / 4))):
            for kept in self.kept:
                if kept.rest(self.limits.idle_s):
                    self.counters.add("qmd_model_unloads_total", role=kept.role)
                    self.events.publish("model", role=kept.role, state="unloaded")


def _default_embedder(name: str) -> Embedder:
    from qmd.llm import open_embedder

    return open_embedder(name)


def _default_reranker(name: str) -> Reranker:
    from qmd.llm import open_reranker

    return open_reranker(name)


def _default_generator(name: str) -> Generator:
    from qmd.llm import open_generator

    return open_generator(name)


def _default_writer(name: str | None, data_dir: Path) -> Writer:
    from qmd.search.answer import open_writer

    return open_writer(name, data_dir=data_dir)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
