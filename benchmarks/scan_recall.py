"""Recall@10 of the int8 prescan against the exact scan, on the vectors of an index.

    python benchmarks/scan_recall.py INDEX.sqlite [--queries 500]

Queries are stored vectors, the vector itself left out of both lists, so they are as near to the others as real
text is. Also with fewer candidates than in use, to show the margin.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import qmd
from qmd.search import dense


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path)
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args()
    with qmd.open(options.index, create=False) as index:
        model = index.store.vectors.models()[0]
        matrix = index.store.vectors.matrix(model.fingerprint)
        scan = dense.Scan(matrix.rows, matrix.chunk_ids, matrix.codes, matrix.scales)
        chosen = np.random.default_rng(0).permutation(len(matrix.rows))[: options.queries]
        exact = [set(scan.search(matrix.rows[i], 11, method="exact")[0].tolist()) for i in chosen]
        for more in (dense.MORE_CANDIDATES, 40, 10):
            dense.MORE_CANDIDATES = more
            found = [set(scan.search(matrix.rows[i], 11, method="int8")[0].tolist()) for i in chosen]
            recall = np.mean(
                [
                    len(e & f - {int(matrix.chunk_ids[i])}) / len(e - {int(matrix.chunk_ids[i])})
                    for e, f, i in zip(exact, found, chosen, strict=True)
                ]
            )
            print(f"{model.name}, {len(matrix.rows)} rows, {11 + more} candidates: recall@10 {recall:.5f}")


if __name__ == "__main__":
    main()
