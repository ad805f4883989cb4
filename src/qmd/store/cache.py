"""What models answered before, in a file of its own beside the index: searching never writes into the index."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

MOST_ROWS = 200_000
"""Rows kept of each kind; the oldest tenth goes when there are more."""
WAIT_S = 0.2
CHECK_EVERY = 100


class AnswerCache:
    """Scores of (model, question, text) and texts of (kind, question). A file that cannot be used is done without."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None
        self._broken = False
        self._guard = threading.Lock()
        self._writes = 0

    def scores(self, model: str, question: str, texts: Sequence[str]) -> list[float | None]:
        """The score of each text where it was scored before."""
        keys = [_key(model, question, text) for text in texts]
        with self._guard:
            found: dict[bytes, float] = {}
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                marks = ", ".join("?" * len(some))
                found.update(self._all(f"SELECT key, score FROM scores WHERE key IN ({marks})", some))
        return [found.get(key) for key in keys]

    def put_scores(self, model: str, question: str, texts: Sequence[str], scores: Sequence[float]) -> None:
        rows = [(_key(model, question, t), float(s)) for t, s in zip(texts, scores, strict=True)]
        with self._guard:
            self._write("INSERT OR REPLACE INTO scores (key, score) VALUES (?, ?)", rows)

    def text(self, kind: str, question: str) -> str | None:
        with self._guard:
            rows = self._all("SELECT key, text FROM texts WHERE key = ?", [_key(kind, question)])
        return str(rows[0][1]) if rows else None

    def put_text(self, kind: str, question: str, text: str) -> None:
        with self._guard:
            self._write(
                "INSERT OR REPLACE INTO texts (key, text) VALUES (?, ?)", [(_key(kind, question), text)]
            )

    def close(self) -> None:
        with self._guard:
            if self._db is not None:
                self._db.close()
            self._db = None

    def _all(self, sql: str, values: Sequence[object]) -> list[tuple[bytes, float]]:
        db = self._open(create=False)
        if db is None:
            return []
        try:
            return db.execute(sql, values).fetchall()
        except sqlite3.Error:
            return []

    def _write(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        db = self._open(create=True)
        if db is None or not rows:
            return
        try:
            with db:
                db.executemany(sql, rows)
                self._writes += 1
                if self._writes % CHECK_EVERY == 1:
                    for table in ("scores", "texts"):
                        last = db.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0
                        db.execute(f"DELETE FROM {table} WHERE rowid <= ?", (last - MOST_ROWS,))
        except sqlite3.Error:
            self._give_up(db)

    def _open(self, *, create: bool) -> sqlite3.Connection | None:
        if self._db is not None or self._broken or (not create and not self.path.exists()):
            return self._db
        db: sqlite3.Connection | None = None
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            db = sqlite3.connect(self.path, timeout=WAIT_S, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            for table, column in (("scores", "score REAL"), ("texts", "text TEXT")):
                db.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} "
                    f"(id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, {column} NOT NULL)"
                )
        except (sqlite3.DatabaseError, OSError):
            self._give_up(db)
            return None
        self._db = db
        return db

    def _give_up(self, db: sqlite3.Connection | None) -> None:
        """Locked by another process, no room, or damaged: what is remembered is only remembered."""
        self._broken = True
        self._db = None
        if db is not None:
            db.close()


def _key(*parts: str) -> bytes:
    return blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=16).digest()
