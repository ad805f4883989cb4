"""Latency and recall of `vectors: ivf` against the scan.

    python benchmarks/inverted_file.py INDEX.sqlite|ROWS.npy [--queries 200]

An index: its stored vectors, and whole searches; makes the inverted file beside it, so give it a copy. A .npy file:
rows of unit length, the last of them asked for. Appends a line to results/inverted_file.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from environment import Spread, append_result

import qmd
from qmd.config import Config, Search
from qmd.search.dense import Scan
from qmd.search.inverted import MatrixSearch, inverted_file
from qmd.serve.cli.commands_upkeep import _status_lines

QUESTIONS = (
    "how do I read a file line by line", "sort a list of numbers", "parse a date with a time zone",
    "retry a request that timed out", "compress a folder", "regular expression for an address",
    "memory leak in a long running process", "write a unit test with a fake clock",
)  # fmt: skip


@dataclass
class Rows:
    """Rows of a file, as a matrix of the store."""

    rows: np.ndarray
    stem: Path

    def __post_init__(self) -> None:
        self.chunk_ids = np.arange(len(self.rows))
        self.scales = np.abs(self.rows).max(1) / 127
        self.codes = np.round(self.rows / self.scales[:, None]).astype(np.int8)


def compare(matrix: Any, queries: np.ndarray) -> dict[str, object]:
    """Ten hits of each query, by every way in turn."""
    scan = Scan(matrix.rows, matrix.chunk_ids, matrix.codes, matrix.scales)
    inverted = MatrixSearch(matrix, "ivf", scan)
    begin = time.perf_counter()
    inverted.search(queries[0], 10)
    figures: dict[str, object] = {"rows": len(matrix.rows), "first_search_s": time.perf_counter() - begin}
    ways = {
        "exact": lambda v: scan.search(v, 10, method="exact"),
        "scan": lambda v: scan.search(v, 10),
        "ivf": lambda v: inverted.search(v, 10),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[set[int]]] = {name: [] for name in ways}
    for v in queries:
        for name, ask in ways.items():
            begin = time.perf_counter()
            ids, _ = ask(v)
            times[name].append((time.perf_counter() - begin) * 1000)
            found[name].append(set(ids.tolist()))
    for name in ways:
        hits = [len(a & b) / len(b) for a, b in zip(found[name], found["exact"], strict=True)]
        figures |= {f"{name}_ms": Spread.of(times[name]), f"{name}_recall": float(np.mean(hits))}
    facts = inverted_file(matrix.stem)
    return figures | {"inverted_file": asdict(facts) if facts else None}


def of_index(path: Path, count: int) -> dict[str, object]:
    with (
        qmd.open(path, create=False, config=Config(search=Search(vectors="ivf"))) as index,
        qmd.open(path, create=False, config=Config(search=Search(vectors="exact"))) as plain,
    ):
        matrix = index.store.vectors.matrix(index.store.vectors.models()[0].fingerprint)
        g = np.random.default_rng(0)
        q = matrix.rows[g.permutation(len(matrix.rows))[:count]]
        q = q + g.normal(0, 0.5 / np.sqrt(q.shape[1]), q.shape).astype(np.float32)
        figures = compare(matrix, q / np.linalg.norm(q, axis=1, keepdims=True))
        whole: dict[str, list[float]] = {"exact": [], "ivf": []}
        for turn in range(6):
            for name, asked in (("exact", plain), ("ivf", index)):
                for question in QUESTIONS:
                    begin = time.perf_counter()
                    asked.vsearch(question)
                    if turn:
                        whole[name].append((time.perf_counter() - begin) * 1000)
        figures |= {f"vsearch_{name}_ms": Spread.of(t) for name, t in whole.items()}
        return figures | {"status": [line for line in _status_lines(index.status()) if "inverted" in line]}


def of_rows(path: Path, count: int) -> dict[str, object]:
    x = np.load(path)
    with tempfile.TemporaryDirectory() as folder:
        return compare(Rows(np.ascontiguousarray(x[:-count]), Path(folder) / "rows"), x[-count:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    read = of_rows if options.source.suffix == ".npy" else of_index
    figures = read(options.source, options.queries)
    for name, value in figures.items():
        print(f"{name}: {value}")
    append_result("inverted_file", {"source": options.source.name, **figures}, ("torch", "numkong"))


if __name__ == "__main__":
    main()
