"""Fit the logistic models of `qmd.search.calibrate`: what share of hits with such evidence is relevant?

    python benchmarks/fit_calibration.py FOLDER [FOLDER ...] --keep DIR [--queries N]
    python benchmarks/fit_calibration.py FOLDER [FOLDER ...] --keep DIR --queries 200 --foreign TEST_FOLDER

Folders are BEIR collections, none of them a test set. Each is asked N of its own questions and N of the other folders'
in its language. Rows are first hits of each question, relevant or not; foreign questions give irrelevant ones. Prints
coefficients fitted on all folders, beside those that ship; AUROC and expected calibration error (ECE, 10 bins) of each
folder, by a model fitted without it and by the one that ships. `--foreign`: how well a folder that nothing was fitted
to is answered, and questions of the others refused.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from quality import build, read_beir

from qmd.config import Config
from qmd.search import calibrate
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
        index, ids = build(documents, keep / name, Config(), embed=not cjk[name])
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


def table(rows: list[dict], mode: str, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features (n, f), labels (n,), set of each row) of a mode; "hit": each of the first hits, "any": their best."""
    x, y, owner = [], [], []
    for row in rows:
        if row["mode"] != mode or not row["x"]:
            continue
        hits = [features(mode, e, e[3]) for e in row["x"]]
        if kind == "any":
            x.append(np.max(hits[:5], axis=0))
            y.append(int(not row["foreign"]))
            owner.append(row["set"])
        else:
            x += hits
            y += row["y"]
            owner += [row["set"]] * len(hits)
    return np.array(x), np.array(y), np.array(owner)


def report(rows: list[dict]) -> None:
    """Coefficients of all sets; for each set AUROC and ECE of a model fitted without it, and of the one that ships."""
    shipped = {"hit": calibrate._HIT, "any": calibrate._ANY}
    for kind in ("hit", "any"):
        for mode in MODES:
            x, y, owner = table(rows, mode, kind)
            if not len(x):
                continue
            w = fit(x, y, np.ones(len(y)))
            print(f"{mode} {kind}: {tuple(np.round(w, 3).tolist())}  ships: {shipped[kind][mode]}")
            errors = []
            for name in sorted(set(owner)):
                left = owner == name
                if left.all():
                    continue
                p = predict(fit(x[~left], y[~left], np.ones((~left).sum())), x[left])
                now = predict(np.array(shipped[kind][mode]), x[left])
                errors.append((ece(p, y[left]), ece(now, y[left])))
                print(
                    f"    {name:12} left out: AUROC {auroc(p, y[left]):.3f} ECE {errors[-1][0]:.3f}"
                    f"   ships: AUROC {auroc(now, y[left]):.3f} ECE {errors[-1][1]:.3f}"
                    f"   says {p.mean():.2f}, is {y[left].mean():.2f}"
                )
            mean, worst = np.mean(errors, axis=0), np.max(errors, axis=0)
            print(
                f"    mean ECE {mean[0]:.3f} (ships {mean[1]:.3f}), worst {worst[0]:.3f} (ships {worst[1]:.3f})"
            )


def foreign(folder: Path, others: list[Path], keep: Path, count: int) -> None:
    """Abstention with the figures that ship: `count` questions of `folder`, as many of the other folders."""
    documents, queries, _ = read_beir(folder)
    asked = sorted(queries)
    random.Random(folder.name).shuffle(asked)
    strange = [text for other in others for text in read_beir(other)[1].values()]
    random.Random(folder.name).shuffle(strange)
    index, _ = build(documents, keep / folder.name, Config())
    questions = [(queries[q], 1) for q in asked[:count]] + [(text, 0) for text in strange[:count]]
    for mode, door in (("keyword", index.search), ("vector", index.vsearch), ("hybrid", index.query)):
        p = np.array([door(text, limit=HITS).any_relevant or 0.0 for text, _ in questions])
        y = np.array([fits for _, fits in questions])
        print(
            f"{folder.name} {mode}: {y.sum()} that fit, {len(y) - y.sum()} foreign: AUROC {auroc(p, y):.4f}, "
            f"ECE {ece(p, y):.3f}, answered {(p[y == 1] >= calibrate.NOTHING_BELOW).mean():.3f}, "
            f"refused {(p[y == 0] < calibrate.NOTHING_BELOW).mean():.3f}",
            flush=True,
        )
    index.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="keep the indexes below this folder")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rows", type=Path, help="keep what was gathered in this file, and use it again")
    parser.add_argument(
        "--foreign", type=Path, help="only abstention: ask this folder, and of the others' questions"
    )
    options = parser.parse_args()
    if options.foreign:
        foreign(options.foreign, options.folders, options.keep, options.queries)
        return
    if options.rows and options.rows.exists():
        rows = json.loads(options.rows.read_text())
    else:
        rows = gather(options.folders, options.keep, options.queries)
        if options.rows:
            options.rows.write_text(json.dumps(rows))
    report(rows)


if __name__ == "__main__":
    main()
