"""Questions in two languages, and what a language model adds to a search. `quality.py` calls it."""

from __future__ import annotations

import gzip
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from quality import found_ids, measure, open_set, run_bm25, significance

from qmd.config import Config, Models

SMOLLM2 = "smollm2-135m"
_TERM = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{2,}")
_CJK = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def _gain(values: Sequence[float], before: Sequence[float]) -> dict[str, float]:
    difference = 100 * (statistics.fmean(values) - statistics.fmean(before))
    return {
        "ndcg10": round(100 * statistics.fmean(values), 2),
        "difference": round(difference, 2),
        "p": round(significance(list(values), list(before)), 4),
    }


# ---- questions in two languages
def read_pairs(file: Path, count: int) -> dict[str, list[tuple[str, str]]]:
    """kind of question -> (question, passage). "cross": question and passage in different languages; "mixed": a Chinese
    or Japanese question with an English word in it, and its passage in the same language."""
    found: dict[str, list[tuple[str, str]]] = {"cross": [], "mixed": []}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            question, passage = row["query"], row["positive"]
            asked, told = row["lang_q"], row["lang_p"]
            if asked != told:
                found["cross"].append((question, passage))
            elif _CJK.search(question) and _TERM.search(question):
                found["mixed"].append((question, passage))
    rng = random.Random(file.name)
    return {kind: rng.sample(pairs, min(count, len(pairs))) for kind, pairs in found.items()}


def mixed(file: Path, keep: Path | None, count: int | None) -> list[dict[str, Any]]:
    """nDCG@10 by kind of question, over the passages of all of them and as many others. `file`: a file of pairs
    (`query`, `positive`, `lang_q`, `lang_p`), not a BEIR folder."""
    lines = []
    pairs = read_pairs(file, count or 100)
    passages = list(dict.fromkeys(p for of in pairs.values() for _, p in of))
    numbers = {passage: f"{n}" for n, passage in enumerate(passages)}
    folder = Path(keep or tempfile.mkdtemp()) / file.name.split(".")[0]
    folder.mkdir(parents=True, exist_ok=True)
    questions = {f"{kind} {n}": pair for kind, of in pairs.items() for n, pair in enumerate(of)}
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": n, "text": p}) + "\n" for p, n in numbers.items())
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": i, "text": q}) + "\n" for i, (q, _) in questions.items())
    )
    qrels = "".join(f"{i}\t{numbers[p]}\t1\n" for i, (_, p) in questions.items())
    (folder / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}")
    with open_set(folder, folder) as (index, ids, queries, relevant, documents):
        peer = run_bm25(index, documents, queries, relevant)[0]
        for kind, of in pairs.items():
            chosen = [q for q in queries if q.startswith(kind)]
            if not chosen:
                continue
            row: dict[str, Any] = {
                "set": file.name,
                "kind": kind,
                "queries": len(of),
                "passages": len(passages),
            }
            row["bm25s"] = round(100 * statistics.fmean(peer[q]["ndcg10"] for q in chosen), 2)
            for way in ("search", "query"):
                found = [
                    measure(found_ids(getattr(index, way)(queries[q], limit=10), ids), relevant[q])["ndcg10"]
                    for q in chosen
                ]
                row[way] = round(100 * statistics.fmean(found), 2)
            print(" ", row, flush=True)
            lines.append(row)
    return lines


# ---- a language model
def expansion(folder: Path, keep: Path | None, count: int | None, model: str | None) -> dict[str, Any]:
    """nDCG@10 and Recall@100 with and without lines that a model writes, which are remembered beside the index."""
    name = model or SMOLLM2
    config = msgspec.structs.replace(Config(), models=Models(expansion=name))
    with open_set(folder, keep, count, config) as (index, ids, queries, relevant, _):
        from qmd.llm import open_generator

        index._expander = open_generator(name, threads=1)
        without, ways, times, kept, dropped = [], [], [], 0, 0
        for query, text in queries.items():
            plain = index.query(text, limit=100, budget_ms=0, rerank=False, expand=False)
            begin = time.process_time()
            wide = index.query(text, limit=100, budget_ms=0, rerank=False, expand=True, explain=True)
            times.append(time.process_time() - begin)
            said = (
                [e for e in (wide[0].explain or {}).get("expansion", ()) if e.get("from") == "model"]
                if wide
                else []
            )
            dropped += sum(len(e.get("dropped", ())) for e in said)
            kept += len({n for h in wide for n in (h.explain or {})["lists"] if n.startswith("expand")})
            without.append(measure(found_ids(plain, ids), relevant[query]))
            ways.append(measure(found_ids(wide, ids), relevant[query]))
        row = {
            "set": folder.name,
            "model": name,
            "queries": len(queries),
            "without": round(100 * statistics.fmean(m["ndcg10"] for m in without), 2),
            **_gain([m["ndcg10"] for m in ways], [m["ndcg10"] for m in without]),
            "recall100": [
                round(100 * statistics.fmean(m["recall100"] for m in of), 2) for of in (without, ways)
            ],
            "lines_kept": kept,
            "lines_dropped": dropped,
            "cpu_s": round(statistics.median(times), 2),
        }
    print(" ", row, flush=True)
    return row
