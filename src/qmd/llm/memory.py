"""Memory as the operating system and the GPU's driver count it: ONNX Runtime's own figures miss what it holds back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as `nvidia-smi` sees it. `own_bytes` is what this process holds there, None where it does not say."""

    name: str
    total_bytes: int
    used_bytes: int
    own_bytes: int | None = None


def process_bytes() -> int | None:
    """Resident memory of this process; None where the system does not tell."""
    return _status_field("VmRSS")


def peak_bytes() -> int | None:
    """The most resident memory this process has had."""
    found = _status_field("VmHWM")
    if found is not None or sys.platform == "win32":
        return found
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine_bytes() -> tuple[int, int] | None:
    """(total, available to new programs) of this machine; None where the system does not tell."""
    fields: dict[str, int] = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) * 1024
        return fields["MemTotal"], fields["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return None


def gpus(*, timeout_s: float = 5.0) -> tuple[Gpu, ...]:
    """GPUs by `nvidia-smi`; none where there is no such program or it does not answer."""
    rows = _ask_smi("--query-gpu=uuid,name,memory.total,memory.used", timeout_s)
    if not rows:
        return ()
    own = {
        row[0]: int(row[2]) * MIB
        for row in _ask_smi("--query-compute-apps=gpu_uuid,pid,used_memory", timeout_s)
        if len(row) == 3 and row[1] == str(os.getpid()) and row[2].isdigit()
    }
    return tuple(
        Gpu(name, int(total) * MIB, int(used) * MIB, own.get(uuid))
        for uuid, name, total, used in (row for row in rows if len(row) == 4)
        if total.isdigit() and used.isdigit()
    )


def _ask_smi(query: str, timeout_s: float) -> list[list[str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _status_field(name: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
