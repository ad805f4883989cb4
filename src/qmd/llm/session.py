"""Open an ONNX Runtime session. The one module of the encoder path that imports onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from qmd.errors import ModelError

if TYPE_CHECKING:
    import onnxruntime


SLOWER_FUSIONS = ("SkipLayerNormFusion", "BiasSkipLayerNormFusion", "BiasGeluFusion")
"""Fusions whose joint operators are slower on a processor than the parts they stand for (measured: 4.8 ms against 2.8,
and 9.2 against 6.0, for 4,000 tokens of MiniLM)."""


def default_threads() -> int:
    """Processors this process may use; `QMD_THREADS` overrides."""
    wanted = os.environ.get("QMD_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(
    graph: Path | bytes,
    *,
    providers: tuple[str, ...] = ("CPUExecutionProvider",),
    threads: int | None = None,
    spin: bool = False,
) -> onnxruntime.InferenceSession:
    """Load a graph. Raises ModelError when ONNX Runtime refuses it.

    `spin` keeps threads busy between operators: faster for many tiny operators on an idle machine,
    wasteful on a
    shared one.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.log_severity_level = 3
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            options,
            providers=list(providers),
            disabled_optimizers=list(SLOWER_FUSIONS) if providers == ("CPUExecutionProvider",) else None,
        )
    except Exception as error:  # onnxruntime's errors share no base class below Exception
        name = "graph" if isinstance(graph, bytes) else str(graph)
        raise ModelError(f"ONNX Runtime cannot load {name}: {str(error).splitlines()[0]}") from error
