"""The configuration in force, and how far it is trusted: a project's own may come from a stranger."""

from __future__ import annotations

import os
import re

from qmd.config import CONFIG_NAME, Config, Places, load_config
from qmd.errors import ConfigError


def load_config_of(places: Places) -> Config:
    """The configuration in force. Raises ConfigError."""
    config = load_config(places.config_dir / CONFIG_NAME)
    check_config_of(places, config)
    return config


def check_config_of(places: Places, config: Config) -> None:
    """A project's own configuration comes with the project, perhaps from a stranger: it may choose among models that
    are known or here already and set limits, and that is all. One that the user named is trusted.

    Raises ConfigError where this would be a project's own and says more.
    """
    path = places.config_dir / CONFIG_NAME
    if places.named or places.project is None or places.config_dir != places.project:
        return

    def refuse(key: str, why: str) -> ConfigError:
        return ConfigError(
            f"{path}: {key} {why}. Set it in ~/.config/qmd/config.yaml, or trust this file with "
            f"`--config-dir {places.project}`."
        )

    for role in ("embedding", "reranker", "expansion", "generation", "image"):
        name = getattr(config.models, role)
        if name is None:
            continue
        if _reaches(name):
            raise refuse(
                f"models.{role} is {name!r}",
                "and a project's own configuration names models by their names, no addresses and no files",
            )
        if _downloads(name):
            raise refuse(
                f"models.{role} is {name!r}",
                "which QMD does not know and would have to download for a project's own configuration",
            )
    if config.memory.searches:
        raise refuse("memory.searches", "would keep what you look for")
    if config.ingest.follow_symlinks:
        raise refuse("ingest.follow_symlinks", "would lead out of the project")


def _reaches(name: str) -> bool:
    """Whether a model's name is an address or a file: anything but a plain name, `owner/name` or, of GGUF files,
    `owner/name:QUANTISATION`."""
    parts = re.sub(r"(?<=[\w.-]):\w+$", "", name).split("/") if "/" in name else [name]
    plain = len(parts) <= 2 and all(p and p[0].isalnum() and not set(p) & set("\\:#?%~") for p in parts)
    return not plain or name.endswith(".gguf") or os.path.exists(name)


def _downloads(name: str) -> bool:
    """Whether a name means a model of a hub that is neither in the catalog nor was fetched by the user before."""
    if "/" not in name and "@" not in name:  # a plain name that is unknown opens nothing
        return False
    from qmd.llm.catalog import CATALOG
    from qmd.llm.hub import read_lock, split_revision
    from qmd.llm.hub_gguf import repository_of

    if name in CATALOG:
        return False
    return repository_of(name) not in {name for key in read_lock() for name in (key, split_revision(key)[0])}
