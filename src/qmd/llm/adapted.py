"""An embedding model with a matrix behind it, taught on somebody's own material: v -> unit(v @ M).

Any embedder can be the base, also one behind a URL. Vectors that an index holds of the base become those of the
adapted model by one product, without reading a text again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from qmd.errors import ModelError
from qmd.llm.derived import Derived, unit_rows
from qmd.llm.files import local_path, write_atomically
from qmd.llm.protocols import Embedder, Vectors

ADAPTER = "adapter.json"
MATRIX = "adapter.npy"
FORMAT_VERSION = 1


class AdaptedEmbedder(Derived):
    """`base`, then a (d, d) matrix, then unit length."""

    def __init__(self, base: Embedder, matrix: Vectors, name: str) -> None:
        if matrix.shape != (base.dim, base.dim):
            raise ModelError(
                f"adapter {name} is {' x '.join(map(str, matrix.shape))}, {base.card.name} gives vectors of {base.dim}."
            )
        self._matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        digest = hashlib.sha256(self._matrix.tobytes()).hexdigest()
        card = replace(base.card, name=name, dims=())
        super().__init__(base, card=card, dim=base.dim, mark=f"+{digest[:16]}")

    @property
    def runs_on(self) -> str:
        return f"{super().runs_on}, adapted"

    def adapt(self, rows: Vectors) -> Vectors:
        return unit_rows(rows @ self._matrix)


def write_adapter(
    folder: Path,
    matrix: Vectors,
    *,
    base: str,
    base_fingerprint: str,
    trained: Mapping[str, object] | None = None,
) -> None:
    """Write matrix and description to `folder`, the description last."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / MATRIX).open("wb") as file:
        np.save(file, np.asarray(matrix, dtype=np.float32), allow_pickle=False)
    description = {
        "format_version": FORMAT_VERSION,
        "base": base,
        "base_fingerprint": base_fingerprint,
        "sha256": hashlib.sha256((folder / MATRIX).read_bytes()).hexdigest(),
        "trained": trained or {},
    }
    write_atomically(folder / ADAPTER, json.dumps(description, indent=1, ensure_ascii=False).encode())


def is_adapter(name: str) -> bool:
    return (local_path(name) / ADAPTER).is_file()


def read_adapter(folder: Path) -> tuple[dict[str, str], Vectors]:
    """(description, matrix). Raises ModelError when they are damaged or of a later version."""
    try:
        described = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        version, digest = described["format_version"], described["sha256"]
        data = (folder / MATRIX).read_bytes()
        if local_path(described["base"]).absolute() == folder.absolute():
            raise ValueError("it names itself as its base")
        if version == FORMAT_VERSION and hashlib.sha256(data).hexdigest() == digest:
            return described, np.load(folder / MATRIX, allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} holds no readable adapter: {error}. Train it again.") from error
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{folder} holds an adapter of format {version}, this version reads {FORMAT_VERSION}."
        )
    raise ModelError(f"{folder / MATRIX} is damaged or was changed. Train it again.")
