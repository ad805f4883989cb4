"""Read single files again while a search waits: `reread` for hits whose file changed since it was indexed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qmd.errors import QmdError
from qmd.types import Hit

if TYPE_CHECKING:
    from qmd.searches import Searches

MOST_EMBEDDED = 256
"""Passages without a vector that are embedded on the way; more wait for `qmd embed`."""


def read_again(index: Searches, hits: Iterable[Hit]) -> tuple[str, ...]:
    """Bring the stale files among `hits` up to date, vectors included. Returns what could not be done."""
    from qmd.ingest.run import update_files

    stale: dict[str, list[str]] = {}
    for hit in hits:
        if hit.stale is not None:
            stale.setdefault(hit.collection, []).append(hit.path)
    notes: list[str] = []
    for collection, paths in stale.items():
        try:
            index.stay_inside(Path(index.store.collection(collection).root))
            report = update_files(index.store, collection, dict.fromkeys(paths), index.config)
        except (QmdError, OSError) as error:
            notes.append(f"reread: {error}")
            continue
        notes += [f"reread: {left.path}: {left.reason}" for left in (*report.errors, *report.skipped)]
    models = [model for model in index.store.vectors.models() if model.count]
    if models:
        done, total = index.store.vectors.count(models[0].fingerprint)
        if 0 < total - done <= MOST_EMBEDDED:
            from qmd.ingest.embed import embed

            try:
                embed(index.store, index.embedder, None, model_changed=False)
            except QmdError as error:
                notes.append(f"reread: {error}")
    return tuple(notes)
