"""Drafting where `qmd ask` writes by default: SmolLM2 as an int8 graph in ONNX Runtime, beside llama.cpp.

    python benchmarks/drafting_engine.py [--parts identity speed llama] [--prompts 5] [--repeats 5] [--out FILE]

identity: greedy and sampled text with drafting equals the text without, over --identity prompts of each.
speed: decoding alone, prompt read before the clock starts. llama: question to last word on quoting prompts, the prompt
included; once more with the passage already read. A fresh memory of answers each time: nothing is copied from a repeat.
Figures with and without the prompts whose output loops.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from quoting import KINDS, Board, content, requests, timed

from qmd.draft.engine import EngineDrafter, measured_cost
from qmd.llm import open_generator
from qmd.llm.repetition import repeats_from

MODEL = "smollm2-135m"


def write(
    generator: Any, drafter: EngineDrafter | None, request: tuple[str, str], tokens: int, **how: Any
) -> str:
    generator.drafter = drafter
    return "".join(generator.generate_chat([("user", content(*request))], max_new_tokens=tokens, **how))


def identity(generator: Any, cost: Any, count: int, board: Board) -> None:
    work = [r for kind in KINDS for r in requests(kind, count // 3 + 1, 400)][:count]
    for name, how in {"greedy": {}, "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 7}}.items():
        same = accepted = proposed = 0
        for request in work:
            plain = write(generator, None, request, 24, **how)
            drafter = EngineDrafter(cost)
            same += write(generator, drafter, request, 24, **how) == plain
            accepted += drafter.stats.accepted
            proposed += drafter.stats.proposed
        board.write(
            {"part": "identity, engine", "method": f"suffix, {name}", "equal": same, "prompts": len(work)}
            | {"accepted": accepted, "proposed": proposed}
        )


Times = dict[str, list[list[tuple[float, float]]]]
"""Method -> repeat -> prompt -> (wall, CPU) seconds."""


def show_both(
    board: Board, part: str, times: Times, loops: list[bool], state: Path | None, **more: Any
) -> None:
    """All prompts, then those whose output does not loop; with what earlier runs kept in `state`."""
    if state is not None:
        kept = json.loads(state.read_text()) if state.exists() else {}
        for method, repeats in times.items():
            repeats += kept.get(part, {}).get(method, [])
        state.write_text(json.dumps(kept | {part: times}))
    chosen = {"": range(len(loops))}
    if any(loops) and not all(loops):
        chosen[", without loops"] = [i for i, loop in enumerate(loops) if not loop]  # type: ignore[assignment]
    for name, kept in chosen.items():
        rows = {
            method: [(sum(r[i][0] for i in kept), sum(r[i][1] for i in kept)) for r in repeats]
            for method, repeats in times.items()
        }
        board.show(part + name, rows, prompts=len(kept), looping=sum(loops), **more)


def speed(generator: Any, cost: Any, kind: str, args: Any, board: Board) -> None:
    work = requests(kind, args.prompts, 900)
    times: Times = {"plain": [], "drafted": []}
    steps = dict.fromkeys(times, "1.00 tokens/step")
    loops = [repeats_from(write(generator, None, r, args.tokens)) is not None for r in work]
    for repeat in range(args.repeats):
        for name in list(times)[:: 1 if repeat % 2 == 0 else -1]:
            row, told = [], []
            for request in work:
                drafter = EngineDrafter(cost) if name == "drafted" else None
                write(generator, None, request, 1)  # the prompt is read; what follows starts from it
                _, wall, cpu = timed(lambda r=request, d=drafter: write(generator, d, r, args.tokens))
                row.append((wall, cpu))
                if drafter is not None:
                    told.append(drafter.stats)
            times[name].append(row)
            if told:
                new, taken = sum(s.new_tokens - 1 for s in told), sum(s.steps for s in told)
                share = sum(s.accepted for s in told) / max(1, sum(s.proposed for s in told))
                steps[name] = f"{new / taken:.2f} tokens/step, {share:.0%} accepted"
    show_both(board, f"decode, engine, {kind}", times, loops, args.state, detail=steps)


def llama(generator: Any, cost: Any, args: Any, board: Board) -> None:
    from qmd.draft.load import locate
    from qmd.llm.gguf import GgufGenerator

    folder, file = locate("SmolLM2-135M-Instruct")
    peer = GgufGenerator(Path(folder) / str(file), threads=args.threads)
    work = requests("quote", 2 * args.prompts, 900)
    loops = [repeats_from(write(generator, None, r, args.tokens)) is not None for r in work]

    def forget() -> None:
        """The next prompt shares nothing with the last."""
        for model in (peer, generator):
            list(model.generate_chat([("system", "?"), ("user", "x")], max_new_tokens=1))

    def ours(drafter: EngineDrafter | None, request: tuple[str, str]) -> str:
        return write(generator, drafter, request, args.tokens)

    def theirs(request: tuple[str, str]) -> str:
        return "".join(peer.generate_chat([("user", content(*request))], max_new_tokens=args.tokens))

    methods: dict[str, Any] = {
        "llama.cpp Q4_1": theirs,
        "qmd int8": lambda r: ours(None, r),
        "qmd int8, drafted": lambda r: ours(EngineDrafter(cost), r),
        "qmd int8, drafted, passage read before": lambda r: ours(EngineDrafter(cost), r),
    }
    times: Times = {m: [] for m in methods}
    for repeat in range(args.repeats):
        for name in list(methods)[:: 1 if repeat % 2 == 0 else -1]:
            row = []
            for request in work:
                generator.drafter = None
                forget()
                if name.endswith("before"):
                    write(generator, None, (request[0], "What is this about?"), 1)
                row.append(timed(lambda r=request, m=name: methods[m](r))[1:])
            times[name].append(row)
    show_both(board, "question to last word, engine", times, loops, args.state)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["identity", "speed", "llama"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--precision", default="int8", choices=["int8", "q4", "fp32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--identity", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--state", type=Path, help="keep the times of each repeat, and count those of earlier runs"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    generator: Any = open_generator(MODEL, precision=args.precision, threads=args.threads)
    cost = measured_cost(generator)
    board = Board(args.out, {"model": MODEL, "precision": args.precision, "threads": args.threads})
    board.write(
        {
            "part": "cost, engine",
            "step_ms": round(1000 * cost.step_s, 2),
            "relative": [round(c, 2) for c in cost.relative],
        }
    )
    if "identity" in args.parts:
        identity(generator, cost, args.identity, board)
    if "speed" in args.parts:
        for kind in args.kinds:
            speed(generator, cost, kind, args, board)
    if "llama" in args.parts:
        llama(generator, cost, args, board)


if __name__ == "__main__":
    main()
