"""What each stage of a search is worth, and how searches bear misspelt and mixed questions. `quality.py` calls it.

Requests go through the pipeline as `Index.query` makes them, with one thing changed; what no argument can change is
replaced for the time of a row (`patched`). CPU time stands beside quality: wall time says little on a shared machine.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from quality import found_ids, measure, open_set, run_bm25, significance

import qmd
from qmd.errors import ModelError
from qmd.search import expand, pipeline, weigh
from qmd.search.fuse import fuse_ranks
from qmd.search.request import Door, Models
from qmd.store import whole_arrays, wholes
from qmd.types import Hits, ModelCard


# ---- one request with something changed
def ask(index: qmd.Index, text: str, changes: Mapping[str, Any], models: Models | None = None) -> Hits:
    """`Index.query` of ten hits without a time limit, other `changes` made to its request."""
    request = index._request("hybrid", text, {"limit": 10, "budget_ms": 0})
    return pipeline.search(index.store, replace(request, **changes), models or index._models())


@contextmanager
def patched(values: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """(object, name, value): set while the block runs."""
    before = [(where, name, getattr(where, name)) for where, name, _ in values]
    for where, name, value in values:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


@dataclass(frozen=True)
class Row:
    """One row of the table: what is changed of the request, in the modules, and which models there are."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    patches: Sequence[tuple[Any, str, Any]] = ()
    models: Callable[[Models, qmd.Index], Models] = lambda models, index: models


def _no_model() -> Any:
    raise ModelError("left out")


def _without_embedder(models: Models, index: qmd.Index) -> Models:
    return replace(models, embedder=Door("none", _no_model, lambda: True))


def _by_rank(bonus: Sequence[float] = (), candidates: int = 10_000) -> Callable[..., dict[int, float]]:
    """A stand-in for `fuse_scores` that sees the ranks alone; bonus: added for the first places of a list."""

    def fuse(matches: Any, nearness: Any) -> dict[int, float]:
        lists = [*matches[:1], *nearness]  # words of the best passages make no list of the original's
        orders = {
            str(n): sorted((k for k in of if of[k] > 0), key=lambda k, of=of: -of[k])[:candidates]
            for n, (of, _) in enumerate(lists)
        }
        scores = dict(fuse_ranks(orders, {str(n): weight for n, (_, weight) in enumerate(lists)}))
        for order in orders.values():
            for key, more in zip(order, bonus, strict=False):
                scores[key] += more * 61 / (2 * sum(weight for _, weight in lists))
        every = {key for of, _ in lists for key in of}
        scores |= {key: 0.0 for key in every if key not in scores}
        return dict(sorted(scores.items(), key=lambda item: -item[1]))

    return fuse


class MaxSim:
    """Late interaction: for each token of the question its best cosine with a token of the passage, averaged.

    Token vectors are the embedding model's own, before pooling; the model was not trained for it. As scores of a
    reranker they are stretched: what occurs lies between .3 and .8.
    """

    card = ModelCard(name="late interaction", role="reranker")
    fingerprint = "late"

    def __init__(self, index: qmd.Index) -> None:
        from qmd.llm.open import find_card, find_files
        from qmd.llm.session import open_session

        files, _ = find_files(find_card(index.config.models.embedding))
        self._tokens = index.embedder._tokenizer  # type: ignore[attr-defined]
        self._session = open_session(files.graph)

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        ids = [next(iter(self._tokens.windows(i, 256))) for i in self._tokens.content_ids([query, *texts])]
        order = sorted(range(1, len(ids)), key=lambda i: len(ids[i]))
        asked = self._vectors([ids[0]])[0][1:-1]
        out = np.zeros(len(texts), np.float32)
        for start in range(0, len(order), 8):
            batch = order[start : start + 8]
            for number, rows in zip(batch, self._vectors([ids[i] for i in batch]), strict=True):
                out[number - 1] = (asked @ rows.T).max(axis=1).mean() if len(asked) else 0.0
        return np.clip((out - 0.3) / 0.5, 0, 1)

    def _vectors(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """(tokens, d) of each row, L2-normalised."""
        from qmd.llm.batches import pad_rows

        ids, mask = pad_rows(rows, self._tokens.pad_id)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        names = {i.name for i in self._session.get_inputs()}
        hidden = self._session.run(None, {k: v for k, v in feeds.items() if k in names})[0]
        hidden = hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
        return [hidden[i, : len(row)] for i, row in enumerate(rows)]


def _with_late_interaction(models: Models, index: qmd.Index) -> Models:
    model = MaxSim(index)
    return replace(models, reranker=Door("late", lambda: model, lambda: True))


ALL_SHARE = [(module, "DOCUMENT_SHARE", 1.0) for module in (wholes, whole_arrays)]
NO_SHARE = [(module, "DOCUMENT_SHARE", 0.0) for module in (wholes, whole_arrays)]
BONUS = (0.05, 0.02, 0.02)
ROWS = (
    Row("all stages, as shipped"),
    Row("no words of the best passages (`--no-expand`)", {"expand": False}),
    Row("words of the best passages for short questions, too", {}, [(expand, "FEWEST_WORDS", 1)]),
    Row("no neighbours of the best documents", {}, [(expand, "NEIGHBOUR_DOCUMENTS", 0)]),
    Row("no vectors", models=_without_embedder),
    Row("no keyword list (`vsearch`)", {"mode": "vector"}),
    Row("ranks in place of scores (k 60)", {}, [(weigh, "fuse_scores", _by_rank())]),
    Row(
        "the original's fusion: 20 of each list by rank, k 60, +.05 +.02 +.02 for first places",
        {"expand": False},
        [(weigh, "fuse_scores", _by_rank(BONUS, 20)), *NO_SHARE],
    ),
    Row("a document by its best passage alone", {}, NO_SHARE),
    Row("a document by all its text alone", {}, ALL_SHARE),
    Row("near-copies not folded", {"fold": False}),
    Row(
        "first 20 reranked by late interaction, weight .3",
        {"rerank": True, "rerank_weight": 0.3},
        models=_with_late_interaction,
    ),
    Row(
        "the same, weight .7",
        {"rerank": True, "rerank_weight": 0.7},
        models=_with_late_interaction,
    ),
)


def ablate(folder: Path, keep: Path | None, count: int | None, only: str = "") -> list[dict[str, Any]]:
    """One line a row: nDCG@10, its difference from the first row and p of that, CPU milliseconds."""
    lines: list[dict[str, Any]] = []
    with open_set(folder, keep, count) as (index, ids, queries, relevant, _):
        first: list[float] = []
        seen: set[str] = set()
        for row in ROWS:
            if row is not ROWS[0] and only not in row.name:
                continue
            models = row.models(index._models(), index)
            if row.changes.get("mode") == "vector" and "vector" not in seen:
                continue  # a model that cannot read the collection says nothing here
            with patched(row.patches):
                for text in list(queries.values())[:5]:
                    ask(index, text, row.changes, models)
                measured, times = [], []
                for query, text in queries.items():
                    begin = time.process_time()
                    hits = ask(index, text, row.changes, models)
                    times.append(1000 * (time.process_time() - begin))
                    seen.update(hits.timings_ms)
                    measured.append(measure(found_ids(hits, ids), relevant[query]))
            values = [m["ndcg10"] for m in measured]
            first = first or values
            lines.append(
                {
                    "set": folder.name,
                    "queries": len(queries),
                    "row": row.name,
                    "ndcg10": round(100 * statistics.fmean(values), 2),
                    "difference": round(100 * (statistics.fmean(values) - statistics.fmean(first)), 2),
                    "p": round(significance(values, first), 4),
                    "cpu_ms": round(statistics.median(times), 1),
                }
            )
            form = "  {ndcg10:6.2f} {difference:+6.2f} p {p:.3f}  {cpu_ms:6.1f} ms CPU  {row}"
            print(form.format(**lines[-1]), flush=True)
    return lines


# ---- misspelt questions
def misspell(text: str, share: float, rng: random.Random) -> str:
    """Each letter with probability `share`: dropped, doubled, changed, or swapped with the next. ASCII letters only."""
    out: list[str] = []
    letters = list(text)
    at = 0
    while at < len(letters):
        letter = letters[at]
        if not (letter.isascii() and letter.isalpha()) or rng.random() >= share:
            out.append(letter)
        else:
            match rng.randrange(4):
                case 0:
                    pass
                case 1:
                    out.append(letter * 2)
                case 2:
                    out.append(rng.choice("abcdefghijklmnopqrstuvwxyz"))
                case _:
                    if at + 1 < len(letters):
                        out.append(letters[at + 1])
                        at += 1
                    out.append(letter)
        at += 1
    return "".join(out)


def misspelt(folder: Path, keep: Path | None, count: int | None, share: float = 0.05) -> dict[str, Any]:
    """nDCG@10 of the questions as they are and misspelt, by `bm25s`, keyword search and both."""
    line: dict[str, Any] = {"set": folder.name, "share": share}
    with open_set(folder, keep, count) as (index, ids, queries, relevant, documents):
        wrong = {q: misspell(text, share, random.Random(f"{folder.name} {q}")) for q, text in queries.items()}
        line["queries"] = len(queries)
        for way in ("bm25s", "search", "query"):
            means = []
            for asked in (queries, wrong):
                if way == "bm25s":
                    values = [
                        m["ndcg10"]
                        for m in run_bm25(index, documents, dict(asked), dict(relevant))[0].values()
                    ]
                else:
                    door = getattr(index, way)
                    found = {q: found_ids(door(text, limit=10), ids) for q, text in asked.items()}
                    values = [measure(ranked, relevant[q])["ndcg10"] for q, ranked in found.items()]
                means.append(100 * statistics.fmean(values))
            line[way] = {
                "right": round(means[0], 2),
                "mistyped": round(means[1], 2),
                "kept": round(means[1] / means[0], 4),
            }
            lost = 100 * (1 - means[1] / means[0])
            print(f"  {way:7} {means[0]:6.2f} -> {means[1]:6.2f}  loses {lost:4.1f}%", flush=True)
    return line
