"""Pictures' vectors: kept by content and model, beside the texts' and never among them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from qmd.errors import ModelMismatch
from qmd.store import Store, schema
from qmd.types import Chunk, Collection, Document


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store.open(tmp_path / "index.sqlite")
    opened.add_collection(Collection("c", str(tmp_path)))
    return opened


def put(store: Store, path: str, content: bytes, kind: str = "image") -> int:
    chunk = Chunk(0, 4, 1, 1, (), 2)
    with store.writing() as writer:
        return writer.put_document(
            "c",
            path,
            size=1,
            mtime_ns=1,
            hash=content.ljust(32, b"\0"),
            document=Document("name", path, kind, "en", (chunk,)),
        )


def unit(*values: float) -> np.ndarray:
    row = np.array(values, np.float32)
    return row / np.linalg.norm(row)


def test_vectors_go_by_content_and_model(store: Store) -> None:
    assert not store.pictures.any()
    first, copy, other = put(store, "a.png", b"1"), put(store, "b.png", b"1"), put(store, "c.png", b"2")
    put(store, "n.md", b"3", "markdown")
    pending = store.pictures.pending("m", 10)
    assert {content[:1] for content in pending} == {b"1", b"2"}  # each content once, and no note
    assert store.pictures.places(b"1".ljust(32, b"\0")) == [("c", "a.png"), ("c", "b.png")]
    store.pictures.put("m", 2, [(pending[0], unit(1, 0))], [(pending[1], "damaged")])
    counts = store.pictures.count("m")
    assert (counts.total, counts.done + counts.refused) == (3, 3)
    assert store.pictures.pending("m", 10) == []
    assert len(store.pictures.pending("another", 10)) == 2
    same = store.pictures.matrix("m")
    assert len(same.chunk_ids) == counts.done
    assert store.pictures.matrix("m") is same  # kept while the index does not change
    assert {row[1] for row in store.pictures.refused("m")} < {"a.png", "b.png", "c.png"}
    assert store.vectors.models() == []  # nothing of it stands among the texts' vectors
    vectors = [store.pictures.vector("m", id) for id in (first, copy, other)]
    assert sum(v is not None for v in vectors) == counts.done


def test_a_vector_of_another_length_is_refused(store: Store) -> None:
    put(store, "a.png", b"1")
    with pytest.raises(ModelMismatch):
        store.pictures.put("m", 3, [(b"1".ljust(32, b"\0"), unit(1, 0))])


def test_damage_is_named_and_cleanup_drops_it(store: Store) -> None:
    put(store, "a.png", b"1")
    gone = put(store, "b.png", b"2")
    for content in (b"1", b"2"):
        store.pictures.put("m", 2, [(content.ljust(32, b"\0"), unit(1, 0))])
    store.db.run("UPDATE picture_vectors SET vector = x'0000000000000000' WHERE substr(hash, 1, 1) = x'31'")
    assert len(store.pictures.matrix("m").chunk_ids) == 1
    assert any("vectors do not match" in problem.what for problem in store.integrity())
    with store.writing() as writer:
        writer.delete_documents([gone])
    report = store.cleanup()
    assert (report.dropped_vectors, report.orphan_vectors) == (1, 1)
    assert store.integrity() == []
    assert len(store.pictures.pending("m", 5)) == 1


def test_another_model_replaces_the_first(store: Store) -> None:
    put(store, "a.png", b"1")
    for model in ("m", "n"):
        store.pictures.put(model, 2, [(b"1".ljust(32, b"\0"), unit(1, 0))])
    assert set(store.pictures.models()) == {"m", "n"}
    assert store.pictures.forget_others("n") == 1
    assert store.pictures.models() == {"n": 1}


def test_indexes_of_former_formats_are_taken_up(tmp_path: Path) -> None:
    """Before version 3 there were no pictures; in version 3 their words stood among those of texts."""
    path = tmp_path / "old.sqlite"
    with Store.open(path) as store:
        store.add_collection(Collection("c", "/c"))
        put(store, "red apple.png", b"1")
        words = store.db.one("SELECT id, 'red apple.png', '', 'name', 'red apple.png' FROM chunks")
        put(store, "note.md", b"2", "text")
        generation = store.generation
    assert words is not None
    db = sqlite3.connect(path)
    db.executescript(
        "DROP TABLE picture_words; DROP TABLE picture_words_terms; DROP TABLE picture_words_places; "
        "PRAGMA user_version = 3;"
    )
    db.execute("INSERT INTO keyword(rowid, title, headings, body, path) VALUES (?, ?, ?, ?, ?)", words)
    db.commit()
    db.close()
    with Store.open(path) as store:
        assert store.db.value("PRAGMA user_version") == schema.FORMAT_VERSION
        assert [i for i, _ in store.picture_words.match("apple")] == [words[0]]
        assert store.keyword.match("apple") == []
        assert (store.keyword.count(), store.picture_words.count()) == (1, 1)
        assert store.wholes.count() == 1
        # What lies beside the index was made with the words of pictures.
        assert store.generation != generation
        assert store.integrity() == []
    older = tmp_path / "older.sqlite"
    Store.open(older).close()
    db = sqlite3.connect(older)
    db.executescript(
        "DROP TABLE picture_words; DROP TABLE picture_words_terms; DROP TABLE picture_words_places; "
        "DROP TABLE picture_vectors; DROP INDEX pictures_by_hash; PRAGMA user_version = 2;"
    )
    db.close()
    with Store.open(older) as store:
        assert not store.pictures.any()
        assert store.db.value("PRAGMA user_version") == schema.FORMAT_VERSION
