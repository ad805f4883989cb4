"""Index the sample notes and search them by keyword, by meaning and by both, in three languages, offline.

Runs the installed `qmd` as a person would and prints each command first. The index lies beside the
environment (`.venv/demo`), not in the home folder. Needs nothing but the standard library.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PLACE = Path(os.environ.get("QMD_DEMO_DIR") or BIN.parent / "demo")

SEARCHES = [
    (
        "Keyword search: the words themselves, also where no spaces part them",
        [
            ("search", "blossom-end rot"),
            ("search", "如何设置文件权限"),
            ("search", "ファイルの権限を変更する方法"),
        ],
    ),
    (
        "Search by meaning: hardly a word in common with the note",
        [
            ("vsearch", "my bread comes out heavy and wet inside"),
        ],
    ),
    (
        "Pictures: by what they show, whatever their files are called",
        [
            ("query", "a tram"),
        ],
    ),
    (
        "Hybrid search: both, fused",
        [
            ("query", "why were samples missing when the server ran out of space"),
            ("query", "晚上总是醒，睡不着怎么办"),
            ("query", "花粉の薬はいつから飲むか"),
        ],
    ),
]


def main() -> int:
    name = "qmd.exe" if os.name == "nt" else "qmd"
    if not (BIN / name).exists():
        print(f"{BIN / name} does not exist. Run `make demo`, which installs it first.", file=sys.stderr)
        return 1
    env = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "QMD_CONFIG_DIR": str(PLACE),
        "QMD_DATA_DIR": str(PLACE),
        "HF_HUB_OFFLINE": "1",
    }

    def run(*arguments: str) -> float:
        print(f"\n$ qmd {shlex.join(arguments)}", flush=True)
        start = time.perf_counter()
        subprocess.run([BIN / name, *arguments], env=env, cwd=REPO, check=True)
        return time.perf_counter() - start

    began = time.perf_counter()
    add_s = run("add", "examples/vault")
    search_s: list[float] = []
    try:
        for heading, searches in SEARCHES:
            print(f"\n\n== {heading} ==", flush=True)
            search_s.extend(run(command, query, "-n", "1") for command, query in searches)
    except subprocess.CalledProcessError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(
        f"\n\nIndexing took {add_s:.1f} s, {len(search_s)} searches {sum(search_s):.1f} s "
        f"({min(search_s):.2f} to {max(search_s):.2f} s each, a new process every time), "
        f"all of it {time.perf_counter() - began:.1f} s. Nothing left this machine.\n"
        f"Now your own notes: {os.path.relpath(BIN / name)} add FOLDER"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
