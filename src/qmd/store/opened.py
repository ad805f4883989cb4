"""Searches whose hit was opened, kept where the user asks for it (`memory.searches`), for `qmd train --from-index`.

They lie in a file of their own beside the index that its owner alone can read. What was shown is kept for half an hour,
to be joined with what is opened; of what was opened, the question and the document's id stay, the newest `MOST_OPENED`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

MOST_SHOWN, MOST_OPENED = 20, 2000
SESSION_S = 1800.0
"""A document opened later than this after a search is not counted as its answer."""
HITS, CHARACTERS = 20, 400
"""Of a search: hits that can be opened, characters of a question. Longer ones are pasted texts, and are not kept."""
WAIT_S = 0.2


class OpenedSearches:
    """Joins what was shown with what was opened, over processes. A file that cannot be used is done without."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def showed(self, question: str, docids: Sequence[str]) -> None:
        """A search was answered with these documents."""
        question = " ".join(question.split())
        if not question or len(question) > CHARACTERS or not docids:
            return
        now = time.time()
        self._write(
            ("DELETE FROM shown WHERE question = ? OR at < ?", (question, now - SESSION_S)),
            ("INSERT INTO shown VALUES (?, ?, ?)", (now, question, json.dumps(docids[:HITS]))),
            (
                "DELETE FROM shown WHERE at <= (SELECT at FROM shown ORDER BY at DESC LIMIT 1 OFFSET ?)",
                (MOST_SHOWN,),
            ),
        )

    def opened(self, docid: str) -> None:
        """A document was opened; it answers the newest search that showed it, if there is one."""
        if not self.path.exists():
            return
        now = time.time()
        rows = self._read(
            "SELECT question, docids FROM shown WHERE at >= ? ORDER BY at DESC", (now - SESSION_S,)
        )
        question = next((str(q) for q, docids in rows if docid in json.loads(docids)), None)
        if question is not None:
            self._write(
                ("INSERT OR REPLACE INTO opened VALUES (?, ?, ?)", (question, docid, now)),
                (
                    "DELETE FROM opened WHERE at <= (SELECT at FROM opened ORDER BY at DESC LIMIT 1 OFFSET ?)",
                    (MOST_OPENED,),
                ),
            )

    def pairs(self) -> list[tuple[str, str]]:
        """(question, docid), oldest first."""
        rows = self._read("SELECT question, docid FROM opened ORDER BY at", ())
        return [(str(question), str(docid)) for question, docid in rows]

    def forget(self) -> int:
        """Delete the file; how many pairs it held."""
        count = len(self.pairs())
        self.path.unlink(missing_ok=True)
        return count

    def _read(self, sql: str, values: Sequence[object]) -> list[tuple[object, str]]:
        if not self.path.exists():
            return []
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT_S)) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.Error:
            return []

    def _write(self, *statements: tuple[str, tuple[object, ...]]) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self.path, timeout=WAIT_S)) as db, db:
                db.execute("PRAGMA secure_delete = ON")
                db.execute("CREATE TABLE IF NOT EXISTS shown (at REAL, question TEXT, docids TEXT)")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS opened (question TEXT, docid TEXT, at REAL, "
                    "PRIMARY KEY (question, docid))"
                )
                for sql, values in statements:
                    db.execute(sql, values)
        except (sqlite3.Error, OSError):
            return  # locked, full or damaged: a search is answered all the same
