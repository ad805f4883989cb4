"""Choose how a GGUF file runs on this machine: llama.cpp, or ONNX Runtime after it was rewritten. Measured once.

What counts is an answer from sources: a prompt of some 300 tokens read, some 30 written. Only ways that keep the file's
words compete: llama.cpp and int8 (logits of SmolLM2: cosine .9996 to fp32). Four bits are rounded a second time when a
file is rewritten (cosine .98): smaller and faster, and taken only when asked for.

The rewritten graphs and the measurement lie under `~/.cache/qmd/prepared`, by the digest of the file.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from qmd.errors import ModelError
from qmd.llm.catalog import CATALOG
from qmd.llm.files import ModelFiles, cache_root, file_sha256, write_atomically
from qmd.llm.open import CARD_NAME, read_card
from qmd.types import ModelCard, ModelVariant

if TYPE_CHECKING:
    from qmd.llm.causal_graph import Precision
    from qmd.llm.protocols import ChatGenerator

Way = Literal["llama.cpp", "q4", "int8", "fp32"]
FORMAT_VERSION = 2
MEASURED_TOKENS = 32
_SENTENCE = "The baker of house {n} takes rye flour, water, salt and a spoon of starter, and waits until the morning. "
_PROMPT_SENTENCES = 11


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds for an answer, by way. `chosen` is the fastest."""

    format_version: int
    chosen: Way
    answer_s: dict[str, float]


def write_folder(gguf: Path, folder: Path, precision: Precision) -> Path:
    """Rewrite a GGUF file as an ONNX folder: `model.onnx`, `tokenizer.json`, `config.json`, `card.json`.

    precision: fp32, int8, or q4 (4-bit blocks, the embedding and head in 8). Returns the graph's path. Raises
    ModelError for an architecture that is not known, MissingExtra without the GGUF reader.
    """
    from qmd.llm.causal_graph import write_causal
    from qmd.llm.gguf_file import read_gguf, write_config, write_tokenizer

    model = read_gguf(gguf)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(model, folder / "tokenizer.json")
    write_config(model, folder / "config.json")
    write_atomically(folder / "model.onnx", write_causal(model.shape, model.weights, precision=precision))
    card = replace(
        _card(gguf, model.template),
        max_tokens=model.shape.positions,
        variants=(ModelVariant(precision, ("model.onnx",), file_sha256(folder / "model.onnx")),),
        package="",
    )
    write_atomically(folder / "card.json", json.dumps(asdict(card), indent=1).encode())
    return folder / "model.onnx"


def open_gguf(
    path: Path, *, threads: int | None = None, way: Way | None = None, card: ModelCard | None = None
) -> ChatGenerator:
    """Open a GGUF file in the given way, or in the fastest of this machine."""
    found = file_sha256(path)
    if way is None:
        way = _choose(path, found, threads)
    return _open(path, found, way, threads, card)


def _choose(path: Path, sha256: str, threads: int | None) -> Way:
    ways: list[Way] = ["llama.cpp"] if find_spec("xllamacpp") else []
    if find_spec("gguf") and _rewritable(path):
        ways += ["int8"]
    if len(ways) == 1:
        return ways[0]
    if not ways:
        return "llama.cpp"  # which then says what to install
    record = _record_path(sha256, ways)
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = Measured(**json.loads(record.read_text()))
        if kept.format_version == FORMAT_VERSION and kept.chosen in ways:
            return kept.chosen
    times: dict[str, float] = {}
    for way in ways:
        with contextlib.suppress(ModelError):
            times[way] = answer_time(_open(path, sha256, way, threads, None))
    if not times:
        return ways[0]
    chosen = cast("Way", min(times, key=lambda way: times[way]))
    with contextlib.suppress(OSError):
        write_atomically(record, json.dumps(asdict(Measured(FORMAT_VERSION, chosen, times))).encode())
    return chosen


def answer_time(generator: ChatGenerator, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds to read a prompt of some 300 tokens and write MEASURED_TOKENS pieces, the best of two runs.

    A run that ends earlier is counted in proportion; the prompts of the two share no beginning.
    """
    best = float("inf")
    for run in range(2):
        houses = range(100 * run + 10, 100 * run + 10 + _PROMPT_SENTENCES)
        prompt = "".join(_SENTENCE.format(n=n) for n in houses) + "Tell it again, in more words."
        begin = clock()
        marks = [clock() for _ in generator.generate(prompt, max_new_tokens=MEASURED_TOKENS)]
        if len(marks) > 1:
            writing = (marks[-1] - marks[0]) / (len(marks) - 1)
            best = min(best, marks[0] - begin + writing * (MEASURED_TOKENS - 1))
    return best


def read_measured(path: Path) -> Measured | None:
    """What was measured for a GGUF file on this machine, if it was."""
    for record in sorted((cache_root() / "prepared" / file_sha256(path)[:24]).glob("generation-*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Measured(**json.loads(record.read_text()))
    return None


def _open(path: Path, sha256: str, way: Way, threads: int | None, card: ModelCard | None) -> ChatGenerator:
    if way == "llama.cpp":
        from qmd.llm.gguf import GgufGenerator

        return GgufGenerator(path, threads=threads, card=card)
    from qmd.llm.generator import OnnxGenerator

    files = rewritten(path, way, card=card, sha256=sha256)
    if not files.card.template:
        raise ModelError(
            f"{path.name} puts conversations into a form that llama.cpp alone can follow. Leave the precision out, and "
            "install 'qmd-python[gguf]'."
        )
    return OnnxGenerator.open(files, threads=threads)


def rewritten(
    path: Path, precision: Precision, *, card: ModelCard | None = None, sha256: str | None = None
) -> ModelFiles:
    """The ONNX form of a GGUF file in the cache; made where it is missing or damaged."""
    folder = cache_root() / "prepared" / (sha256 or file_sha256(path))[:24] / f"{precision}-{GRAPH_VERSION}"
    graph = folder / "model.onnx"
    pinned = _whole(folder)
    if pinned is None:
        try:
            write_folder(path, folder, precision)
            pinned = {name: file_sha256(folder / name) for name in MADE}
            write_atomically(folder / DIGESTS, json.dumps(pinned).encode())
        except OSError as error:
            raise ModelError(
                f"cannot write {folder} ({error.strerror}). Free disk space, or set QMD_CACHE_DIR to another folder."
            ) from error
    made = read_card(folder / CARD_NAME)
    card = card or made
    digest = pinned["model.onnx"]
    card = replace(
        card,
        max_tokens=min(card.max_tokens, made.max_tokens),
        variants=(ModelVariant(precision, ("model.onnx",), digest),),
    )
    return ModelFiles(card, card.variants[0], graph, folder / "tokenizer.json", digest)


GRAPH_VERSION = 3
"""Raise when another folder is written for the same file."""
MADE = ("model.onnx", "tokenizer.json", "config.json", CARD_NAME)
DIGESTS = "digests.json"


def _whole(folder: Path) -> dict[str, str] | None:
    """Digests of the files of a rewritten model; None where it is not there, or not as it was written."""
    try:
        pinned: dict[str, str] = json.loads((folder / DIGESTS).read_text())
        return pinned if all(file_sha256(folder / name) == pinned[name] for name in MADE) else None
    except (OSError, ValueError, LookupError, TypeError, ModelError):
        return None


def _rewritable(path: Path) -> bool:
    packaged = (variant for card in CATALOG.values() if card.package for variant in card.variants)
    if any(path.name in variant.files for variant in packaged):
        return True
    from qmd.llm.gguf_file import UnsafeGguf, read_gguf

    try:
        return bool(read_gguf(path).template)
    except UnsafeGguf:
        raise
    except ModelError:
        return False


def _card(path: Path, template: str) -> ModelCard:
    """The catalog's row for this file name, or one made for the file."""
    known = next((c for c in CATALOG.values() if path.name in {f for v in c.variants for f in v.files}), None)
    return known or ModelCard(path.stem, "generation", max_tokens=4096, form="causal", template=template)


def _record_path(sha256: str, ways: list[Way]) -> Path:
    from qmd.llm.prepare import machine_name

    return cache_root() / "prepared" / sha256[:24] / f"generation-{machine_name()}-{'+'.join(ways)}.json"
