"""The loop: train on documents alone, re-index, search better.

    python benchmarks/loop.py FOLDER [--seeds 3] [--keep DIR] [--json FILE] [key=value ...]

FOLDER is in BEIR layout (corpus.jsonl, queries.jsonl, qrels.tsv). Half of the documents, drawn at random, teach: pairs
are made of them by `--from-index`, no query and no judgement is read. Then the whole index takes the adapted model's
vectors, and the judged queries are asked. Prints nDCG@10 by vector and hybrid search before and after, each seed with
its 95% interval of the difference (bootstrap over queries), and the seconds each step took. `key=value` are options of
the run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from quality import build, read_beir, run

import qmd
from qmd.config import Config, Models
from qmd.llm import open_embedder
from qmd.vembed.config import INDEX_PRESET, load_train_config
from qmd.vembed.convert import write_pairs
from qmd.vembed.evaluation.metrics import bootstrap
from qmd.vembed.run import train

MODES = ("vector", "hybrid")


def measured(
    index: qmd.Index, ids: dict[str, str], queries: dict[str, str], relevant: dict[str, set[str]]
) -> dict[str, np.ndarray]:
    """Mode -> nDCG@10 of each query."""
    return {
        mode: np.array([row["ndcg10"] for row in run(index, ids, queries, relevant, mode)[0].values()])
        for mode in MODES
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("options", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="keep the base index below this folder and use it again")
    parser.add_argument("--json", type=Path, help="append one line for each seed and mode")
    given = parser.parse_args()
    documents, queries, relevant = read_beir(given.folder)
    base = Config().models.embedding
    with tempfile.TemporaryDirectory() as scratch:
        place = (given.keep or Path(scratch)) / given.folder.name
        place.mkdir(parents=True, exist_ok=True)
        index, ids = build(documents, place, Config())
        before = measured(index, ids, queries, relevant)
        for mode in MODES:
            print(f"{base:28} {mode:7} nDCG@10 {100 * before[mode].mean():6.2f}", flush=True)
        gains: dict[str, list[float]] = {mode: [] for mode in MODES}
        for seed in range(given.seeds):
            names = sorted(ids)
            half = set(random.Random(seed).sample(names, len(names) // 2))
            out = Path(scratch) / f"adapted-{seed}"
            out.mkdir()
            start = time.perf_counter()
            rows = index.training_pairs(keep=lambda document, half=half: document.path in half)
            count = write_pairs(rows, out / "pairs.jsonl")
            config = load_train_config(
                preset=INDEX_PRESET,
                defaults={
                    "model_name_or_path": base,
                    "data_path": str(out / "pairs.jsonl"),
                    "output_dir": str(out),
                    "seed": seed,
                    "feature_cache": str(place / "features.npz"),
                },
                overrides=given.options,
            )
            train(config)
            trained_s = time.perf_counter() - start
            copy = Path(scratch) / f"index-{seed}"
            copy.mkdir()
            index.store.db.run("VACUUM INTO ?", (str(copy / "index.sqlite"),))
            start = time.perf_counter()
            changed = qmd.open(
                copy / "index.sqlite",
                config=Config(models=Models(embedding=str(out))),
                embedder=open_embedder(str(out)),
            )
            changed.embed(model_changed=True)
            taken_s = time.perf_counter() - start
            after = measured(changed, ids, queries, relevant)
            changed.close()
            for mode in MODES:
                gain = bootstrap(100 * (after[mode] - before[mode]))
                gains[mode].append(gain.value)
                print(
                    f"seed {seed}: {count} pairs       {mode:7} nDCG@10 {100 * after[mode].mean():6.2f}  "
                    f"{gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})  "
                    f"trained in {trained_s:.0f} s, re-indexed in {taken_s:.1f} s",
                    flush=True,
                )
                if given.json:
                    line = {
                        "set": given.folder.name, "mode": mode, "seed": seed, "pairs": count,
                        "before": round(100 * before[mode].mean(), 2), "after": round(100 * after[mode].mean(), 2),
                    }  # fmt: skip
                    with given.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
        for mode in MODES:
            print(f"{mode}: mean gain {statistics.fmean(gains[mode]):+.2f} over {given.seeds} seeds")
        index.close()


if __name__ == "__main__":
    main()
