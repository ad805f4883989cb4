"""What a figure was measured on, and how a figure is summed up. Shared by all benchmark scripts."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with the range it lies in, over `runs` repeats."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}-{self.high:.3g}]"


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """One finished child process, by the operating system's own accounting."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    exit_code: int


def run_process(
    command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None
) -> ProcessCost:
    """Run a command to its end, output discarded; CPU includes the children it waited for."""
    start = time.perf_counter()
    child = subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return ProcessCost(
        wall_s=time.perf_counter() - start,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss / 1024,
        exit_code=child.returncode,
    )


def time_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def environment(packages: Sequence[str] = ()) -> dict[str, object]:
    """Machine, interpreter, commit and package versions."""
    versions: dict[str, str | None] = {}
    for name in ("numpy", "onnxruntime", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")), cpu
        )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or None,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": versions,
    }


def append_result(script: str, figures: dict[str, object], packages: Sequence[str] = ()) -> None:
    """Add one JSON line with figures and environment to `results/<script>.jsonl`."""
    RESULTS.mkdir(exist_ok=True)
    row = {"environment": environment(packages), **figures}
    with (RESULTS / f"{script}.jsonl").open("a") as lines:
        lines.write(
            json.dumps(row, default=lambda v: asdict(v) if isinstance(v, Spread | ProcessCost) else str(v))
            + "\n"
        )
