"""`qmd ask` on the sample vault: is the right source cited, how soon come the first words, how long is an answer.

    python benchmarks/answers.py [--model SmolLM2-135M-Instruct] [--threads 2]

Twenty questions whose answer stands in one known file. The index is made first (its time is not counted), the model is
warm, every question is asked once; keys and values of sources are not yet stored.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch

import qmd.index
from qmd.search.answer import ask, open_writer

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
    parser.add_argument("--max-new-tokens", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, qmd.index.open(Path(folder) / "index.sqlite") as index:
        index.add(VAULT, name="vault")
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
        n = len(QUESTIONS)
        print(
            f"right source cited {right}/{n}; by the answer itself {said}/{n}; right source first {first_source}/{n}"
        )
        print(f"first words: median {statistics.median(first):.0f} ms, worst {max(first):.0f} ms")
        print(
            f"at most {args.max_new_tokens} tokens: median {statistics.median(total):.0f} ms, worst {max(total):.0f} ms"
        )


if __name__ == "__main__":
    main()
