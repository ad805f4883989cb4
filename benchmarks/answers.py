"""`qmd ask` on the sample vault: is the right source cited, how soon come the first words, how long is an answer.

    python benchmarks/answers.py [--model SmolLM2-135M-Instruct | --precision int8] [--threads 2] [--out FILE]

Twenty questions whose answer stands in one known file. The index is made first (its time is not counted), the model is
warm, every question is asked once; keys and values of sources are not yet stored.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import qmd.index
from qmd.llm import open_generator
from qmd.search.answer import ask, open_writer
from qmd.search.engine_writer import PACKAGED, EngineWriter

VAULT = Path(__file__).parent.parent / "examples" / "vault"

QUESTIONS = [
    ("How often should I water the tomatoes?", "garden/tomatoes.md"),
    ("What causes blossom-end rot?", "garden/tomatoes.md"),
    ("Which exercises help my knee?", "health/knee.md"),
    ("What did the physiotherapist call the knee pain?", "health/knee.md"),
    ("Why did electricity use drop in March?", "home/energy.md"),
    ("When should I feed the sourdough starter?", "kitchen/sourdough.md"),
    ("How long do the lentils for the dal simmer?", "kitchen/weeknight dal.md"),
    ("What spices go into the weeknight dal?", "kitchen/weeknight dal.md"),
    ("How do I take back the last commit but keep the changes in git?", "linux/undo in git.md"),
    ("How do I bring back a deleted branch?", "linux/undo in git.md"),
    ("The disk is full, how do I find deleted files that are still open?", "linux/disk full.md"),
    ("Which tram should I take in Lisbon?", "travel/lisbon.md"),
    ("Where should we stay in Lisbon?", "travel/lisbon.md"),
    ("How long is the West Highland Way?", "travel/west-highland-way.md"),
    ("What happened in the ingest outage on 22 April?", "work/2026-04-22 ingest outage.md"),
    ("How much is the rent of the apartment?", "home/lease.html"),
    ("Which subnet do the lamps use on the home router?", "home/router.rst"),
    ("Who is the tortoise named after in Darwin's notes on tortoises?", "library/darwin-tortoises.md"),
    ("What did the raven say to the man in his chamber?", "library/the-raven.md"),
    (
        "What did Alice see the White Rabbit take out of its waistcoat pocket?",
        "library/alice-down-the-rabbit-hole.md",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as for `qmd ask --model`; without it the default")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--precision", choices=["int8", "q4", "fp32"], help="the packaged model as this graph"
    )
    parser.add_argument("--plain", action="store_true", help="without drafting")
    parser.add_argument("--max-new-tokens", type=int, default=60)
    parser.add_argument("--out", type=Path, help="append the figures, one JSON line")
    args = parser.parse_args()
    if args.model:  # may run in torch, which otherwise takes all processors
        import torch

        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, qmd.index.open(Path(folder) / "index.sqlite") as index:
        index.add(VAULT, name="vault")
        if args.precision:
            generator = open_generator(PACKAGED, precision=args.precision, threads=args.threads)
            writer = EngineWriter(generator=generator)
            if args.plain:
                generator.drafter = None
        else:
            writer = open_writer(args.model)
        ask(index, "warm", writer=writer, max_new_tokens=2)
        writer.write([("user", "Say hello.")], max_new_tokens=4)
        right = said = first_source = 0
        first, total = [], []
        for question, file in QUESTIONS:
            answer = ask(index, question, writer=writer, max_new_tokens=args.max_new_tokens)
            cited = [s.file.removeprefix("qmd://vault/") for s in answer.cited]
            by_model = {n for c in answer.claims if c.supported for n in c.cited}
            said += any(s.number in by_model and s.file.endswith(file) for s in answer.sources)
            first_source += bool(answer.sources) and answer.sources[0].file.endswith(file)
            right += file in cited
            if answer.found:
                first.append(answer.timings_ms["first_words"])
                total.append(answer.timings_ms["total"])
            mark = "right" if file in cited else "WRONG"
            print(f"{mark}  {question}  cited {cited}\n       {answer.marked()[:300]!r}", flush=True)
        figures = {
            "part": "answers",
            "model": args.model or PACKAGED,
            "runs_on": getattr(getattr(writer, "generator", None), "runs_on", "torch"),
            "drafted": not args.plain and getattr(writer, "stats", None) is not None,
            "threads": args.threads,
            "questions": len(QUESTIONS),
            "right_source_cited": right,
            "right_source_by_the_answer": said,
            "right_source_first": first_source,
            "first_words_ms": [round(statistics.median(first)), round(max(first))],
            "whole_answer_ms": [round(statistics.median(total)), round(max(total))],
            "max_new_tokens": args.max_new_tokens,
        }
        print(" ".join(f"{k}={v}" for k, v in figures.items()), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
