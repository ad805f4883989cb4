"""Fit the logistic models of `qmd.search.calibrate`: what share of hits with such evidence is relevant?

    python benchmarks/fit_calibration.py FOLDER [FOLDER ...] --keep DIR [--queries N]

Folders are BEIR collections, none of them a test set. Each is asked N of its own questions and N of the other folders'
in its language. Rows are first hits of each question, relevant or not; foreign questions give irrelevant ones. Prints
coefficients fitted on all folders; AUROC and expected calibration error (ECE, 10 bins) are of folders left out.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from quality import build, read_beir

from qmd.config import Config
from qmd.search.scripts import foreign_share

HITS = 10
MODES = ("keyword", "vector", "hybrid")


def fit(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """Logistic regression by Newton's method; x: (n, features), a column of ones is added."""
    x = np.column_stack([np.ones(len(x)), x])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        penalty = ridge * np.r_[0, np.ones(len(w) - 1)]
        gradient = x.T @ (weight * (p - y)) + penalty * w
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    return w


def predict(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(np.column_stack([np.ones(len(x)), x]) @ w, -30, 30)))


def auroc(p: np.ndarray, y: np.ndarray) -> float:
    """Chance that a positive scores above a negative; ties count half."""
    _, place, count = np.unique(p, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    positives = int(y.sum())
    negatives = len(y) - positives
    return float((rank[y == 1].sum() - positives * (positives + 1) / 2) / max(positives * negatives, 1))


def ece(p: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Mean distance between what is said and what is so, over bins of what is said, weighed by their size."""
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    return float(
        sum(abs(p[bin_of == b].mean() - y[bin_of == b].mean()) * (bin_of == b).mean() for b in set(bin_of))
    )


def gather(folders: list[Path], keep: Path, count: int) -> list[dict]:
    """One row a question: its mode, folder, whether it is foreign, and the evidence and label of each hit."""
    sets = {folder.name: read_beir(folder) for folder in folders}
    asked = {}
    for name, (_, queries, _) in sets.items():
        chosen = sorted(queries)
        random.Random(name).shuffle(chosen)
        asked[name] = chosen[:count]
    cjk = {n: foreign_share(" ".join(s[1][q] for q in asked[n][:20]), ["en"]) > 0.5 for n, s in sets.items()}
    rows = []
    for name, (documents, queries, relevant) in sets.items():
        index, ids = build(documents, keep / name, Config())
        others = [(o, q) for o in sets if o != name and cjk[o] == cjk[name] for q in asked[o]]
        random.Random(name).shuffle(others)
        questions = [(queries[q], relevant[q]) for q in asked[name]]
        questions += [(sets[o][1][q], None) for o, q in others[:count]]
        doors = {"keyword": index.search, "vector": index.vsearch, "hybrid": index.query}
        for mode in MODES if not cjk[name] else ("keyword",):
            for text, wanted in questions:
                hits = doors[mode](text, limit=HITS, explain=True)
                evidence = [
                    [
                        h.explain.get("match"),
                        h.explain.get("deviations"),
                        h.explain.get("cosine"),
                        len(h.explain["words"]),
                    ]
                    for h in hits
                ]
                labels = [int(wanted is not None and ids[h.path] in wanted) for h in hits]
                rows.append(
                    {
                        "set": name,
                        "mode": mode,
                        "foreign": wanted is None,
                        "text": text,
                        "x": evidence,
                        "y": labels,
                    }
                )
        index.close()
    return rows


def features(mode: str, evidence: list, words: int) -> list[float]:
    """What the model of a mode reads of one hit."""
    match, deviations, cosine = (float(e or 0.0) for e in evidence[:3])
    length = float(np.log1p(words))
    return {
        "keyword": [match**0.5, length],
        "vector": [deviations, cosine],
        "hybrid": [match**0.5, deviations, cosine, length],
    }[mode]


def report(rows: list[dict]) -> None:
    names = sorted({row["set"] for row in rows})
    for mode in MODES:
        of_mode = [row for row in rows if row["mode"] == mode and row["x"]]
        for kind in ("hit", "any"):
            x, y, weight, owner, foreign = [], [], [], [], []
            for row in of_mode:
                hits = [features(mode, e, e[3]) for e in row["x"]]
                if kind == "any":
                    shown = hits[:5]
                    x.append(np.max(shown, axis=0))
                    y.append(0 if row["foreign"] else 1)
                    weight.append(1.0)
                    owner.append(row["set"])
                    foreign.append(row["foreign"])
                else:
                    x += hits
                    y += row["y"]
                    weight += [1.0] * len(hits)
                    owner += [row["set"]] * len(hits)
                    foreign += [row["foreign"]] * len(hits)
            if not x:
                continue
            x, y, weight = np.array(x), np.array(y), np.array(weight)
            owner, foreign = np.array(owner), np.array(foreign)
            w = fit(x, y, weight)
            print(
                f"{mode} {kind}: {np.round(w, 4).tolist()}  (constant first)  AUROC {auroc(predict(w, x), y):.3f}"
            )
            for name in names:
                left = owner == name
                if left.any() and (~left).any():
                    p = predict(fit(x[~left], y[~left], weight[~left]), x[left])
                    print(
                        f"    without {name:14} AUROC {auroc(p, y[left]):.3f}  ECE {ece(p, y[left]):.3f}"
                        f"  says {p.mean():.2f}, is {y[left].mean():.2f}"
                    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="keep the indexes below this folder")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rows", type=Path, help="keep what was gathered in this file, and use it again")
    options = parser.parse_args()
    if options.rows and options.rows.exists():
        rows = json.loads(options.rows.read_text())
    else:
        rows = gather(options.folders, options.keep, options.queries)
        if options.rows:
            options.rows.write_text(json.dumps(rows))
    report(rows)


if __name__ == "__main__":
    main()
