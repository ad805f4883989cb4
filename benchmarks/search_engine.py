"""The main job on 20,000 files: index, update, search; beside npm `@tobilu/qmd` where `--peer` names it.

    python benchmarks/corpus.py FOLDER
    python benchmarks/search_engine.py FOLDER/corpus [--peer node_modules/.bin/qmd] [--repeats 5]

Figures go to standard output and, with the environment, to `results/search_engine.jsonl`. The original's
recorded figures (2.8.3, a 2-core machine) stand beside ours where `--peer` is not given.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from environment import Spread, append_result, run_process, time_ms

import qmd

QMD = [sys.executable, "-m", "qmd"]
SHORT = (
    "file permissions",
    "memory allocation",
    "signal handler",
    "regular expression",
    "socket timeout",
    "thread pool",
    "kernel module",
    "device tree binding",
    "webpack loader",
    "spinlock",
    "page cache",
    "hash table",
    "certificate chain",
    "terminal color",
    "locale",
)
QUESTIONS = (
    "how do I change the permissions of a file for every user",
    "what happens when a process receives a signal while it is blocked",
    "which function should be used to allocate memory aligned to a page",
    "how can I make the kernel print messages to the serial console",
    "what is the difference between a hard link and a symbolic link",
    "how do I set the timeout of a socket before it connects",
    "why does the compiler warn about an implicit declaration of a function",
    "how to list all the open files of a running process in linux",
    "where are the environment variables of a service defined on this system",
    "how should a driver register its interrupt handler with the kernel core",
)
CJK = ("如何设置文件权限", "怎样分配内存", "ファイルの権限を変更する方法")
RECORDED = {
    "index_cpu_s": "74",
    "index_peak_mb": "984",
    "update_unchanged_cpu_s": "8.4",
    "cold_search_cpu_s": ".43-.90",
    "warm_short_ms": "17-32",
    "warm_question_ms": "645",
}


def cold_environment(data: Path) -> dict[str, str]:
    return {**os.environ, "QMD_DATA_DIR": str(data), "QMD_CONFIG_DIR": str(data / "config")}


def measure_index(corpus: Path, data: Path) -> dict[str, object]:
    """Keyword index from nothing, then updates, each as a process of its own."""
    env = cold_environment(data)
    first = run_process([*QMD, "add", str(corpus), "--no-embed", "--name", "bench"], env=env)
    database = sum(file.stat().st_size for file in data.glob("index.sqlite*"))
    text = sum(file.stat().st_size for file in corpus.rglob("*") if file.is_file())
    unchanged = [run_process([*QMD, "update"], env=env) for _ in range(5)]
    target = next(corpus.rglob("*.md"))
    original = target.read_bytes()
    changed = []
    try:
        for turn in range(5):
            target.write_bytes(original + f"\n\nA line of change {turn}.\n".encode())
            changed.append(run_process([*QMD, "update"], env=env))
    finally:
        target.write_bytes(original)
        run_process([*QMD, "update"], env=env)
    return {
        "index_exit": first.exit_code,
        "index_cpu_s": first.cpu_s,
        "index_wall_s": first.wall_s,
        "index_peak_mb": first.peak_mb,
        "text_mb": text / 1e6,
        "database_ratio": database / text,
        "update_unchanged_wall_s": Spread.of([cost.wall_s for cost in unchanged]),
        "update_unchanged_cpu_s": Spread.of([cost.cpu_s for cost in unchanged]),
        "update_one_wall_s": Spread.of([cost.wall_s for cost in changed]),
        "update_one_cpu_s": Spread.of([cost.cpu_s for cost in changed]),
    }


def measure_cold(data: Path, repeats: int, peer: Path | None, peer_home: Path) -> dict[str, object]:
    """Whole processes: `qmd --help`, `qmd search`; ours and the peer's in turn."""
    env = cold_environment(data)
    helps, ours, theirs = [], [], []
    for turn in range(repeats + 1):
        query = SHORT[turn % len(SHORT)]
        helps.append(run_process([*QMD, "--help"], env=env).cpu_s)
        ours.append(run_process([*QMD, "search", query, "--json"], env=env).cpu_s)
        if peer:
            theirs.append(
                run_process([str(peer), "search", query, "--json"], env=peer_environment(peer_home)).cpu_s
            )
    figures: dict[str, object] = {
        "help_cpu_s": Spread.of(helps[1:]),
        "cold_search_cpu_s": Spread.of(ours[1:]),
    }
    if peer:
        figures["peer_cold_search_cpu_s"] = Spread.of(theirs[1:])
    return figures


def peer_environment(home: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CONFIG_HOME": str(home / "config"), "XDG_CACHE_HOME": str(home / "cache")}


def measure_peer(corpus: Path, peer: Path, home: Path) -> dict[str, object]:
    env = peer_environment(home)
    index = run_process(
        [str(peer), "collection", "add", str(corpus), "--name", "bench", "--mask", "**/*"], env=env
    )
    unchanged = run_process([str(peer), "update"], env=env)
    return {
        "peer_index_exit": index.exit_code,
        "peer_index_cpu_s": index.cpu_s,
        "peer_index_wall_s": index.wall_s,
        "peer_index_peak_mb": index.peak_mb,
        "peer_update_unchanged_cpu_s": unchanged.cpu_s,
        "peer_update_unchanged_wall_s": unchanged.wall_s,
    }


def measure_warm(data: Path, repeats: int) -> dict[str, object]:
    """In one process, after two passes to warm caches (`first`: the first pass).

    Vectors are random unit rows: their ranking means nothing, the work is that of real ones."""
    figures: dict[str, object] = {}
    with qmd.open(data / "index.sqlite") as index:
        for name, queries in (("short", SHORT), ("question", QUESTIONS), ("cjk", CJK)):
            first = [time_ms(lambda q=query: index.search(q)) for query in queries]
            figures[f"first_{name}_ms"] = Spread.of(first)
            for query in queries:
                index.search(query)
            times = [time_ms(lambda q=query: index.search(q)) for _ in range(repeats) for query in queries]
            figures[f"warm_{name}_ms"] = Spread.of(times)
        figures["chunks"] = fill_with_random_vectors(index)
        for call, name in ((index.query, "query"), (index.vsearch, "vsearch")):
            for query in (*SHORT, *QUESTIONS):
                call(query)
            queries = (*SHORT, *QUESTIONS)
            times = [time_ms(lambda q=query, c=call: c(q)) for _ in range(repeats) for query in queries]
            figures[f"warm_{name}_ms"] = Spread.of(times)
            figures[f"warm_{name}_p95_ms"] = float(np.percentile(times, 95))
    return figures


def fill_with_random_vectors(index: qmd.Index) -> int:
    """Give every chunk a random unit vector under the configured model, through the store's own door."""
    embedder = index.embedder
    random = np.random.default_rng(0)
    vectors = index.store.vectors
    while pending := vectors.pending(embedder.fingerprint, 4096):
        rows = random.standard_normal((len(pending), embedder.dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        vectors.put(
            embedder.fingerprint,
            embedder.card.name,
            embedder.dim,
            [(text.key, row) for text, row in zip(pending, rows, strict=True)],
        )
    return vectors.count(embedder.fingerprint)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--warm-only", action="store_true", help="measure the index kept in --keep")
    parser.add_argument("--peer", type=Path, help="the qmd command of npm @tobilu/qmd")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="keep the index in this folder")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="qmd-bench-"))
    data = arguments.keep or scratch / "data"
    peer = arguments.peer.resolve() if arguments.peer else None
    if arguments.warm_only:
        for name, value in measure_warm(data, arguments.repeats).items():
            print(f"{name:28} {value if isinstance(value, Spread | int) else f'{value:.3g}'}")
        return
    try:
        figures = measure_index(arguments.corpus.resolve(), data)
        if peer:
            figures |= measure_peer(arguments.corpus.resolve(), peer, scratch / "peer")
        figures |= measure_cold(data, arguments.repeats, peer, scratch / "peer")
        figures |= measure_warm(data, arguments.repeats)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for name, value in figures.items():
        recorded = "" if peer or name not in RECORDED else f"   (the original, recorded: {RECORDED[name]})"
        print(f"{name:28} {value if isinstance(value, Spread | int) else f'{value:.3g}'}{recorded}")
    append_result("search_engine", figures, ("tokenizers", "pyromark", "click"))


if __name__ == "__main__":
    main()
