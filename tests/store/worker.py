"""Run as a process by the durability tests: worker.py index|embed|write|read DATABASE ..."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import standin

import qmd.ingest.embed
import qmd.ingest.run
from qmd.config import Config
from qmd.store import Store

qmd.ingest.run.BATCH_FILES = 10
qmd.ingest.embed.BATCH_TEXTS = 10


def say(stage, done, total):
    if stage != "walk":
        print(done, flush=True)


def main(job, database, *rest):
    with Store.open(Path(database)) as store:
        if job == "index":
            qmd.ingest.run.update(store, "notes", Config(), say, steps=standin.STEPS)
        elif job == "embed":
            qmd.ingest.embed.embed(store, standin.FakeEmbedder(), say)
        elif job == "write":
            end, number = time.monotonic() + float(rest[1]), 0
            while time.monotonic() < end:
                with store.writing() as writer:
                    text = f"word{number % 7} from {rest[0]} again and again\n" * 20
                    path = f"{rest[0]}/{number % 40}.md"
                    stamp = f"{rest[0]}{number}".encode()
                    document = standin.document(text)
                    writer.put_document(
                        "notes", path, size=number, mtime_ns=number, hash=stamp, document=document
                    )
                number += 1
            print(number)
        elif job == "read":
            end, number = time.monotonic() + float(rest[1]), 0
            while time.monotonic() < end:
                for chunk in store.chunks([i for i, _ in store.keyword.match("word1 OR again")]).values():
                    assert "again and again" in chunk.text
                number += 1
            print(number)


main(*sys.argv[1:])
