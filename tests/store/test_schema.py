"""Files, versions, creation: what opening does and refuses to do."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
import subprocess
import sys
import threading
import unicodedata
from dataclasses import replace

import pytest
from standin import document

from qmd.errors import StoreBusy, StoreDamaged, StoreError, StoreTooNew
from qmd.store import Store, schema
from qmd.store.cjk import bigrams, index_text, query_terms
from qmd.store.connect import open_database
from qmd.types import Collection


def test_new_index_is_private_and_carries_its_identity(tmp_path):
    path = tmp_path / "data" / "index.sqlite"
    Store.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA application_id").fetchone()[0] == schema.APPLICATION_ID
    assert db.execute("PRAGMA user_version").fetchone()[0] == schema.FORMAT_VERSION
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    db.close()
    assert [p.name for p in path.parent.iterdir()] == ["index.sqlite"]


def test_opening_and_reading_changes_no_byte(store, put, tmp_path):
    put("a.md", "water boils")
    store.close()
    path = tmp_path / "data" / "index.sqlite"
    before = hashlib.sha256(path.read_bytes()).digest()
    with Store.open(path) as again:
        assert again.keyword.match("water")
        assert again.integrity() == []
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_missing_index_is_not_made_unless_asked(tmp_path):
    with pytest.raises(StoreError, match="qmd add"):
        Store.open(tmp_path / "index.sqlite", create=False)
    assert not list(tmp_path.iterdir())


def test_newer_version_is_refused(store, tmp_path):
    store.db.run(f"PRAGMA user_version = {schema.FORMAT_VERSION + 1}")
    store.close()
    with pytest.raises(StoreTooNew, match="upgrade"):
        Store.open(tmp_path / "data" / "index.sqlite")


def test_other_databases_and_other_files_are_refused_untouched(tmp_path):
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE precious (x)")
    db.close()
    text = tmp_path / "text.sqlite"
    text.write_bytes(b"These are my notes, not a database. " * 50)
    for path, error in ((other, StoreError), (text, StoreDamaged)):
        before = path.read_bytes()
        with pytest.raises(error):
            Store.open(path)
        assert path.read_bytes() == before


def test_an_older_version_is_migrated_and_keeps_its_documents(tmp_path):
    """Version 1 had no table of skipped files."""
    path = tmp_path / "old.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN")
    schema.MIGRATIONS[0](db)
    db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")
    db.execute("INSERT INTO collections VALUES (1, 'old', '/old', '[]', '[]', 1)")
    db.execute(
        "INSERT INTO documents VALUES (1, 1, 'a.md', 5, 1, x'00', 'abc123', 'T', 'text', 'en', NULL, '2020', "
        "'[]', '{}', 907060870)"
    )
    db.execute("INSERT INTO bodies VALUES (1, CAST('hello' AS BLOB))")
    db.execute("INSERT INTO chunks VALUES (1, 1, 0, 5, 1, 1, 2, '', x'00')")
    db.execute("INSERT INTO keyword(rowid, title, headings, body, path) VALUES (1, 'T', '', 'hello', 'a.md')")
    db.execute("COMMIT")
    db.close()
    with Store.open(path) as store:
        assert store.db.value("PRAGMA user_version") == schema.FORMAT_VERSION
        assert store.chunks([i for i, _ in store.keyword.match("hello")])[1].text == "hello"
        with store.writing() as writer:
            writer.note_skipped("old", "b.bin", size=1, mtime_ns=1, reason="binary")
        assert store.documents.known_skips("old") == {"b.bin": (1, 1, "binary")}
        assert store.integrity() == []


OPEN = """
import sys
from pathlib import Path
from qmd.store import Store
with Store.open(Path(sys.argv[1])) as store:
    with store.writing() as writer:
        writer._db.run("INSERT INTO contexts VALUES ('/', ?, 'x')", (sys.argv[2],))
    print(store.db.value("SELECT value FROM meta WHERE key = 'database'"))
"""


def test_eight_processes_open_a_new_index_at_once(tmp_path):
    path = tmp_path / "new" / "index.sqlite"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(path), str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": "src", "PATH": "/usr/bin"},
        )
        for i in range(8)
    ]
    answers = [run.communicate(timeout=60) for run in runs]
    assert [a[1] for a in answers] == [""] * 8
    assert len({a[0] for a in answers}) == 1, "two processes made two databases"
    with Store.open(path) as store:
        assert len(store.contexts()) == 8
        assert store.integrity() == []
    assert [p.name for p in path.parent.iterdir()] == ["index.sqlite"]


def test_a_writer_waits_for_the_other_then_says_busy(store, tmp_path):
    other = open_database(tmp_path / "data" / "index.sqlite", create=False)
    with other.transaction(), pytest.raises(StoreBusy, match="Wait for"), store.writing(wait_s=0.2):
        pass
    held, done = threading.Event(), threading.Event()

    def hold():
        with other.transaction():
            held.set()
            done.wait(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    store.add_collection(Collection("second", "/x"))
    thread.join()
    other.close()
    assert {c.name for c in store.collections()} == {"notes", "second"}


def test_a_failed_transaction_leaves_nothing(store, put):
    with pytest.raises(RuntimeError, match="stop"), store.writing() as writer:  # noqa: PT012
        writer.note_skipped("notes", "x", size=1, mtime_ns=1, reason="r")
        raise RuntimeError("stop")
    assert store.documents.known_skips("notes") == {}


def test_words_of_the_former_format_are_written_anew(tmp_path):
    """In version 4 a text with a full-width comma was folded whole, one without was not."""
    path = tmp_path / "old.sqlite"
    rows = {
        "面积为100㎡，价格": " 面积 积为 为 100m2, 价格 格 ",
        unicodedata.normalize("NFD", "ガイド"): " カ \u3099 イト ト \u3099",
        "harmed": "harmed",
        "same… 数据": "same… 数据 据 ",
    }
    with Store.open(path) as store:
        store.add_collection(Collection("notes", "/notes"))
        with store.writing() as writer:
            for number, text in enumerate(rows):
                parsed = document(text, title="t")
                writer.put_document(
                    "notes", f"{number}.md", size=1, mtime_ns=1, hash=bytes(32 * [number]), document=parsed
                )
            writer._db.run("INSERT INTO keyword(keyword) VALUES ('delete-all')")
            for number, words in enumerate(rows.values()):
                writer._db.run(
                    "INSERT INTO keyword(rowid, title, headings, body, path) VALUES (?, 't', 't', ?, ?)",
                    (number + 1, words, f"{number}.md"),
                )
            writer._db.run("UPDATE bodies SET text = CAST('other' AS BLOB) WHERE id = 3")
        asked = ["100㎡", "ガイド", "harmed", "数据"]
        assert [bool(store.keyword.match(" ".join(query_terms(word)))) for word in asked] == [0, 0, 1, 1]
        store.db.run("PRAGMA user_version = 4")
        generation = store.generation
    with Store.open(path) as store:
        assert store.db.value("PRAGMA user_version") == schema.FORMAT_VERSION
        assert [[i for i, _ in store.keyword.match(" ".join(query_terms(word)))] for word in asked] == [
            [1],
            [2],
            [3],
            [4],
        ]
        assert store.generation != generation, "what lies beside the index was made of the former words"
        with store.writing() as writer:
            writer.delete_documents([1, 2, 4])
        assert store.db.all("SELECT DISTINCT doc FROM keyword_places") == [(3,)]
        assert store.cleanup().dropped_documents == 1
        assert store.integrity() == []


@pytest.mark.parametrize("title", [b"Caf\xe9", b"half of a pair: \xed\xa0\x80"])
@pytest.mark.parametrize("version", [3, 4])
def test_a_damaged_title_does_not_stop_the_migration(tmp_path, title, version):
    path, kana = tmp_path / "old.sqlite", unicodedata.normalize("NFD", "ガイド")
    with Store.open(path) as store:
        store.add_collection(Collection("notes", "/notes"))
        with store.writing() as writer:
            for number, text in enumerate(["walrus", "narwhal", kana]):
                parsed = replace(document(text, title="t"), type="image" if number == 1 else "text")
                writer.put_document(
                    "notes", f"{number}.md", size=1, mtime_ns=1, hash=bytes(32 * [number]), document=parsed
                )
            writer._db.run("UPDATE documents SET title = CAST(? AS TEXT) WHERE id = 2", (title,))
            writer._db.run(schema._TAKE_OUT.format("keyword"), (3, "t", "t", index_text(kana), "2.md"))
            writer._db.run(schema._PUT_IN.format("keyword"), (3, "t", "t", bigrams(kana), "2.md"))
            if version == 3:
                writer._db.run(schema._PUT_IN.format("keyword"), (2, "t", "t", "narwhal", "1.md"))
        if version == 3:
            for table in ("picture_words_terms", "picture_words_places", "picture_words"):
                store.db.run(f"DROP TABLE {table}")
        store.db.run(f"PRAGMA user_version = {version}")
    with Store.open(path) as store:
        assert store.db.value("PRAGMA user_version") == schema.FORMAT_VERSION
        assert store.db.value("SELECT CAST(title AS BLOB) FROM documents WHERE id = 2") == title
        assert [[i for i, _ in store.keyword.match(word)] for word in ("walrus", *query_terms("ガイド"))] == [
            [1],
            [3],
        ]
        assert "1 documents are damaged" in [problem.what for problem in store.integrity()]
        assert store.cleanup().dropped_documents == 1
        assert store.integrity() == []
        assert store.counts().documents == 2


def test_a_thread_that_ended_leaves_no_connection(store, put):
    put("a.md", "water")
    before = set(store.db._all)
    found = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: found.append(store.keyword.match("water")))
        thread.start()
        thread.join()
    assert [len(hits) for hits in found] == [1, 1, 1]
    assert store.db._all == before
    assert store.keyword.match("water")
