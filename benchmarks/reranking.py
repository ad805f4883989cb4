"""The engine's time for one reranking: a query against 20 passages of a given length, each run with texts it never saw.

    python benchmarks/reranking.py MODEL [MODEL ...] [--passages 20] [--tokens 128 160 200] [--repeats 7]

MODEL is a folder that `export_reranker` wrote, or a name of the catalog. Texts are words of Python's own documentation
in random order. Prints the median, least and most milliseconds and CPU seconds, models alternating.
"""

from __future__ import annotations

import argparse
import inspect
import random
import statistics
import time

from qmd.llm import open_reranker
from qmd.llm.tokens import TextTokenizer


def words() -> list[str]:
    import argparse as a
    import logging
    import subprocess
    import tarfile

    return " ".join(
        inspect.getdoc(x) or "" for m in (a, logging, subprocess, tarfile) for x in vars(m).values()
    ).split()


def passages(
    count: int, tokens: int, draw: random.Random, source: list[str], tokenizer: TextTokenizer
) -> list[str]:
    """`count` texts of `tokens` tokens, no two alike."""
    found = []
    for _ in range(count):
        ids = tokenizer.content_ids([" ".join(draw.choices(source, k=tokens))])[0][:tokens]
        found.append(tokenizer.decode(ids))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 160, 200])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    models = {name: open_reranker(name, threads=given.threads) for name in given.models}
    source, draw = words(), random.Random(0)
    print(
        "| model | tokens a passage | median ms | least | most | CPU s |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for tokens in given.tokens:
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
        for turn in range(given.repeats + 1):  # the first warms up
            for name, model in models.items():
                texts = passages(given.passages, tokens, draw, source, model._tokenizer)  # type: ignore[attr-defined]
                wall, cpu = time.perf_counter(), time.process_time()
                model.score("how do I renew a passport, and what does it cost", texts)
                if turn:
                    seen[name].append((1000 * (time.perf_counter() - wall), time.process_time() - cpu))
        for name, rows in seen.items():
            ms = [row[0] for row in rows]
            cpu = statistics.median(row[1] for row in rows)
            print(
                f"| {name} | {tokens} | {statistics.median(ms):.0f} | {min(ms):.0f} | {max(ms):.0f} | {cpu:.2f} |"
            )


if __name__ == "__main__":
    main()
