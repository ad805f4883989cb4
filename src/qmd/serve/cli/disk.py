"""Where documents lie on disk: paths in place of `qmd://`, and links that a terminal opens."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from qmd.index import Index
    from qmd.reports import DocumentText
    from qmd.serve.cli.remote import RemoteIndex
    from qmd.serve.cli.session import Session
    from qmd.types import Hit, Hits


def roots_of(index: Index | RemoteIndex) -> dict[str, Path]:
    """The folder of each collection, by its name."""
    return {c.name: Path(c.root) for c in index.list_collections()}


def paths_on_disk(index: Index | RemoteIndex, found: Iterable[Hit | DocumentText]) -> dict[str, Path]:
    """`file` -> the path on disk, for those that are still there."""
    roots = roots_of(index)
    paths = {f.file: roots[f.collection] / f.path for f in found if f.collection in roots}
    return {file: path for file, path in paths.items() if path.is_file()}


def shown_places(
    session: Session, index: Index | RemoteIndex, hits: Hits, *, full_path: bool = False
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """`file` -> its path where `full_path` is asked for, and `file` -> what a click opens where links are wanted."""
    from qmd.serve.cli.screen import likely_links, say

    linked = session.links if session.links is not None else likely_links(sys.stdout)
    linked = linked and session.format == "cli"
    if not (full_path or linked) or not hits:
        return {}, {}
    paths = paths_on_disk(index, hits)
    gone = sum(h.file not in paths for h in hits)
    if full_path and gone:
        say(
            f"Note: {gone} of {len(hits)} files are gone from disk and keep their qmd:// name. "
            "Run `qmd update`."
        )
    names = {file: readable(path) for file, path in paths.items()} if full_path else {}
    if not linked:
        return names, {}
    roots, collections = roots_of(index), {h.file: h.collection for h in hits}
    return names, {file: link_target(path, roots[collections[file]]) for file, path in paths.items()}


def readable(path: Path) -> str:
    """`./below/here.md` for what lies under the working directory, absolute otherwise."""
    try:
        return f".{os.sep}{path.resolve().relative_to(Path.cwd().resolve())}"
    except (ValueError, OSError):
        return str(path)


def link_target(path: PurePath, root: Path | None = None) -> str:
    """A URI with `{line}` in it: QMD_EDITOR_URI (`{path}`, `{line}`, `{col}`), VS Code's inside it, Obsidian's for a
    document of a vault (where `root`, the folder of the collection, is one or lies in one), else file://.
    """
    template = os.environ.get("QMD_EDITOR_URI")
    if not template and os.environ.get("TERM_PROGRAM") == "vscode":
        template = "vscode://file/{path}:{line}:{col}"
    place = quote(os.fsencode(path.as_posix()), safe="/:" if path.drive else "/")
    if not template and root is not None:
        from qmd.serve.vault import find_vault, obsidian_link

        vault = find_vault(root)
        opened = obsidian_link(vault, path) if vault is not None else None
        if opened is not None:
            return opened
    if not template:
        return path.as_uri() if path.drive else f"file://{socket.gethostname()}{place}"
    return template.replace("{path}", place).replace("{col}", "1").replace("{column}", "1")
