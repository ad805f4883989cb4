"""Keyword primitives over FTS5. The query language lives elsewhere; this takes FTS5 expressions and plain
words.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qmd.errors import UsageError
from qmd.store.chunks import Chunks
from qmd.store.cjk import has_cjk, query_terms
from qmd.store.connect import Connection
from qmd.store.filters import compile_filter
from qmd.store.schema import COLUMNS, TEXTS, TOKENIZER, WEIGHTS
from qmd.types import Filter

if TYPE_CHECKING:
    from qmd.store.common import CommonWords
    from qmd.store.postings import Kept, Postings

K1, B = 1.2, 0.75
NO_FILTER = Filter()


class Keyword:
    """Matches, counts and near spellings of one table of words, `TEXTS` or `PICTURES`.

    Scores are BM25 (k1 1.2, b 0.75) over weighted columns; higher is better.
    """

    def __init__(self, db: Connection, table: str = TEXTS) -> None:
        self._db = db
        self.table = table
        self._frequencies: tuple[int, dict[str, int]] = (-1, {})
        self._total = (-1, 0)
        self._stems: dict[str, list[str]] = {}
        self._local = threading.local()
        self._postings: Postings | None = None
        self._common: CommonWords | None = None
        self._asked: tuple[int, set[str]] = (-1, set())

    def match(
        self,
        expression: str,
        filter: Filter = NO_FILTER,
        limit: int = 20,
        *,
        weights: Sequence[float] = WEIGHTS,
    ) -> list[tuple[int, float]]:
        """(chunk id, score), best first; equal scores by id. The filter is part of the query.

        expression: FTS5 syntax over the columns title, headings, body, path; CJK text through
        `cjk.query_terms`.
        Raises UsageError when it is not a legal FTS5 expression.
        """
        rank = f"bm25({', '.join(str(float(w)) for w in weights)})"
        condition = compile_filter(filter)
        if condition is None:
            sql = (
                f"SELECT rowid, -rank FROM {self.table} WHERE {self.table} MATCH ? AND rank MATCH ? "
                "ORDER BY rank LIMIT ?"
            )
            values: tuple[object, ...] = (expression, rank, limit)
        else:
            sql = (
                f"SELECT k.rowid, -k.rank FROM {self.table} k CROSS JOIN chunks c ON c.id = k.rowid "
                f"WHERE {self.table} MATCH ? AND k.rank MATCH ? "
                f"AND c.document_id IN ({condition.documents}) ORDER BY k.rank LIMIT ?"
            )
            values = (expression, rank, *condition.parameters, limit)
        return [(row[0], row[1]) for row in self._query(sql, values)]

    def candidates(self, expression: str, filter: Filter = NO_FILTER, limit: int = 1 << 40) -> list[int]:
        """Ids of the chunks that match, in id order, without scores: cheaper than `match` by the whole
        ranking.
        """
        condition = compile_filter(filter)
        if condition is None:
            return [
                r[0]
                for r in self._query(
                    f"SELECT rowid FROM {self.table} WHERE {self.table} MATCH ? LIMIT ?", (expression, limit)
                )
            ]
        sql = (
            f"SELECT k.rowid FROM {self.table} k CROSS JOIN chunks c ON c.id = k.rowid WHERE {self.table} MATCH ? "
            f"AND c.document_id IN ({condition.documents}) LIMIT ?"
        )
        return [r[0] for r in self._query(sql, (expression, *condition.parameters, limit))]

    def score_among(
        self, expression: str, ids: Sequence[int], *, weights: Sequence[float] = WEIGHTS
    ) -> list[tuple[int, float]]:
        """(chunk id, score as `match` gives it) of those among `ids` that match; only they are ranked."""
        sql = (
            f"SELECT rowid, -bm25({self.table}, {', '.join(str(float(w)) for w in weights)}) FROM {self.table} "
            # The unary plus makes this a test on each match; else every id would be a search of its own.
            f"WHERE {self.table} MATCH ? AND +rowid IN (SELECT value FROM json_each(?)) ORDER BY 2 DESC, 1"
        )
        return [(row[0], float(row[1])) for row in self._query(sql, (expression, json.dumps(list(ids))))]

    def rank(
        self,
        expressions: Sequence[str],
        filter: Filter = NO_FILTER,
        limit: int = 20,
        *,
        every: bool = False,
        without: str | None = None,
    ) -> list[tuple[int, float]]:
        """What `match` gives for the expressions joined by OR (`every`: by AND), from postings kept in memory.

        An expression that is not kept is read first, 1.5 us a posting; kept ones cost some nanoseconds each.
        Scores equal those of `match` but for the last digits of a sum. `without`: an expression that must not match.
        """
        import numpy as np

        from qmd.store import postings

        with self._db.snapshot():
            taken = self._memory().take(dict.fromkeys(expressions), self._generation(), self._read)
            lists = [kept[:2] for kept in taken]
            ids, scores = (postings.meet if every else postings.add_up)(lists)
            allowed = Chunks(self._db).ids(filter)
            keep = None if allowed is None else np.isin(ids, allowed)
            if without is not None:
                passing = ~np.isin(ids, np.array(self.candidates(without), dtype=np.int64))
                keep = passing if keep is None else keep & passing
        if keep is not None:
            ids, scores = ids[keep], scores[keep]
        return postings.best(ids, scores, limit)

    def keeps(self, expressions: Sequence[str]) -> bool:
        """Whether the postings of all these expressions are in memory."""
        postings, generation = self._postings, self._generation()
        return postings is not None and all(postings.get(e, generation) is not None for e in expressions)

    def asked_before(self, expressions: Sequence[str]) -> bool:
        """Whether all of these were asked about since the index last changed; from now on they were."""
        generation, asked = self._generation(), self._asked
        if asked[0] != generation or len(asked[1]) > 10_000:
            self._asked = asked = (generation, set())
        known = asked[1].issuperset(expressions)
        asked[1].update(expressions)
        return known

    def kept(self, expression: str, *, read: bool = False) -> Kept | None:
        """Postings of an expression that are in memory; `read`: which are read where they are not there yet."""
        generation = self._generation()
        found = None if self._postings is None else self._postings.get(expression, generation)
        if found is None and read:
            (found,) = self._memory().take([expression], generation, self._read)
        return found

    def _memory(self) -> Postings:
        from qmd.store.postings import Postings

        if self._postings is None:
            self._postings = Postings()
        return self._postings

    def save_common(self) -> None:
        """Write down the postings of common words that this process has read, for the next one (`store.common`)."""
        if self._postings is not None:
            common = self._common_words()
            if self._generation() == common.generation:
                generation, known = self._frequencies
                common.write(
                    self._postings.newest(common.generation), known if generation == common.generation else {}
                )

    def _common_words(self) -> CommonWords:
        """What lies beside the database of the state that it is in."""
        from qmd.store.common import CommonWords

        generation, common = self._generation(), self._common
        if common is None or common.generation != generation:
            identity = str(self._db.value("SELECT value FROM meta WHERE key = 'database'"))
            ending = "words" if self.table == TEXTS else self.table
            path = self._db.path.with_name(f"{self._db.path.name}.{ending}")
            self._common = common = CommonWords(path, identity, generation)
        return common

    def _read(self, expression: str) -> Kept:
        from qmd.store.postings import as_arrays

        found = self._common_words().get(expression)
        if found is not None:
            return found
        sql = (
            f"SELECT rowid, -bm25({self.table}, {', '.join(str(float(w)) for w in WEIGHTS)}), "
            f"-bm25({self.table}, 0.0, 0.0, 1.0, 0.0) FROM {self.table} WHERE {self.table} MATCH ?"
        )
        return as_arrays(self._query(sql, (expression,)))

    def generation(self) -> int:
        """Changes with every change of the index."""
        return self._generation()

    def _generation(self) -> int:
        return int(self._db.value("SELECT value FROM meta WHERE key = 'generation'"))

    def _query(self, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        try:
            return self._db.raw.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
                raise UsageError(f"not a legal keyword expression: {error}.") from error
        return self._db.all(sql, values)  # any other error again, explained

    def count(self) -> int:
        """Number of indexed chunks, N in BM25. Remembered until the index changes."""
        generation, total = self._generation(), self._total
        if total[0] != generation:
            # Record 1 of FTS5's data table: rows, then tokens of each column.
            totals = varints(self._db.value(f"SELECT block FROM {self.table}_data WHERE id = 1") or b"\0")
            self._total = total = (generation, totals[0])
        return total[1]

    def stem(self, words: Iterable[str]) -> dict[str, list[str]]:
        """word -> the terms the index holds for it (folded, stemmed), by the index's own tokenizer."""
        words = list(dict.fromkeys(words))
        if len(self._stems) > 50_000:
            self._stems = {}
        known = self._stems  # another thread may begin a new one meanwhile
        wanted = [w for w in words if w not in known]
        if wanted:
            db = self._tokenizer()
            db.executemany(
                "INSERT INTO t(rowid, w) VALUES (?, ?)",
                (
                    (i, " ".join(p.strip('"*') for p in query_terms(w)) if has_cjk(w) else w)
                    for i, w in enumerate(wanted)
                ),
            )
            terms: dict[int, list[str]] = {}
            for term, row in db.execute("SELECT term, doc FROM places ORDER BY doc, offset"):
                terms.setdefault(row, []).append(term)
            db.execute("INSERT INTO t(t) VALUES ('delete-all')")
            known.update((w, terms.get(i, [])) for i, w in enumerate(wanted))
        return {w: known[w] for w in words}

    def _tokenizer(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(":memory:", isolation_level=None)
            db.execute(f"CREATE VIRTUAL TABLE t USING fts5(w, content='', tokenize='{TOKENIZER}')")
            db.execute("CREATE VIRTUAL TABLE places USING fts5vocab('t', 'instance')")
            db.execute(
                f"CREATE VIRTUAL TABLE c USING fts5({', '.join(COLUMNS)}, content='', tokenize='{TOKENIZER}')"
            )
            db.execute("CREATE VIRTUAL TABLE c_places USING fts5vocab('c', 'instance')")
            self._local.db = db
        return db

    def document_frequency(self, terms: Iterable[str]) -> dict[str, int]:
        """word -> number of chunks that hold it. A word of several terms (a CJK run): its rarest term's
        number.

        Exact; remembered until the index changes. The first look at a very common word reads its whole
        posting list.
        """
        words = list(dict.fromkeys(terms))
        generation, frequencies = self._generation(), self._frequencies
        if frequencies[0] != generation:
            self._frequencies = frequencies = (generation, dict(self._common_words().frequencies))
        known = frequencies[1]
        stems = self.stem(words)
        missing = {t for w in words for t in stems[w] if t not in known}
        for term in missing:
            known[term] = int(
                self._db.value(f"SELECT doc FROM {self.table}_terms WHERE term = ?", (term,)) or 0
            )
        return {w: min((known[t] for t in stems[w]), default=0) for w in words}

    def near_terms(self, word: str, limit: int = 10) -> list[str]:
        """Terms of the index one edit away (letter dropped, added, changed, or two neighbours swapped).

        Most frequent first. Every possible edit is looked up, so this needs no copy of the vocabulary and
        is never
        stale. Words of fewer than four letters and CJK have none. What is given back can be searched as it
        is.
        """
        folded = "".join(
            c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c)
        )
        if len(folded) < 4 or len(folded) > 40 or not folded.isalnum() or has_cjk(folded):
            return []
        forms = {folded, *(t for t in self.stem([folded])[folded])}
        edits = set().union(*(_edits(form) for form in forms))
        # The index holds stems: a misspelt ending hides them, so every edit is looked up in its stemmed
        # form too.
        edits |= {terms[0] for terms in self.stem(edits).values() if len(terms) == 1}
        edits -= forms
        rows = self._db.all(
            "SELECT w.value FROM json_each(?) w WHERE EXISTS "
            f"(SELECT 1 FROM {self.table}_places p WHERE p.term = w.value)",
            (json.dumps(sorted(edits)),),
        )
        found = {row[0]: 0 for row in rows}
        for term in found:
            found[term] = int(
                self._db.value(f"SELECT doc FROM {self.table}_terms WHERE term = ?", (term,)) or 0
            )
        return sorted(found, key=lambda t: (-found[t], t))[:limit]


def varints(data: bytes) -> list[int]:
    """SQLite's variable-length integers: seven bits a byte, high bit for "more", big end first."""
    numbers, value = [], 0
    for byte in data:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            numbers.append(value)
            value = 0
    return numbers


def _edits(word: str) -> set[str]:
    """All strings one edit away, in the letters of the word's own scripts."""
    letters = set("abcdefghijklmnopqrstuvwxyz") if any(c.isascii() and c.isalpha() for c in word) else set()
    if any(c.isdigit() for c in word):
        letters |= set("0123456789")
    for block in {ord(c) // 0x60 for c in word if not c.isascii()}:
        letters |= {
            chr(i) for i in range(block * 0x60, block * 0x60 + 0x60) if chr(i).islower() or chr(i).isalpha()
        }
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    return {
        *(a + b[1:] for a, b in cuts if b),
        *(a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1),
        *(a + c + b[1:] for a, b in cuts if b for c in letters),
        *(a + c + b for a, b in cuts for c in letters),
    }


__all__ = ["COLUMNS", "K1", "WEIGHTS", "B", "Keyword"]
