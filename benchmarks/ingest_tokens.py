"""Fit and check the token estimate of `qmd.ingest.tokens` against the real tokenizer.

    python benchmarks/ingest_tokens.py TOKENIZER_JSON FOLDER_OR_JSONL ... [--fit]

Cuts real texts into pieces of 100 to 260 tokens, half of them for fitting and half for checking. --fit writes
src/qmd/ingest/token_weights.py (needs torch). Prints, for every source, how often
the estimate is too small and how much it wastes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from qmd.ingest import tokens
from qmd.ingest.read import CannotRead, decode

K = tokens.CLASSES


def texts(source: Path, limit: int) -> list[str]:
    if source.suffix == ".jsonl":
        rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
        random.Random(1).shuffle(rows)
        return ["\n".join(str(v) for v in row.values()) for row in rows[:limit]]
    files = sorted(p for p in source.rglob("*") if p.is_file())
    random.Random(1).shuffle(files)
    found = []
    for path in files[:limit]:
        try:
            found.append(decode(path.read_bytes()[:200_000])[0])
        except CannotRead:
            continue
    return found


def pieces(text: str, rng: random.Random) -> list[str]:
    found, at = [], 0
    while at < len(text) and len(found) < 40:
        size = int(tokens.running_sum(text[at : at + 4000]).searchsorted(rng.randint(100, 260) * tokens.UNIT))
        found.append(text[at : at + max(1, size)])
        at += max(1, size)
    return [p for p in found if len(p) > 60]


def features(piece: str) -> np.ndarray:
    return np.bincount(tokens.pairs(piece), minlength=K * K)[: K * K].astype(np.float32)


def fit(x: np.ndarray, y: np.ndarray, weight: np.ndarray, quantile: float) -> np.ndarray:
    """Weights w >= 0 that minimise the pinball loss of (y - xw) / y at `quantile`."""
    import torch

    torch.manual_seed(0)
    a = torch.tensor(x / y[:, None])
    share = torch.tensor(weight / weight.sum())
    start = np.asarray(tokens.WEIGHTS, dtype=np.float32) / tokens.UNIT
    w = torch.tensor(np.sqrt(np.maximum(start, 1e-3)), requires_grad=True)
    optimiser = torch.optim.Adam([w], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
    for _ in range(1500):
        optimiser.zero_grad()
        error = 1.0 - a @ (w * w)
        loss = (share * torch.maximum(quantile * error, (quantile - 1) * error)).sum()
        loss = loss + 1e-4 * ((w * w) - torch.tensor(start)).abs().mean()
        loss.backward()
        optimiser.step()
        schedule.step()
    return (w * w).detach().numpy()


def report(name: str, true: np.ndarray, estimate: np.ndarray) -> None:
    ratio = estimate / true
    print(
        f"{name:28} n={len(true):6} true<=estimate {100 * np.mean(true <= estimate):6.2f}%  "
        f"mean {ratio.mean():.3f}  p1 {np.quantile(ratio, 0.01):.3f}  "
        f"median {np.median(ratio):.3f}  p99 {np.quantile(ratio, 0.99):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--quantile", type=float, default=0.985)
    parser.add_argument("--texts", type=int, default=400)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(arguments.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rng = random.Random(0)
    rows = []
    for source in arguments.sources:
        found = [p for t in texts(Path(source), arguments.texts) for p in pieces(t, rng)]
        rng.shuffle(found)
        found = found[:6000]
        true = np.array(
            [len(e.ids) for e in tokenizer.encode_batch(found, add_special_tokens=False)], dtype=np.float32
        )
        x = np.stack([features(p) for p in found])
        keep = true > 20
        rows.append((source, x[keep], true[keep]))
    weights = np.asarray(tokens.WEIGHTS, dtype=np.float32) / tokens.UNIT
    if arguments.fit:
        x = np.concatenate([r[1][::2] for r in rows])
        y = np.concatenate([r[2][::2] for r in rows])
        share = np.concatenate([np.full(len(r[2][::2]), 1 / len(r[2][::2])) for r in rows]).astype(np.float32)
        weights = fit(x, y, share, arguments.quantile)
        whole = np.ceil(np.minimum(weights, 2.5) * tokens.UNIT).astype(int)  # a rare pair may not run away
        lines = [", ".join(map(str, whole[i * K : (i + 1) * K])) for i in range(K)]
        path = Path(tokens.__file__).with_name("token_weights.py")
        path.write_text(
            '"""Weights of class pairs in 1/256 token, left class major; written by benchmarks/ingest_tokens.py."""\n\n'
            "# fmt: off\nWEIGHTS = (\n" + "".join(f"    {line},\n" for line in lines) + ")\n"
        )
        weights = whole / tokens.UNIT
    for source, x, true in rows:
        report("/".join(Path(source).parts[-2:])[-28:], true[1::2], np.ceil(x[1::2] @ weights))


if __name__ == "__main__":
    main()
