"""Latency and recall of `vectors: ivf` against the scan, on the vectors of a real index.

    python benchmarks/inverted_file.py INDEX.sqlite [--queries 200]

Makes the inverted file beside the index where there is none: give it a copy. Queries are stored vectors with noise, so
that none is its own answer; whole searches ask questions. Appends a line to results/inverted_file.jsonl.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from environment import Spread, append_result

import qmd
from qmd.config import Config, Search
from qmd.search.dense import Scan
from qmd.search.inverted import MatrixSearch
from qmd.serve.cli.commands_upkeep import _status_lines

QUESTIONS = (
    "how do I read a file line by line", "sort a list of numbers", "parse a date with a time zone",
    "retry a request that timed out", "compress a folder", "regular expression for an address",
    "memory leak in a long running process", "write a unit test with a fake clock",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    with qmd.open(options.index, create=False, config=Config(search=Search(vectors="ivf"))) as index:
        model = index.store.vectors.models()[0]
        matrix = index.store.vectors.matrix(model.fingerprint)
        scan = Scan(matrix.rows, matrix.chunk_ids, matrix.codes, matrix.scales)
        inverted = MatrixSearch(matrix, "ivf", scan)
        g = np.random.default_rng(0)
        q = matrix.rows[g.permutation(len(matrix.rows))[: options.queries]]
        q = q + g.normal(0, 0.5 / np.sqrt(q.shape[1]), q.shape).astype(np.float32)
        q /= np.linalg.norm(q, axis=1, keepdims=True)
        begin = time.perf_counter()
        inverted.search(q[0], 10)
        first_s = time.perf_counter() - begin
        ways = {
            "exact": lambda v: scan.search(v, 10, method="exact"),
            "scan": lambda v: scan.search(v, 10),
            "ivf": lambda v: inverted.search(v, 10),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        found: dict[str, list[set[int]]] = {name: [] for name in ways}
        for v in q:
            for name, ask in ways.items():
                begin = time.perf_counter()
                ids, _ = ask(v)
                times[name].append((time.perf_counter() - begin) * 1000)
                found[name].append(set(ids.tolist()))
        figures: dict[str, object] = {"rows": len(matrix.rows), "queries": len(q), "first_search_s": first_s}
        for name in ways:
            hits = [len(a & b) / len(b) for a, b in zip(found[name], found["exact"], strict=True)]
            figures |= {f"{name}_ms": Spread.of(times[name]), f"{name}_recall": float(np.mean(hits))}
        whole: dict[str, list[float]] = {"exact": [], "ivf": []}
        plain = qmd.open(options.index, create=False, config=Config(search=Search(vectors="exact")))
        for turn in range(6):
            for name, asked in (("exact", plain), ("ivf", index)):
                for question in QUESTIONS:
                    begin = time.perf_counter()
                    asked.vsearch(question)
                    if turn:
                        whole[name].append((time.perf_counter() - begin) * 1000)
        plain.close()
        figures |= {f"vsearch_{name}_ms": Spread.of(t) for name, t in whole.items()}
        status = [line for line in _status_lines(index.status()) if "inverted" in line]
    for name, value in figures.items():
        print(f"{name}: {value}")
    print(*status, sep="\n")
    append_result("inverted_file", {**figures, "status": status}, ("torch", "numkong"))


if __name__ == "__main__":
    main()
