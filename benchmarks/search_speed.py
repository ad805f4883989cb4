"""Time of warm searches in one process, and of the vector scan, on text made by the script.

    python benchmarks/search_speed.py [--chunks 100000] [--repeats 5]

Passages of 60 words drawn from a Zipf distribution, so common words are as common as in
real text. Vectors are random unit rows. Prints medians and the slowest of the repeats, milliseconds.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import qmd
from qmd.search.dense import Scan, numkong
from qmd.store.matrix import quantise

SHORT = ["w40 w900", "w300", "w5000 w120", "w77 w2500 w800", "w15000"]
LONG = ["w1 w3 w10 w40 w90 w200 w700 w1500 w3000 w9", "w2 w5 w7 w30 w55 w110 w400 w1000 w2200 w6000"]


def timed(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times), max(times)


def write_files(folder: Path, chunks: int, rng: np.random.Generator) -> None:
    """Files of 100 headed passages, 60 words each."""
    ranks = np.arange(1, 30_001)
    share = 1 / ranks**1.05
    share /= share.sum()
    for number in range(chunks // 100):
        words = rng.choice(ranks, size=(100, 60), p=share)
        text = "".join(f"# Part {i}\n\n{' '.join(f'w{w}' for w in row)}\n\n" for i, row in enumerate(words))
        (folder / f"{number:05d}.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((options.chunks, 384), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scan = Scan(rows, np.arange(len(rows), dtype=np.int64), *quantise(rows))
    for method in ("exact", "int8") if numkong is not None else ("exact",):
        median, worst = timed(lambda m=method: scan.search(rows[9], 100, method=m), options.repeats)
        print(f"scan {method:6} {len(rows)} x 384      median {median:7.2f}  slowest {worst:7.2f} ms")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "text"
        folder.mkdir()
        write_files(folder, options.chunks, rng)
        with qmd.open(Path(scratch) / "index.sqlite") as index:
            index.add(folder, embed=False)
            chunks = index.store.keyword.count()
            embedder = index.embedder
            while pending := index.store.vectors.pending(embedder.fingerprint, 20_000):
                made = rng.standard_normal((len(pending), 384), dtype=np.float32)
                made /= np.linalg.norm(made, axis=1, keepdims=True)
                index.store.vectors.put(
                    embedder.fingerprint,
                    embedder.card.name,
                    384,
                    zip((text.key for text in pending), made, strict=True),
                )
            for name, ask, queries in (
                ("keyword, short", index.search, SHORT),
                ("keyword, ten words", index.search, LONG),
                ("hybrid, short", index.query, SHORT),
                ("hybrid, ten words", index.query, LONG),
            ):
                results = [timed(lambda a=ask, q=query: a(q), options.repeats) for query in queries]
                median = statistics.median(m for m, _ in results)
                print(
                    f"{name:18} {chunks} chunks  median {median:7.2f}  "
                    f"slowest {max(w for _, w in results):7.2f} ms  "
                    f"each {[round(m, 1) for m, _ in results]}"
                )


if __name__ == "__main__":
    main()
