"""Draw docs/picture.svg: a terminal in which real commands run over the sample vault and print real output.

python docs/make_picture.py            # needs rich (requirements-dev.txt) and the installed qmd
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

REPO = Path(__file__).resolve().parent.parent
PICTURE = REPO / "docs" / "picture.svg"
WIDTH = 100
LINES_PER_COMMAND = 9

COMMANDS = [
    ["add", "examples/vault"],
    ["vsearch", "my bread comes out heavy and wet inside", "-n", "1"],
    ["search", "如何设置文件权限", "-n", "1"],
    ["query", "花粉の薬はいつから飲むか", "-n", "1"],
]


def run_on_terminal(command: list[str], env: dict[str, str]) -> str:
    """Output of a command that believes it writes to a terminal of WIDTH columns, colours included."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=subprocess.DEVNULL, env=env, cwd=REPO
    ) as process:
        os.close(follower)
        pieces = []
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:
                break
            if not piece:
                break
            pieces.append(piece)
    os.close(leader)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} exited with {process.returncode}")
    text = b"".join(pieces).decode("utf-8").replace("\r\n", "\n")
    return re.sub(r"\x1b\]8;.*?\x1b\\", "", text)


def draw() -> str:
    """The SVG. Fonts are named and not fetched, so that the picture asks no other host for anything."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    qmd = shutil.which("qmd", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if qmd is None:
        raise SystemExit("qmd is not installed in this environment. Run `make demo` first.")
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("QMD_", "NO_COLOR"))}
        env |= {
            "QMD_CONFIG_DIR": folder,
            "QMD_DATA_DIR": folder,
            "TERM": "xterm-256color",
            "COLUMNS": str(WIDTH),
        }
        for arguments in COMMANDS:
            console.print(Text.assemble(("$ ", "green"), (f"qmd {shlex.join(arguments)}", "bold")))
            shown = Text.from_ansi(run_on_terminal([qmd, *arguments], env)).split("\n")
            for line in shown[:LINES_PER_COMMAND]:
                console.print(line, no_wrap=True, overflow="ellipsis")
            console.print()
    svg = console.export_svg(title="qmd", theme=MONOKAI)
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)
    fonts = "ui-monospace, 'Noto Sans Mono CJK SC', 'Noto Sans Mono CJK JP', monospace"
    return re.sub(r"Fira Code, monospace", fonts, svg)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(REPO)}")
