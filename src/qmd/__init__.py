"""QMD, Query Multimodal Documents: a local-first retrieval engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qmd.index import Index as Index
    from qmd.index import open as open
    from qmd.types import Filter as Filter
    from qmd.types import Hit as Hit
    from qmd.types import Hits as Hits

__all__ = ["Filter", "Hit", "Hits", "Index", "QmdError", "__version__", "open"]

_HOMES = {
    "Filter": "qmd.types",
    "Hit": "qmd.types",
    "Hits": "qmd.types",
    "Index": "qmd.index",
    "QmdError": "qmd.errors",
    "open": "qmd.index",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import qmd` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qmd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
