"""Read the configuration of the TypeScript original: its collections and the contexts attached to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qmd.errors import ConfigError, NotFound
from qmd.reports import Context
from qmd.search.reference import on_disk
from qmd.types import Collection


@dataclass(frozen=True, slots=True)
class OriginalIndex:
    """What `index.yml` holds that has a place here."""

    collections: tuple[Collection, ...]
    contexts: tuple[Context, ...]


def read_original(path: Path) -> OriginalIndex:
    """Parse an `index.yml`. Raises NotFound, ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"there is no {path}. Give the place of the original's index.yml.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    import yaml

    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict) or not isinstance(tree.get("collections") or {}, dict):
        raise ConfigError(f"{path}: expected `collections:` with a mapping of names.")
    contexts: list[Context] = []
    if tree.get("global_context"):
        contexts.append(Context("/", "", str(tree["global_context"])))
    collections: list[Collection] = []
    for name, row in (tree.get("collections") or {}).items():
        if not isinstance(row, Mapping) or not row.get("path"):
            raise ConfigError(f"{path}: collection {name!r} has no path.")
        collections.append(
            Collection(
                name=str(name),
                root=str(on_disk(str(row["path"]))),
                patterns=_strings(row.get("pattern")),
                ignore=_strings(row.get("ignore")),
                include=bool(row.get("includeByDefault", True)),
            )
        )
        held = row.get("context") or {}
        held = {"/": held} if isinstance(held, str) else held
        if not isinstance(held, Mapping):
            raise ConfigError(
                f"{path}: collection {name!r} has a context that is neither a text nor a mapping."
            )
        contexts += [Context(str(name), str(prefix).strip("/"), str(text)) for prefix, text in held.items()]
    return OriginalIndex(tuple(collections), tuple(contexts))


def _strings(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(item) for item in value) if isinstance(value, list) else (str(value),)
