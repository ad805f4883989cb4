"""Configuration: one frozen tree, read from YAML. Unknown keys are refused; every field has a default.

Where it is looked for, first found wins for each: the argument or flag, `QMD_CONFIG_DIR` / `QMD_DATA_DIR`,
a project-local `.qmd/` in the working directory or above it, `$XDG_CONFIG_HOME/qmd` and `$XDG_DATA_HOME/qmd`.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from qmd.errors import ConfigError

CONFIG_NAME = "config.yaml"
AtLeast1 = Annotated[int, msgspec.Meta(ge=1)]
Amount = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the configuration tree."""


class Memory(Section, frozen=True):
    """searches: keep which hit of a search was opened, beside the index, for `qmd train --from-index`."""

    backend: Literal["builtin"] = "builtin"
    citations: Literal["auto", "on", "off"] = "auto"
    searches: bool = False


class Models(Section, frozen=True):
    """Names of catalog rows, hub ids, local folders, or (embedding) URLs of an embedding server. `dim`: to how many
    numbers its vectors are cut; null: they are not. `image`: what looks at pictures; null: pictures are found by their
    words alone."""

    embedding: str = "all-MiniLM-L6-v2"
    dim: AtLeast1 | None = None
    reranker: str | None = None
    expansion: str | None = None
    generation: str | None = None
    image: str | None = "qmd-pictograms"


class Search(Section, frozen=True):
    """Defaults of every search; a flag or an argument of the same name overrides.

    budget_ms: time that all stages may take together; 0: no limit. rerank_weight: share of the reranker in the score of
    a reranked hit. recency: how much more a document of today counts than an old one, halved every `half_life_days`.
    boosts: collection -> factor of its scores.
    """

    limit: AtLeast1 = 10
    keyword_weight: Amount = 1.0
    vector_weight: Amount = 1.0
    rrf_k: Annotated[int, msgspec.Meta(ge=0)] = 60
    expand: bool = True
    rerank: bool = True
    candidate_limit: AtLeast1 = 20
    rerank_weight: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.7
    budget_ms: Amount = 3000.0
    recency: Amount = 0.0
    half_life_days: Annotated[float, msgspec.Meta(gt=0, lt=1e9)] = 30.0
    boosts: dict[str, float] = msgspec.field(default_factory=dict)
    vectors: Literal["exact", "ivf", "auto"] = "auto"


class Ingest(Section, frozen=True):
    """What is read. Sizes in bytes, chunk sizes in tokens of the embedding model. chunk_overlap: share of a
    chunk that the next one repeats. images: pictures too, where Pillow is
    installed."""

    max_file_bytes: int = 16 * 1024 * 1024
    chunk_tokens: Annotated[int, msgspec.Meta(ge=8)] = 240
    chunk_overlap: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.0
    follow_symlinks: bool = False
    images: bool = True


class Config(Section, frozen=True):
    memory: Memory = Memory()
    models: Models = Models()
    search: Search = Search()
    ingest: Ingest = Ingest()


@dataclass(frozen=True, slots=True)
class Places:
    """The folders in force. `project` is the project-local `.qmd/`, if there is one; `named`: the user named the
    configuration's folder, which is trusted whatever it is."""

    config_dir: Path
    data_dir: Path
    project: Path | None = None
    named: bool = False

    def database(self, index: str = "index") -> Path:
        if not index or any(c in index for c in "/\\\0") or index.startswith("."):
            raise ConfigError(f"index name {index!r} is not a plain name. Use letters, digits, '-' and '_'.")
        return self.data_dir / f"{index}.sqlite"


def find_places(
    config_dir: str | Path | None = None, data_dir: str | Path | None = None, *, cwd: Path | None = None
) -> Places:
    """Decide where configuration and data live. Creates nothing."""
    home = Path.home()
    here = cwd or Path.cwd()
    config = config_dir or os.environ.get("QMD_CONFIG_DIR")
    data = data_dir or os.environ.get("QMD_DATA_DIR")
    named = config is not None
    project = next((p / ".qmd" for p in (here, *here.parents) if p != home and (p / ".qmd").is_dir()), None)
    if config is None:
        config = project or Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "qmd"
    if data is None:
        data = project or Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "qmd"
    try:
        return Places(Path(config).expanduser(), Path(data).expanduser(), project, named)
    except RuntimeError as error:
        raise ConfigError(f"{config} or {data} begins with a home folder that there is not.") from error


def load_config(path: Path) -> Config:
    """Read one YAML file; a missing or empty file gives the defaults.

    Raises ConfigError, naming the file, the key and the nearest known key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    import yaml

    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return parse_config({} if tree is None else tree, source=str(path))


def parse_config(tree: object, *, source: str = "configuration") -> Config:
    """Check a plain mapping against the tree of sections."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected a mapping at the top, found {type(tree).__name__}.")
    _refuse_unknown(tree, Config, source, "")
    memory = tree.get("memory")
    if isinstance(memory, dict) and isinstance(memory.get("citations"), bool):
        # YAML reads a bare on or off as a truth value.
        tree = {**tree, "memory": {**memory, "citations": "on" if memory["citations"] else "off"}}
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error


def _refuse_unknown(tree: dict[Any, Any], section: type[Section], source: str, prefix: str) -> None:
    fields = {f.name: f.type for f in msgspec.structs.fields(section)}
    for key, value in tree.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" Did you mean {prefix + near[0]!r}?" if near else f" Known here: {', '.join(fields)}."
            raise ConfigError(f"{source}: unknown key {prefix + str(key)!r}.{hint}")
        kind = fields[key]
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, Section):
            _refuse_unknown(value, kind, source, f"{prefix}{key}.")


def set_model(path: Path, key: str, value: str | int | None) -> None:
    """Write `models.KEY: VALUE` into a configuration file, leaving every other line and comment as it is.

    Raises ConfigError, and changes nothing, where the file cannot be read or would not say so afterwards.
    """
    import json

    before = load_config(path)
    text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    line = f"  {key}: {json.dumps(value, ensure_ascii=False)}"
    lines = text.splitlines()
    start = next((i for i, row in enumerate(lines) if re.match(r"models\s*:\s*(#.*)?$", row)), None)
    if start is None and any(re.match(r"['\"]?models\b", row) for row in lines):
        raise ConfigError(f"{path} writes `models` in another style. Set `models.{key}: {value}` by hand.")
    if start is None:
        lines += ["models:", line]
    else:
        end = next((i for i in range(start + 1, len(lines)) if re.match(r"[^\s#]", lines[i])), len(lines))
        at = next((i for i in range(start + 1, end) if re.match(rf"\s+{key}\s*:", lines[i])), None)
        inside = [row for row in lines[start + 1 : end] if row.strip() and not row.lstrip().startswith("#")]
        indent = inside[0][: len(inside[0]) - len(inside[0].lstrip())] if inside else "  "
        if at is None:
            lines.insert(start + 1, indent + line.strip())
        else:
            lines[at] = indent + line.strip()
    written = "\n".join(lines) + "\n"
    import yaml

    try:
        said = parse_config(yaml.safe_load(written), source=str(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} cannot be changed safely ({error}). Set models.{key} by hand.") from error
    models = msgspec.structs.replace(before.models, **{key: value})
    if said != msgspec.structs.replace(before, models=models):
        raise ConfigError(f"{path} cannot be changed safely. Set `models.{key}: {value}` by hand.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()
    temporary = path.with_suffix(".part")
    temporary.write_text(written, encoding="utf-8")
    temporary.replace(path)
