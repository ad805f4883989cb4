"""Values of the Python door as plain JSON data and back: what the daemon sends to the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def to_wire(value: Any) -> Any:
    """Frozen dataclasses become objects, sequences lists; strings stay as they are."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_wire(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_wire(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_wire(v) for v in value]
    if hasattr(value, "item"):
        return value.item()
    return str(value)
