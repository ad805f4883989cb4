"""Links that open a document where it lives: `obsidian://` for what lies in a vault."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePath
from urllib.parse import quote


def find_vault(root: str | Path) -> Path | None:
    """The Obsidian vault that a collection's root is or lies in: the nearest folder with `.obsidian/` in it."""
    folder = Path(root)
    return next((p for p in (folder, *folder.parents) if (p / ".obsidian").is_dir()), None)


def obsidian_link(vault: Path, document: PurePath) -> str | None:
    """`obsidian://open?vault=...&file=...` for a document of a vault; None for one outside of it."""
    try:
        inside = document.relative_to(vault).as_posix()
    except ValueError:
        return None
    if ".." in inside.split("/"):
        return None
    file = inside.removesuffix(".md")
    return f"obsidian://open?vault={quote(os.fsencode(vault.name), safe='')}&file={quote(os.fsencode(file), safe='')}"


def linker(roots: Mapping[str, str], collections: Collection[str]) -> Callable[[str, str], str | None]:
    """(collection, path) -> the link that opens it in its vault, None where there is none. `roots`: name -> folder."""
    vaults = {name: find_vault(root) for name, root in roots.items() if name in collections}

    def link(collection: str, path: str) -> str | None:
        vault = vaults.get(collection)
        return None if vault is None else obsidian_link(vault, Path(roots[collection]) / path)

    return link
