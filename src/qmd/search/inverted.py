"""Nearest vectors past the exact scan's range: an inverted file beside the matrix, made when it first pays.

It holds int8 codes by list (ids are rows of the matrix); what it finds is scored exactly from the matrix, and rows
newer than it are scanned, so it is brought up to date seldom. It needs torch; without it every search scans.
Knows rows and their ids; nothing of documents.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qmd.errors import QmdError
from qmd.reports import InvertedFile
from qmd.search.dense import Floats, Ids, Scan

VectorSearch = Literal["exact", "ivf", "auto"]

AUTO_ROWS = 200_000
"""From here on `auto` weighs an inverted file; below, a scan takes a few milliseconds."""
LEAST_ROWS = 2_000
"""Below, lists would be too short to say anything: even `ivf` scans."""
OPEN_AFTER_S = 2.0
"""`auto` opens a file once this process has scanned so long: importing torch costs about as much."""
BUILD_AFTER_S = 20.0
"""`auto` makes one, in the background, once this process has scanned so long."""
TARGET_RECALL = 0.99
_TAIL_SHARE, _TAIL_ROWS = 0.1, 20_000  # newer rows that are scanned before the file takes them in
_REBUILD = 2.0  # trained anew when the matrix has grown so much
_SAMPLE = 100  # rows of the user's own that recall is measured with
_TOP = 10
_TIE = 1e-5
_EXACT_SUBSET = 20_000  # a filter that leaves so few rows is scanned


class Matrix(Protocol):
    """What is searched; `stem` is the path of its files without ending, None when it is in memory alone."""

    @property
    def rows(self) -> Floats: ...
    @property
    def chunk_ids(self) -> Ids: ...
    @property
    def codes(self) -> NDArray[np.int8]: ...
    @property
    def scales(self) -> Floats: ...
    @property
    def stem(self) -> Path | None: ...


@dataclass(slots=True)
class _State:
    """Of one matrix in this process."""

    opened: tuple[Any, InvertedFile] | None = None
    scanned_s: float = 0.0
    builder: threading.Thread | None = None
    failed: str | None = None


_states: dict[Path, _State] = {}
_lock = threading.Lock()


class MatrixSearch:
    """Searches a matrix as `Scan` does, by its inverted file where `vectors` and the matrix's size call for it.

    notes: what a reader of the hits should know, as far as searches have found out.
    """

    def __init__(self, matrix: Matrix, vectors: VectorSearch = "auto", scan: Scan | None = None) -> None:
        self._matrix, self._vectors = matrix, vectors
        self._scan = scan or Scan(matrix.rows, matrix.chunk_ids, matrix.codes, matrix.scales)
        self.notes: list[str] = []

    def search(self, query: Floats, k: int, *, allowed: Ids | None = None) -> tuple[Ids, Floats]:
        """The k best rows by inner product, of those `allowed`. query: (d,). Returns ids and scores, best first."""
        matrix = self._matrix
        least = AUTO_ROWS if self._vectors == "auto" else LEAST_ROWS
        if self._vectors == "exact" or len(matrix.chunk_ids) < least or matrix.stem is None:
            return self._scan.search(query, k, allowed=allowed)
        if importlib.util.find_spec("torch") is None:
            if self._vectors == "ivf":
                self._say(
                    "vector: an inverted file needs torch (pip install 'qmd-python[torch]'); all were scanned"
                )
            return self._scan.search(query, k, allowed=allowed)
        state, said = _ready(matrix, matrix.stem, wait=self._vectors == "ivf")
        if said:
            self._say(said)
        if state.opened is not None:
            found = _search(*state.opened, matrix, self._scan, query, k, allowed)
            return found if found is not None else self._scan.search(query, k, allowed=allowed)
        begin = time.perf_counter()
        ids, scores = self._scan.search(query, k, allowed=allowed)
        state.scanned_s += time.perf_counter() - begin
        return ids, scores

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def inverted_file(stem: Path | None) -> InvertedFile | None:
    """What lies beside a matrix; needs no torch."""
    try:
        facts = InvertedFile(**json.loads(_facts_path(stem).read_text())) if stem is not None else None
    except (OSError, ValueError, TypeError):
        return None
    return facts if facts is not None and facts.version == 1 else None


def _ready(matrix: Matrix, stem: Path, *, wait: bool) -> tuple[_State, str]:
    """The state, with its index open and fresh enough where that is worth it now; and what happened."""
    with _lock:
        if stem not in _states:
            for gone in [s for s in _states if s.parent == stem.parent]:  # the matrix was written anew
                del _states[gone]
            _states[stem] = _State()
        state = _states[stem]
        if state.failed is not None:
            return state, f"vector: the inverted file could not be made ({state.failed}); all were scanned"
        if state.builder is not None and state.builder.is_alive():
            return state, ""
        facts = state.opened[1] if state.opened is not None else inverted_file(stem)
        if facts is not None and _covers(facts, len(matrix.chunk_ids)):
            if state.opened is not None:
                return state, ""
            if not (wait or "torch" in sys.modules or state.scanned_s > OPEN_AFTER_S):
                return state, ""
            try:
                state.opened = _open(stem), facts
                return state, ""
            except (QmdError, OSError, ValueError):  # damaged: it is derived, so it is made again
                _facts_path(stem).unlink(missing_ok=True)
        if wait:
            begin = time.perf_counter()
            _make(state, matrix, stem)
            if state.failed is not None or state.opened is None:
                return (
                    state,
                    f"vector: the inverted file could not be made ({state.failed}); all were scanned",
                )
            seconds = time.perf_counter() - begin
            return (
                state,
                f"vector: made an inverted file of {state.opened[1].rows:,} vectors in {seconds:.0f} s",
            )
        if state.opened is not None or state.scanned_s > BUILD_AFTER_S:
            state.builder = threading.Thread(target=_make, args=(state, matrix, stem), daemon=True)
            state.builder.start()
        return state, ""


def _covers(facts: InvertedFile, n: int) -> bool:
    """Whether so few rows are newer than the file that scanning those is no burden."""
    return 0 <= n - facts.rows <= min(_TAIL_ROWS, _TAIL_SHARE * facts.rows)


def _facts_path(stem: Path) -> Path:
    return stem.with_name(stem.name + ".ivf.json")


def _index_path(stem: Path) -> Path:
    return stem.with_name(stem.name + ".ivf")


def _open(stem: Path) -> Any:
    from qmd import ivf

    return ivf.load(_index_path(stem))


def _make(state: _State, matrix: Matrix, stem: Path) -> None:
    """Take in the rows that are new, or train anew; measure recall; write both files."""
    from qmd import ivf

    try:
        n = len(matrix.chunk_ids)
        facts, index = inverted_file(stem), None
        if facts is not None and facts.rows <= n < _REBUILD * facts.trained_rows:
            try:
                index = _open(stem)  # its own copy: the one that is open may be searched meanwhile
            except (QmdError, OSError, ValueError):
                index = None
        if facts is None or index is None:
            nlist = 1 << round(float(np.log2(4 * np.sqrt(n))))
            nlist = max(16, min(nlist, n // 39))
            index = ivf.IndexIVFScalarQuantizer(
                d=matrix.rows.shape[1], nlist=nlist, metric="ip", qtype="int8"
            )
            take = np.random.default_rng(0).choice(n, min(n, 64 * nlist), replace=False)
            index.train(np.ascontiguousarray(matrix.rows[np.sort(take)]))
            facts = InvertedFile(0, nlist, 1, 0.0, 0, n)
        for a in range(facts.rows, n, 1 << 16):
            b = min(n, a + (1 << 16))
            index.add_with_ids(np.ascontiguousarray(matrix.rows[a:b]), np.arange(a, b))
        facts = _measure(index, matrix, replace(facts, rows=n))
        index.nprobe = facts.nprobe
        index.save(_index_path(stem))
        draft = _facts_path(stem).with_suffix(".new")
        draft.write_text(json.dumps(asdict(facts)))
        os.replace(draft, _facts_path(stem))
        state.opened = index, facts
    except (QmdError, OSError, ValueError, RuntimeError) as error:
        state.failed = str(error)


def _measure(index: Any, matrix: Matrix, facts: InvertedFile) -> InvertedFile:
    """The smallest nprobe that reaches TARGET_RECALL on the user's own rows (each left out of its own answer)."""
    live = np.flatnonzero(matrix.chunk_ids >= 0)
    if live.shape[0] <= _TOP:
        return replace(facts, nprobe=facts.nlist, recall=1.0)
    take = np.sort(np.random.default_rng(1).choice(live, min(_SAMPLE, live.shape[0]), replace=False))
    queries = np.ascontiguousarray(matrix.rows[take])
    best_s = np.full((len(take), _TOP), -np.inf, np.float32)
    best_i = np.full((len(take), _TOP), -1, np.int64)
    for a in range(0, len(matrix.chunk_ids), 1 << 16):
        scores = queries @ matrix.rows[a : a + (1 << 16)].T
        scores[:, matrix.chunk_ids[a : a + (1 << 16)] < 0] = -np.inf
        own = (take >= a) & (take < a + scores.shape[1])
        scores[np.flatnonzero(own), take[own] - a] = -np.inf
        kept = min(_TOP, scores.shape[1])
        at = np.argpartition(scores, scores.shape[1] - kept, axis=1)[:, scores.shape[1] - kept :]
        s = np.concatenate([best_s, np.take_along_axis(scores, at, 1)], 1)
        i = np.concatenate([best_i, at + a], 1)
        order = np.argsort(-s, axis=1)[:, :_TOP]
        best_s, best_i = np.take_along_axis(s, order, 1), np.take_along_axis(i, order, 1)
    nprobe = 4
    while True:
        index.nprobe = min(nprobe, facts.nlist)
        _, found = index.search(queries, 8 * _TOP + 1)
        scores = np.einsum("qd,qkd->qk", queries, matrix.rows[np.maximum(found, 0)])
        scores[(found < 0) | (found == take[:, None]) | (matrix.chunk_ids[found] < 0)] = -np.inf
        near = (scores >= best_s[:, -1:] - _TIE).sum(1)  # copies of a text are as good as one another
        recall = float(np.minimum(near, best_s.shape[1]).mean()) / best_s.shape[1]
        if recall >= TARGET_RECALL or index.nprobe == facts.nlist:
            return replace(facts, nprobe=index.nprobe, recall=recall, sample=len(take))
        nprobe *= 2


def _search(
    index: Any, facts: InvertedFile, matrix: Matrix, scan: Scan, query: Floats, k: int, allowed: Ids | None
) -> tuple[Ids, Floats] | None:
    """None where a scan answers better: a filter that leaves few rows, or more hits wanted than lists hold."""
    n = len(matrix.chunk_ids)
    mask = scan.mask(allowed)
    live = n if mask is None else int(mask.sum())
    # lists enough to hold four times the hits wanted
    nprobe = max(facts.nprobe, -(-4 * k * facts.nlist // max(live, 1)))
    if (
        facts.rows > n or 2 * nprobe > facts.nlist
    ):  # an older view of the matrix, or lists that leave little out
        return None
    if mask is not None and live <= _EXACT_SUBSET:
        return None
    from qmd.ivf import SearchParams

    params = SearchParams(nprobe=nprobe, filter=None if mask is None else mask[: facts.rows])
    candidates = max(8 * k, 200)
    query = np.ascontiguousarray(query, dtype=np.float32)
    _, found = index.search(query[None], candidates, params)
    places = found[0][found[0] >= 0]
    if mask is not None and places.shape[0] < min(k, live):
        return None  # the lists near the question hold few rows that are allowed
    tail = np.arange(facts.rows, n)
    if mask is not None:
        tail = tail[mask[facts.rows :]]
    return scan.best_of(np.concatenate([places, tail]), query, k)
