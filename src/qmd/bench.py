"""Measure searches on questions with known answers: the original's fixtures, and BEIR folders. `qmd bench`."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from qmd.config import Config
from qmd.errors import QmdError, UsageError
from qmd.index import Index, open
from qmd.search.measures import measure, randomisation_test
from qmd.types import Hits, Progress

Way = Literal["keyword", "vector", "hybrid", "reranked"]
WAYS: tuple[Way, ...] = get_args(Way)
DEPTH = 100


@dataclass(frozen=True, slots=True)
class Question:
    """`relevant`: file -> gain. Files of a fixture are paths in the collection, those of a folder document ids."""

    id: str
    text: str
    relevant: Mapping[str, float]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Fixture:
    """Questions, and the documents they are asked of: `documents` (id -> title, text), or `collection` of an index."""

    name: str
    questions: tuple[Question, ...]
    collection: str | None = None
    documents: Mapping[str, tuple[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class WayResult:
    """One way to search. `means`: measure -> mean over the questions; times in milliseconds; `degraded`: reason ->
    number of questions; `by_question`: id -> measures."""

    means: Mapping[str, float]
    median_ms: float
    p95_ms: float
    stages_ms: Mapping[str, float]
    degraded: Mapping[str, int] = field(default_factory=dict)
    by_question: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the same questions: `difference` is second minus first, `p` of the paired randomisation test."""

    first: str
    second: str
    measure: str
    difference: float
    p: float
    better: int
    worse: int


@dataclass(frozen=True, slots=True)
class BenchReport:
    fixture: str
    questions: int
    k: int
    results: Mapping[str, WayResult]
    comparisons: tuple[Comparison, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def read_fixture(path: str | Path) -> Fixture:
    """A JSON file in the original's form, or a folder in BEIR's (corpus.jsonl, queries.jsonl, qrels.tsv or
    qrels/test.tsv). Raises UsageError, saying what is missing.
    """
    path = Path(os.path.expanduser(path))
    try:
        return _read_beir(path) if path.is_dir() else _read_original(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        kind = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"{path} is neither a fixture ({{'queries': [{{'id', 'query', 'expected_files'}}]}}) nor a BEIR folder "
            f"(corpus.jsonl, queries.jsonl, qrels.tsv): {kind}."
        ) from error


def _read_original(path: Path) -> Fixture:
    tree = msgspec.json.decode(path.read_bytes())
    questions = tuple(
        Question(
            str(row.get("id", number)),
            row["query"],
            {_plain_path(file): 1.0 for file in row["expected_files"]},
            str(row.get("type", "")),
        )
        for number, row in enumerate(tree["queries"], start=1)
    )
    return Fixture(
        tree.get("description") or path.stem,
        tuple(q for q in questions if q.relevant),
        tree.get("collection"),
    )


def _read_beir(folder: Path) -> Fixture:
    def rows(name: str) -> Iterator[dict[str, Any]]:
        for line in (folder / name).read_text(encoding="utf-8").split("\n"):
            if line.strip():
                yield json.loads(line)

    qrels = folder / "qrels.tsv"
    qrels = qrels if qrels.exists() else folder / "qrels" / "test.tsv"
    relevant: dict[str, dict[str, float]] = defaultdict(dict)
    for line in qrels.read_text(encoding="utf-8").removesuffix("\n").split("\n")[1:]:
        query, document, gain = line.split("\t")
        if float(gain) > 0:
            relevant[query][document] = float(gain)
    documents = {
        row["_id"]: ((row.get("title") or "").strip(), row.get("text") or "") for row in rows("corpus.jsonl")
    }
    questions = tuple(
        Question(row["_id"], row["text"], relevant[row["_id"]])
        for row in rows("queries.jsonl")
        if relevant.get(row["_id"])
    )
    return Fixture(folder.name, questions, documents=documents)


@contextmanager
def documents_indexed(
    fixture: Fixture, config: Config, progress: Progress | None = None, *, keep: Path | None = None
) -> Iterator[Index]:
    """An index over a folder's documents, each a Markdown file named by its number; in `keep`, or gone at the end."""
    assert fixture.documents is not None
    with tempfile.TemporaryDirectory() as scratch:
        place = keep or Path(scratch)
        files = place / "documents"
        files.mkdir(parents=True, exist_ok=True)
        for number, (title, text) in enumerate(fixture.documents.values()):
            file = files / f"{number:07d}.md"
            if not file.exists():
                file.write_text(f"# {title}\n\n{text}\n" if title else f"{text}\n", encoding="utf-8")
        with open(place / "index.sqlite", config=config) as index:
            index.add(files, name="documents", progress=progress)
            yield index


def bench(
    index: Index,
    fixture: Fixture,
    *,
    ways: Sequence[str] = WAYS,
    collection: str | None = None,
    k: int = 10,
    against: Index | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Ask every question in every way.

    against: the same documents under another configuration; each way is then compared with it, else each way with the
    one before it. Without a reranker `reranked` is left out, and a way that raises is named in `left_out`.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no way to search. Known: {', '.join(WAYS)}.")
    if not fixture.questions:
        raise UsageError(f"{fixture.name!r} has no question with an expected file.")
    collection = collection or fixture.collection
    if collection is not None and not index.store.collection(collection).documents:
        raise UsageError(f"collection {collection!r} holds no documents. Run `qmd update`.")
    results: dict[str, WayResult] = {}
    left_out: dict[str, str] = {}
    for label, searched in (("", index), *((("against ", against),) if against is not None else ())):
        for way in ways:
            try:
                run = _ask(searched, way)
                results[label + way] = _run(run, fixture, collection, k, progress, label + way)
            except QmdError as error:
                left_out[label + way] = str(error)
    main = f"ndcg@{k}"
    pairs = list(itertools.pairwise(ways)) if against is None else [(f"against {way}", way) for way in ways]
    both = [pair for pair in pairs if pair[0] in results and pair[1] in results]
    comparisons = tuple(_compare(results, a, b, main) for a, b in both)
    return BenchReport(fixture.name, len(fixture.questions), k, results, comparisons, left_out)


def _ask(index: Index, way: str) -> Callable[..., Hits]:
    """The search of one way. Time is not limited: every stage that belongs to the way runs."""
    if way == "keyword":
        return index.search
    if way == "vector":
        return lambda text, **options: index.vsearch(text, rerank=False, **options)
    if way == "hybrid":
        return lambda text, **options: index.query(text, rerank=False, budget_ms=0, **options)
    if not index.has_reranker:
        raise UsageError("no reranker is configured. Set `models.reranker` in config.yaml.")
    return lambda text, **options: index.query(text, rerank=True, budget_ms=0, **options)


def _run(
    ask: Callable[..., Hits],
    fixture: Fixture,
    collection: str | None,
    k: int,
    progress: Progress | None,
    label: str,
) -> WayResult:
    names = None
    if fixture.documents is not None:
        names = {f"{number:07d}.md": document for number, document in enumerate(fixture.documents)}
    scope = {"collections": (collection,)} if collection else {}
    ask(fixture.questions[0].text, limit=1, **scope)  # opens models and reads files, once
    by_question: dict[str, Mapping[str, float]] = {}
    times: list[float] = []
    stages: dict[str, list[float]] = defaultdict(list)
    degraded: dict[str, int] = defaultdict(int)
    for number, question in enumerate(fixture.questions, start=1):
        begin = time.perf_counter()
        hits = ask(question.text, limit=DEPTH, **scope)
        times.append((time.perf_counter() - begin) * 1000)
        for stage, ms in hits.timings_ms.items():
            stages[stage].append(ms)
        for reason in hits.degraded:
            degraded[reason.split(":")[0]] += 1
        if names is not None:
            ranked = [names.get(hit.path, "") for hit in hits]
        else:
            ranked = _match([hit.path for hit in hits], question.relevant)
        by_question[question.id] = measure(ranked, question.relevant, k=k, depth=DEPTH)
        if progress is not None:
            progress(label, number, len(fixture.questions))
    measures = next(iter(by_question.values()))
    return WayResult(
        means={m: round(statistics.fmean(q[m] for q in by_question.values()), 4) for m in measures},
        median_ms=round(statistics.median(times), 2),
        p95_ms=round(sorted(times)[min(len(times) - 1, int(0.95 * len(times)))], 2),
        stages_ms={stage: round(statistics.median(values), 2) for stage, values in stages.items()},
        degraded=dict(degraded),
        by_question=by_question,
    )


def _match(paths: Sequence[str], expected: Mapping[str, float]) -> list[str]:
    """Each path under the name of the expected file that it is (equal, or one ends with the other); counted once."""
    ranked: list[str] = []
    taken: set[str] = set()
    for path in map(_plain_path, paths):
        name = next(
            (e for e in expected if e == path or path.endswith(f"/{e}") or e.endswith(f"/{path}")), path
        )
        ranked.append(path if name in taken else name)
        taken.add(name)
    return ranked


def _plain_path(path: str) -> str:
    """Without `qmd://collection/`, case and outer slashes, as the original compares."""
    if path.startswith("qmd://"):
        path = path.removeprefix("qmd://").partition("/")[2]
    return path.strip("/").casefold()


def _compare(results: Mapping[str, WayResult], first: str, second: str, name: str) -> Comparison:
    ids = list(results[first].by_question)
    a = [results[first].by_question[i][name] for i in ids]
    b = [results[second].by_question[i][name] for i in ids]
    return Comparison(
        first,
        second,
        name,
        difference=round(statistics.fmean(b) - statistics.fmean(a), 4),
        p=round(randomisation_test(a, b), 4),
        better=sum(y > x for x, y in zip(a, b, strict=True)),
        worse=sum(y < x for x, y in zip(a, b, strict=True)),
    )


def without_questions(report: BenchReport) -> BenchReport:
    """The same, without the measures of each question."""
    return replace(report, results={n: replace(r, by_question={}) for n, r in report.results.items()})
