"""Retrieval quality on BEIR folders (corpus.jsonl, queries.jsonl, qrels.tsv).

    python benchmarks/quality.py FOLDER [FOLDER ...] [--queries N] [--losses N] [--json FILE] [--keep DIR]
    python benchmarks/quality.py ablation|typos|mixed|expansion FOLDER [FOLDER ...] [--queries N] [--keep DIR]

Every document is written as a Markdown file, indexed and searched through the public Python API with the default
configuration. Prints nDCG@10, Recall@100, MRR@10 (binary relevance) and the median time of a query; `--losses` lists
the queries where hybrid loses most against keyword. The studies are in `quality_studies.py` (each stage on and off,
misspelt questions) and `quality_models.py` (questions in two languages; a language model that expands).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qmd
from qmd.config import Config, Ingest, Search
from qmd.search.scripts import foreign_share

MODES = ("bm25s", "keyword", "vector", "hybrid")
STUDIES = ("ablation", "typos", "mixed", "expansion")


def read_beir(folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, set[str]]]:
    """(document id -> title and text, query id -> text, query id -> relevant document ids)."""
    documents = {row["_id"]: row for row in map(json.loads, (folder / "corpus.jsonl").open(encoding="utf-8"))}
    queries = {
        row["_id"]: row["text"] for row in map(json.loads, (folder / "queries.jsonl").open(encoding="utf-8"))
    }
    qrels = folder / "qrels.tsv"
    qrels = qrels if qrels.exists() else folder / "qrels" / "test.tsv"
    relevant: dict[str, set[str]] = defaultdict(set)
    for line in qrels.read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0:
            relevant[query].add(document)
    return documents, {q: text for q, text in queries.items() if relevant[q]}, dict(relevant)


def build(
    documents: dict[str, dict[str, str]], place: Path, config: Config, *, embed: bool = True
) -> tuple[qmd.Index, dict[str, str]]:
    """An index over the documents written as files, and path -> document id."""
    files = place / "documents"
    ids: dict[str, str] = {}
    if not files.exists():
        files.mkdir(parents=True)
    for number, (document, row) in enumerate(documents.items()):
        name = f"{number:06d}.md"
        ids[name] = document
        title = (row.get("title") or "").strip()
        text = f"# {title}\n\n{row['text']}\n" if title else f"{row['text']}\n"
        if not (files / name).exists():
            (files / name).write_text(text, encoding="utf-8")
    index = qmd.open(place / "index.sqlite", config=config)
    index.add(
        files,
        embed=embed,
        progress=show_progress,
    )
    print(file=sys.stderr)
    return index, ids


def show_progress(stage: str, done: int, total: int | None) -> None:
    print(f"\r{stage} {done}" + (f"/{total}" if total is not None else ""), end="", file=sys.stderr)


@contextmanager
def open_set(
    folder: Path, keep: Path | None, count: int | None = None, config: Config | None = None
) -> Iterator[
    tuple[qmd.Index, dict[str, str], dict[str, str], dict[str, set[str]], dict[str, dict[str, str]]]
]:
    """(index, path -> document id, the first `count` queries, what is relevant, documents) of a folder."""
    documents, queries, relevant = read_beir(folder)
    with tempfile.TemporaryDirectory() as scratch:
        queries = dict(list(queries.items())[:count])
        place = keep / folder.name if keep else Path(scratch)
        # Questions in scripts that the default model does not read never look at a vector.
        embed = any(foreign_share(text, ["en"]) <= 0.5 for text in queries.values())
        index, ids = build(documents, place, config or Config(), embed=embed)
        print(f"{folder.name}: {len(documents)} documents, {len(queries)} queries", flush=True)
        try:
            yield index, ids, queries, relevant, documents
        finally:
            index.close()


def found_ids(hits: Any, ids: dict[str, str]) -> list[str]:
    """Document ids, best first. Near-copies are named in the hit that stands for them."""
    paths = [
        path
        for hit in hits
        for path in (hit.path, *(f.split("/", 3)[3].rsplit(":", 1)[0] for f in hit.duplicates))
    ]
    return list(dict.fromkeys(ids[path] for path in paths))


def measure(ranked: list[str], relevant: set[str]) -> dict[str, float]:
    gains = [1.0 / math.log2(rank + 2) for rank, document in enumerate(ranked[:10]) if document in relevant]
    ideal = sum(1.0 / math.log2(rank + 2) for rank in range(min(10, len(relevant))))
    first = next((rank for rank, document in enumerate(ranked[:10], start=1) if document in relevant), 0)
    return {
        "ndcg10": sum(gains) / ideal,
        "recall100": len(relevant & {*ranked[:100]}) / len(relevant),
        "mrr10": 1.0 / first if first else 0.0,
    }


def run(
    index: qmd.Index, ids: dict[str, str], queries: dict[str, str], relevant: dict[str, set[str]], mode: str
) -> tuple[dict[str, dict[str, float]], float]:
    """(query id -> measures, median milliseconds)."""
    ask = {"keyword": index.search, "vector": index.vsearch, "hybrid": index.query}[mode]
    out: dict[str, dict[str, float]] = {}
    times: list[float] = []
    for query, text in queries.items():
        begin = time.perf_counter()
        hits = ask(text, limit=100)
        times.append((time.perf_counter() - begin) * 1000)
        out[query] = measure(found_ids(hits, ids), relevant[query])
    return out, statistics.median(times)


def run_bm25(
    index: qmd.Index,
    documents: dict[str, dict[str, str]],
    queries: dict[str, str],
    relevant: dict[str, set[str]],
) -> tuple[dict[str, dict[str, float]], float]:
    """The named peer: bm25s (k1 1.2, b 0.75) over whole documents, with the words that our index has for a text."""
    import re

    import bm25s

    from qmd.store.cjk import index_text

    def tokens(text: str) -> list[str]:
        words = re.findall(r"[^\W_]+", index_text(text))
        stems = index.store.keyword.stem(words)
        return [term for word in words for term in stems[word]]

    peer = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    peer.index(
        [tokens(f"{d.get('title') or ''} {d['text']}") for d in documents.values()], show_progress=False
    )
    names = list(documents)
    out: dict[str, dict[str, float]] = {}
    times: list[float] = []
    for query, text in queries.items():
        begin = time.perf_counter()
        best, scores = peer.retrieve([tokens(text)], k=min(100, len(names)), show_progress=False)
        times.append((time.perf_counter() - begin) * 1000)
        ranked = [names[i] for i, score in zip(best[0], scores[0], strict=True) if score > 0]
        out[query] = measure(ranked, relevant[query])
    return out, statistics.median(times)


def significance(a: list[float], b: list[float], rounds: int = 10_000) -> float:
    """p of the paired randomisation test (two-sided): how often do random signs give such a difference?"""
    import numpy as np

    difference = np.subtract(a, b)
    signs = np.random.default_rng(0).choice((-1, 1), size=(rounds, len(difference)))
    return float((np.abs((signs * difference).mean(axis=1)) >= abs(difference.mean()) - 1e-12).mean())


def study(name: str, arguments: list[str]) -> None:
    """Run one study on each folder; its lines are appended to results/quality_studies.jsonl."""
    from environment import append_result

    parser = argparse.ArgumentParser(prog=f"quality.py {name}")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--queries", type=int, help="only the first N queries")
    parser.add_argument("--keep", type=Path, help="keep the indexes below this folder and use them again")
    parser.add_argument("--only", default="", help="ablation: rows with this in their name, and the first")
    parser.add_argument("--model", help="expansion: the model to ask")
    options = parser.parse_args(arguments)
    import quality_models
    import quality_studies

    for folder in options.folders:
        match name:
            case "ablation":
                found: Any = quality_studies.ablate(folder, options.keep, options.queries, options.only)
            case "typos":
                found = quality_studies.misspelt(folder, options.keep, options.queries)
            case "mixed":
                found = quality_models.mixed(folder, options.keep, options.queries)
            case _:
                found = quality_models.expansion(folder, options.keep, options.queries, options.model)
        append_result("quality_studies", {"study": name, "found": found})


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in STUDIES:
        study(sys.argv[1], sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--queries", type=int, help="only the first N queries")
    parser.add_argument("--losses", type=int, default=0, help="show the N queries that hybrid loses most")
    parser.add_argument("--json", type=Path, help="append one line for each folder and mode")
    parser.add_argument("--keep", type=Path, help="keep the indexes below this folder and use them again")
    parser.add_argument("--keyword-weight", type=float, default=Search().keyword_weight)
    parser.add_argument("--vector-weight", type=float, default=Search().vector_weight)
    parser.add_argument("--rrf-k", type=int, default=Search().rrf_k)
    parser.add_argument("--chunk-tokens", type=int, default=Ingest().chunk_tokens)
    parser.add_argument("--chunk-overlap", type=float, default=Ingest().chunk_overlap)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    options = parser.parse_args()
    config = Config(
        search=Search(
            keyword_weight=options.keyword_weight, vector_weight=options.vector_weight, rrf_k=options.rrf_k
        ),
        ingest=Ingest(chunk_tokens=options.chunk_tokens, chunk_overlap=options.chunk_overlap),
    )
    for folder in options.folders:
        with open_set(folder, options.keep, options.queries, config) as (
            index,
            ids,
            queries,
            relevant,
            documents,
        ):
            results = {}
            for mode in options.modes:
                if mode == "bm25s":
                    results[mode], median_ms = run_bm25(index, documents, queries, relevant)
                else:
                    results[mode], median_ms = run(index, ids, queries, relevant, mode)
                row = {
                    name: round(100 * statistics.fmean(r[name] for r in results[mode].values()), 2)
                    for name in ("ndcg10", "recall100", "mrr10")
                }
                print(
                    f"  {mode:8} nDCG@10 {row['ndcg10']:6.2f}  Recall@100 {row['recall100']:6.2f}  "
                    f"MRR@10 {row['mrr10']:6.2f}  median {median_ms:6.1f} ms"
                )
                if options.json:
                    line = {
                        "set": folder.name,
                        "mode": mode,
                        "queries": len(queries),
                        **row,
                        "median_ms": median_ms,
                    }
                    with options.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
            if {"bm25s", "hybrid"} <= results.keys():
                pair = [[results[mode][q]["ndcg10"] for q in queries] for mode in ("hybrid", "bm25s")]
                gain = 100 * (statistics.fmean(pair[0]) - statistics.fmean(pair[1]))
                print(f"  hybrid against bm25s: {gain:+.2f} nDCG@10, p = {significance(*pair):.4f}")
            if options.losses and {"keyword", "hybrid"} <= results.keys():
                lost = {q: results["hybrid"][q]["ndcg10"] - results["keyword"][q]["ndcg10"] for q in queries}
                for query in sorted(lost, key=lost.__getitem__)[: options.losses]:
                    print(f"    {100 * lost[query]:+6.1f}  {query}  {queries[query][:90]}")


if __name__ == "__main__":
    main()
