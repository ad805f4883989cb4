"""Read the configuration of the TypeScript original: its collections and the contexts attached to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qmd.errors import ConfigError, NotFound
from qmd.reports import Context
from qmd.types import Collection


@dataclass(frozen=True, slots=True)
class OriginalIndex:
    """What `index.yml` holds that has a place here. `left_out` names the keys that have none."""

    collections: tuple[Collection, ...]
    contexts: tuple[Context, ...]
    left_out: tuple[str, ...]


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
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict) or not isinstance(tree.get("collections") or {}, dict):
        raise ConfigError(f"{path}: expected `collections:` with a mapping of names.")
    contexts: list[Context] = []
    if tree.get("global_context"):
        contexts.append(Context("/", "", str(tree["global_context"])))
    collections: list[Collection] = []
    left_out: list[str] = [str(key) for key in tree if key not in ("global_context", "collections")]
    for name, row in (tree.get("collections") or {}).items():
        if not isinstance(row, Mapping) or not row.get("path"):
            raise ConfigError(f"{path}: collection {name!r} has no path.")
        collections.append(
            Collection(
                name=str(name),
                root=str(Path(str(row["path"])).expanduser().absolute()),
                patterns=_strings(row.get("pattern")),
                ignore=_strings(row.get("ignore")),
                include=bool(row.get("includeByDefault", True)),
            )
        )
        held = row.get("context") or {}
        held = {"/": held} if isinstance(held, str) else held
        contexts += [Context(str(name), str(prefix).strip("/"), str(text)) for prefix, text in held.items()]
        known = {"path", "pattern", "ignore", "includeByDefault", "context"}
        left_out += [f"collections.{name}.{key}" for key in row if key not in known]
    return OriginalIndex(tuple(collections), tuple(contexts), tuple(left_out))


def _strings(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(item) for item in value) if isinstance(value, list) else (str(value),)
