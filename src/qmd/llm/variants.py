"""Tell from the names of a repository's files which precisions of a model it holds. Reads no file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from qmd.types import ModelVariant

Precision = Literal["fp32", "fp16", "int8", "q4", "q4f16"]
_GRAPH = re.compile(
    r"^(?:(?P<folder>.+)/)?(?P<stem>model|decoder_model_merged|decoder_model)(?P<suffix>[\w.-]*)\.onnx$"
)
_SUFFIXES: tuple[tuple[str, Precision], ...] = (
    ("", "fp32"),
    ("_fp16", "fp16"),
    ("_quantized", "int8"),
    ("_int8", "int8"),
    ("_uint8", "int8"),
    ("_qint8_avx512_vnni", "int8"),
    ("_quint8_avx2", "int8"),
    ("_q4", "q4"),
    ("_q4f16", "q4f16"),
    ("_optimized", "fp32"),
)
_FOLDERS = ("onnx", None)


def find_variants(names: Sequence[str], repo: str = "") -> tuple[ModelVariant, ...]:
    """One variant a precision, the commonest name first: `onnx/model_quantized.onnx` before `model_int8.onnx`.

    External weights (`model.onnx_data`, `model.onnx.data`, ...) belong to the graph whose name they begin with. A lone
    `model.onnx` in a repository named after int8 is taken as int8.
    """
    found: dict[Precision, tuple[int, str]] = {}
    for name in names:
        match = _GRAPH.match(name)
        if match is None or match["folder"] not in _FOLDERS:
            continue
        for rank, (suffix, kind) in enumerate(_SUFFIXES):
            if match["suffix"] == suffix:
                rank += 100 * (_FOLDERS.index(match["folder"]) + 2 * (match["stem"] == "decoder_model"))
                precision: Precision = (
                    "int8" if suffix == "" and re.search(r"int8|quantized", repo, re.I) else kind
                )
                if precision not in found or rank < found[precision][0]:
                    found[precision] = (rank, name)
    return tuple(
        ModelVariant(precision, with_weights(graph, names)) for precision, (_, graph) in found.items()
    )


def with_weights(graph: str, names: Sequence[str]) -> tuple[str, ...]:
    """A graph's name, then those of the files that hold its weights, if it does not hold them itself."""
    return (graph, *sorted(n for n in names if n != graph and re.match(re.escape(graph) + r"[._]", n)))
