"""The prompts of the drafting benchmarks, the board that shows their times, and what both scripts share."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VAULT = Path(__file__).parent.parent / "examples" / "vault"

KINDS = {
    "quote": [
        "Copy the first three sentences of the text, word for word.",
        "Repeat the text exactly as it is written.",
    ],
    "summary": ["Summarise the text in three sentences."],
    "open": [
        "Write a short story about a lighthouse keeper.",
        "Explain why the sky is blue.",
        "Give me ideas for a birthday.",
    ],
}


def passages(count: int, size: int) -> list[str]:
    """English pieces of the sample vault, at most `size` characters each."""
    found = []
    for path in sorted(VAULT.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if text.isascii() or len(text.encode()) < 1.05 * len(text):
            blocks = [b for b in text.split("\n\n") if len(b) > 120]
            for i in range(0, len(blocks), 2):
                found.append("\n\n".join(blocks[i : i + 2])[:size])
    return found[:count]


def requests(kind: str, count: int, size: int) -> list[tuple[str, str]]:
    """(passage, what is asked), all different."""
    texts = passages(count, size)
    made = []
    for i in range(count):
        ask = KINDS[kind][(i + i // len(texts)) % len(KINDS[kind])]
        made.append(("", f"{ask} Number {i + 1}.") if kind == "open" else (texts[i % len(texts)], ask))
    return made


def content(passage: str, ask: str) -> str:
    """The user's message."""
    return f"Text:\n{passage}\n\n{ask}" if passage else ask


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `run` returns, wall seconds, CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = run()
    return out, time.perf_counter() - wall, time.process_time() - cpu


class Board:
    """Times by method; prints medians and ratios to the first method, one JSON line each to `out`."""

    def __init__(self, out: Path | None, about: dict[str, Any]) -> None:
        self.out, self.about = out, about

    def show(self, part: str, rows: dict[str, list[tuple[float, float]]], **more: Any) -> None:
        """rows: method -> (wall, CPU) seconds of each repeat. more: figures, or mappings by method."""
        base = statistics.median(w for w, _ in next(iter(rows.values())))
        for name, values in rows.items():
            wall = [w for w, _ in values]
            self.write(
                {
                    "part": part,
                    "method": name,
                    "wall_s": round(statistics.median(wall), 4),
                    "spread_s": [round(min(wall), 4), round(max(wall), 4)],
                    "cpu_s": round(statistics.median(c for _, c in values), 4),
                    "speedup": round(base / statistics.median(wall), 3),
                    "repeats": len(values),
                }
                | {k: v[name] if isinstance(v, dict) else v for k, v in more.items()}
            )

    def write(self, figure: dict[str, Any]) -> None:
        print(" ".join(f"{k}={v}" for k, v in figure.items()), flush=True)
        if self.out:
            with self.out.open("a") as file:
                file.write(json.dumps(figure | self.about) + "\n")
