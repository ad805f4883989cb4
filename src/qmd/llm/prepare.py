"""Prepare a model once: fuse, quantise, check the vectors, keep the fastest form that passes, cache it.

A prepared graph lives in the user's cache folder under the digest of its source file, this processor and
the version of ONNX
Runtime. Its vectors were compared with the source's on real texts, so both share one fingerprint
(docs/models.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qmd.errors import ModelError
from qmd.llm.bert_graph import Products, measure_ranges, read_bert, write_bert
from qmd.llm.files import ModelFiles, cache_root, write_atomically
from qmd.llm.session import open_session

if TYPE_CHECKING:
    import onnxruntime

    from qmd.llm.embedder import OnnxEmbedder
    from qmd.llm.tokens import TextTokenizer

FORMAT_VERSION = 5
MIN_COSINE = {"float": 0.999, "signed": 0.99, "mixed": 0.99}
"""Least mean cosine to the source's vectors; the worst single text may lie this far below again."""
CANDIDATES: tuple[Products, ...] = ("signed", "mixed", "float")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was measured when a graph was prepared. Speeds in tokens per second on the calibration texts.

    For a cross-encoder the agreement is 1 - difference of probability in place of cosines.
    """

    format_version: int
    source: str
    products: str
    sha256: str
    mean_cosine: float
    min_cosine: float
    tokens_per_s: float
    source_tokens_per_s: float


def prepared_path(files: ModelFiles) -> Path:
    return cache_root() / "prepared" / files.sha256[:24] / f"{machine_name()}-{files.card.pooling}.onnx"


def machine_name() -> str:
    """This processor with this ONNX Runtime: what a measured speed holds for."""
    import onnxruntime

    return f"{platform.machine()}-{_processor()}-ort{onnxruntime.__version__}"


def load_prepared(files: ModelFiles) -> tuple[bytes, Prepared] | None:
    """The cached graph with its record; None when there is none. A damaged cache is removed and counts as
    none."""
    path = prepared_path(files)
    record_path = path.with_suffix(".json")
    try:
        record = Prepared(**json.loads(record_path.read_text()))
        graph = path.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        graph, record = b"", None
    if record is not None and record.format_version == FORMAT_VERSION and record.source == files.sha256:
        if not record.sha256:
            return b"", record
        if hashlib.sha256(graph).hexdigest() == record.sha256:
            return graph, record
    forget_prepared(files)
    return None


def forget_prepared(files: ModelFiles) -> None:
    for path in (prepared_path(files).with_suffix(".json"), prepared_path(files)):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def prepare_model(files: ModelFiles, source: OnnxEmbedder, tokenizer: TextTokenizer) -> Prepared | None:
    """Make, check and cache the fastest form of `files`; None when the graph is of no known architecture, or its last
    token is read (the rewritten graphs pool by mean or first token).

    Writes the graph, then its record, each to a temporary file first: a crash leaves the source in use.
    When no form
    passes, a record without a graph says so, and the source stays in use.
    """
    if files.card.pooling == "last_token":
        return None
    weights = read_bert(files.graph, heads=files.heads, first_position=files.first_position)
    if weights is None or weights.classifies:
        return None
    from qmd.llm.embedder import OnnxEmbedder

    texts = calibration_texts()
    tokens = sum(min(n, files.card.max_tokens) for n in tokenizer.counts(texts))
    start = time.perf_counter()
    wanted = source.embed_documents(texts)
    source_s = time.perf_counter() - start
    rows = [next(tokenizer.windows(ids, files.card.max_tokens)) for ids in tokenizer.content_ids(texts)]
    ranges = measure_ranges(weights, rows, head=files.card.pooling)
    seconds: dict[Products | None, float] = {None: source_s}
    graphs: dict[Products, bytes] = {}
    cosines: dict[Products, np.ndarray] = {}
    for candidate in CANDIDATES:
        try:
            graph = write_bert(weights, products=candidate, pooling=files.card.pooling, ranges=ranges)
            session = open_session(graph, threads=source.session_threads)
            runner = OnnxEmbedder(files, partial(_same, session), tokenizer, threads=source.threads)
            cosine = (runner.embed_documents(texts) * wanted).sum(axis=1)
        except (KeyError, ValueError, ModelError):
            continue
        least = MIN_COSINE[candidate]
        if cosine.mean() >= least and cosine.min() >= 2 * least - 1:
            graphs[candidate], cosines[candidate] = graph, cosine
            seconds[candidate] = min(_seconds(runner, texts) for _ in range(2))
    best = min(seconds, key=lambda products: seconds[products])
    graph = b"" if best is None else graphs[best]
    record = Prepared(
        FORMAT_VERSION,
        files.sha256,
        best or "source",
        hashlib.sha256(graph).hexdigest() if graph else "",
        1.0 if best is None else float(cosines[best].mean()),
        1.0 if best is None else float(cosines[best].min()),
        tokens / seconds[best],
        tokens / seconds[None],
    )
    keep_prepared(files, graph, record)
    source.adopt(open_session(graph, threads=source.session_threads) if graph else None, best or "")
    return record


def _seconds(runner: OnnxEmbedder, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    runner.embed_documents(texts)
    return time.perf_counter() - start


def keep_prepared(files: ModelFiles, graph: bytes, record: Prepared) -> None:
    """Write the graph, then its record. No disk or no right to write: this process still uses what it made."""
    with contextlib.suppress(OSError):
        path = prepared_path(files)
        write_atomically(path, graph)
        write_atomically(path.with_suffix(".json"), json.dumps(asdict(record)).encode())


def _same(session: onnxruntime.InferenceSession) -> onnxruntime.InferenceSession:
    return session


def calibration_texts() -> Sequence[str]:
    """Real prose and code that every Python carries, of 5 to 120 tokens, and a few lines in other scripts."""
    import argparse
    import collections
    import decimal
    import logging
    import pathlib
    import random
    import subprocess
    import tarfile

    modules = (argparse, collections, decimal, logging, pathlib, random, subprocess, tarfile)
    texts = [
        "如何设置文件权限，并在删除之前备份数据？",
        "ファイルの権限を変更する方法と、その注意点について。",
        "Wie ändere ich die Zugriffsrechte einer Datei?",
        "人工智能是计算机科学的一个分支，它企图了解智能的实质，并生产出一种新的能以人类智能相似的方式做出反应的智能机器。",
        "東京は日本の首都であり、世界最大級の都市圏を形成している。明治維新の後に江戸から改称された。",
        "한국어 문장을 검색할 때는 조사와 어미를 함께 고려해야 합니다.",
        "one",
        "def area(r):\n    return 3.14159 * r ** 2",
    ]
    for module in modules:
        for name in sorted(vars(module)):
            doc = getattr(vars(module)[name], "__doc__", None)
            if isinstance(doc, str) and 40 <= len(doc) <= 1200 and callable(vars(module)[name]):
                texts.append(" ".join(doc.split())[:320])
    unique = list(dict.fromkeys(texts))
    return unique[:4] + unique[4 :: max(1, len(unique) // 16)][:16]


def _processor() -> str:
    """A short digest of what decides speed: the processor's name and its instruction sets."""
    described = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        described += "".join(line for line in lines[:40] if line.startswith(("model name", "flags")))
    return hashlib.sha256(described.encode()).hexdigest()[:10]
