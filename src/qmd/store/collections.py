"""Collections (named folders) and contexts (texts attached to them or to a path inside)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qmd.errors import NotFound, UsageError
from qmd.store.connect import Connection
from qmd.store.documents import DocumentWriter
from qmd.store.schema import NEW_GENERATION
from qmd.types import Collection

EVERYWHERE = "/"
"""The collection name of a context that holds for all collections."""
_NOTES = ("chunks", "captions")
"""Settings that an update keeps of a collection, each as `setting:collection`."""


class Collections:
    def __init__(self, db: Connection) -> None:
        self._db = db

    def included(self) -> dict[str, bool]:
        """name -> whether searches that name no collection look into it. Counts nothing, unlike `list`."""
        return {
            name: bool(include) for name, include in self._db.all("SELECT name, include FROM collections")
        }

    def roots(self) -> dict[str, str]:
        """name -> folder. Counts nothing, unlike `list`."""
        return {
            name: str(root) for name, root in self._db.all("SELECT name, root FROM collections ORDER BY name")
        }

    def set_patterns(self, name: str, patterns: Sequence[str], ignore: Sequence[str]) -> None:
        """The globs that `update` goes by from now on. Raises UsageError."""
        with self._db.transaction():
            self._db.run(
                "UPDATE collections SET patterns = ?, ignore = ? WHERE id = ?",
                (json.dumps(list(patterns)), json.dumps(list(ignore)), self._id(name)),
            )

    def get(self, name: str) -> Collection:
        """Raises NotFound when there is none of this name."""
        for collection in self.list():
            if collection.name == name:
                return collection
        known = ", ".join(c.name for c in self.list()) or "none yet"
        raise NotFound(f"there is no collection {name!r}. Known: {known}.")

    def add(self, collection: Collection) -> None:
        """Raises UsageError when the name is taken or not usable in `qmd://name/path`."""
        name = collection.name
        _check_name(name)
        with self._db.transaction():
            if self._db.one("SELECT 1 FROM collections WHERE name = ?", (name,)):
                raise UsageError(f"there is a collection {name!r} already. Choose another with `--name`.")
            self._db.run(
                "INSERT INTO collections (name, root, patterns, ignore, include) VALUES (?, ?, ?, ?, ?)",
                (
                    name,
                    collection.root,
                    json.dumps(list(collection.patterns)),
                    json.dumps(list(collection.ignore)),
                    int(collection.include),
                ),
            )

    def remove(self, name: str) -> None:
        """With all its documents and contexts. The files on disk are not touched."""
        with self._db.transaction():
            collection_id = self._id(name)
            ids = self._db.all("SELECT id FROM documents WHERE collection_id = ?", (collection_id,))
            DocumentWriter(self._db).delete_documents(i for (i,) in ids)
            self._db.run("DELETE FROM skipped WHERE collection_id = ?", (collection_id,))
            self._db.run("DELETE FROM contexts WHERE collection = ?", (name,))
            self._db.many("DELETE FROM meta WHERE key = ?", [(f"{note}:{name}",) for note in _NOTES])
            self._db.run("DELETE FROM collections WHERE id = ?", (collection_id,))
            self._db.run(NEW_GENERATION)

    def rename(self, old: str, new: str) -> None:
        with self._db.transaction():
            collection_id = self._id(old)
            _check_name(new)
            if self._db.one("SELECT 1 FROM collections WHERE name = ?", (new,)):
                raise UsageError(f"there is a collection {new!r} already.")
            self._db.run("UPDATE collections SET name = ? WHERE id = ?", (new, collection_id))
            self._db.run("UPDATE contexts SET collection = ? WHERE collection = ?", (new, old))
            self._db.many(
                "UPDATE OR REPLACE meta SET key = ? WHERE key = ?",
                [(f"{note}:{new}", f"{note}:{old}") for note in _NOTES],
            )

    def set_include(self, name: str, include: bool) -> None:
        with self._db.transaction():
            self._db.run("UPDATE collections SET include = ? WHERE id = ?", (int(include), self._id(name)))

    def _id(self, name: str) -> int:
        found = self._db.value("SELECT id FROM collections WHERE name = ?", (name,))
        if found is None:
            self.get(name)  # raises with the known names
        return int(found)

    def contexts(self) -> list[tuple[str, str, str]]:
        """(collection, or "/" for all; path prefix, "" for all; text)."""
        return [
            (r[0], r[1], r[2])
            for r in self._db.all("SELECT collection, path, text FROM contexts ORDER BY 1, 2")
        ]

    def set_context(self, collection: str, path: str, text: str) -> None:
        with self._db.transaction():
            if collection != EVERYWHERE:
                self._id(collection)
            self._db.run(
                "INSERT OR REPLACE INTO contexts VALUES (?, ?, ?)", (collection, path.strip("/"), text)
            )

    def remove_context(self, collection: str, path: str) -> None:
        """Raises NotFound when there is none."""
        with self._db.transaction():
            if not self._db.run(
                "DELETE FROM contexts WHERE collection = ? AND path = ?", (collection, path.strip("/"))
            ):
                raise NotFound(
                    f"there is no context for {collection}/{path.strip('/')}. Run `qmd context list`."
                )

    def context_for(self, collection: str, path: str) -> str | None:
        """All contexts that hold for a path, outermost first, joined by blank lines."""
        rows = self._db.all(
            "SELECT collection, path, text FROM contexts WHERE collection IN (?, ?) ORDER BY length(path)",
            (EVERYWHERE, collection),
        )
        holding = [
            (r[0] != EVERYWHERE, r[2])
            for r in rows
            if not r[1] or path == r[1] or path.startswith(f"{r[1]}/")
        ]
        return "\n\n".join(text for _, text in sorted(holding, key=lambda h: h[0])) or None

    def list(self) -> list[Collection]:
        rows = self._db.all(
            """SELECT n.name, n.root, n.patterns, n.ignore, n.include,
                      (SELECT count(*) FROM documents d WHERE d.collection_id = n.id)
               FROM collections n ORDER BY n.name"""
        )
        return [
            Collection(r[0], r[1], tuple(json.loads(r[2])), tuple(json.loads(r[3])), bool(r[4]), r[5])
            for r in rows
        ]


def _check_name(name: str) -> None:
    if not name or name != name.strip() or any(c in name for c in "/\\\0\n?#") or name in (".", ".."):
        raise UsageError(f"{name!r} cannot name a collection. Use letters, digits, '-', '_' and '.'.")
