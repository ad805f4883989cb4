"""Vectors and their derived matrix: never embedded twice, never silently wrong."""

from __future__ import annotations

import numpy as np
import pytest
from standin import FakeEmbedder, document

from qmd.errors import ModelMismatch, NotFound, StoreDamaged
from qmd.ingest.embed import Pace, embed
from qmd.store import Store, embedding_key, embedding_text


@pytest.fixture
def embedder():
    return FakeEmbedder()


def expected(store, embedder):
    """chunk id -> vector, straight from the texts."""
    rows = store.db.all("SELECT id FROM chunks")
    return {
        c.id: embedder.embed_query(embedding_text(c.title, c.heading_path, c.text))
        for c in store.chunks([r[0] for r in rows]).values()
    }


def assert_exact(store, embedder, matrix):
    truth = expected(store, embedder)
    live = matrix.chunk_ids >= 0
    assert sorted(matrix.chunk_ids[live].tolist()) == sorted(truth)
    for chunk_id, row in zip(matrix.chunk_ids[live], matrix.rows[live], strict=True):
        np.testing.assert_array_equal(row, truth[chunk_id])
    rebuilt = matrix.codes[live] * matrix.scales[live][:, None]
    assert np.abs(rebuilt - matrix.rows[live]).max() <= matrix.scales.max() / 2 + 1e-7


def test_every_text_is_embedded_once_newest_first(store, put, embedder):
    put("old.md", "old words", mtime_ns=1)
    put("new.md", "new words", mtime_ns=9, title="New")
    put("copy.md", "old words", mtime_ns=5)
    report = embed(store, embedder)
    assert [t.split("\n")[1] for t in embedder.texts] == ["new words", "old words"]
    assert (report.embedded, report.done, report.total) == (2, 3, 3)
    assert embed(store, embedder).embedded == 0
    assert_exact(store, embedder, store.vectors.matrix("fake-1"))


def test_what_lies_behind_a_damaged_document_is_embedded(store, put, embedder):
    put("behind.md", "good words", mtime_ns=1)
    damaged = put("newest.md", "".join(f"line {n}\n" * 200 for n in range(9)), mtime_ns=9)
    store.db.run("UPDATE bodies SET text = CAST('other' AS BLOB) WHERE id = ?", (damaged,))
    (waiting,) = store.vectors.pending(embedder.fingerprint, 4)
    assert waiting.text.endswith("good words")
    assert embed(store, embedder).embedded == 1
    assert store.vectors.pending(embedder.fingerprint, 4) == []


def test_keys_are_sha256_of_what_is_embedded():
    from hashlib import sha256

    text = embedding_text("Title", ("Title", "Part"), "body")
    assert text == "Title > Part\nbody"
    assert embedding_key(text) == sha256(text.encode()).digest()


def test_a_rename_keeps_vectors_even_with_another_title(store, put, embedder):
    number = put("old-name.md", "words", title="old-name")
    embed(store, embedder)
    with store.writing() as writer:
        writer.move_document(number, "b/new-name.md", size=5, mtime_ns=1, title="new-name")
    assert embed(store, embedder).embedded == 0
    assert store.keyword.match("title:new")
    assert not store.keyword.match("title:old OR path:old")
    assert store.integrity() == []


def test_the_matrix_is_extended_marked_and_made_anew(store, put, embedder):
    for i in range(12):
        put(f"{i}.md", f"text number {i}")
    embed(store, embedder)
    first = store.vectors.matrix("fake-1")
    assert first.live is None
    names = {p.name for p in store.vectors.folder("fake-1").iterdir()}
    put("more.md", "something more")
    with store.writing() as writer:
        writer.delete_documents([2])
    embed(store, embedder)
    second = store.vectors.matrix("fake-1")
    assert {p.name for p in store.vectors.folder("fake-1").iterdir()} == names, "appended, not rewritten"
    assert len(second) == 13
    assert (second.chunk_ids == -1).sum() == 1
    assert second.live.sum() == 12
    assert_exact(store, embedder, second)
    np.testing.assert_array_equal(first.rows[:1], second.rows[:1])
    with store.writing() as writer:
        writer.delete_documents([1, 3, 4, 5])
    third = store.vectors.matrix("fake-1")
    assert len(third) == 8
    assert third.live is None
    assert_exact(store, embedder, third)


def fresh(store):
    """Another process would open it so."""
    notes = []
    return Store.open(store.path, warn=notes.append), notes


@pytest.mark.parametrize("end", ["f32", "i8", "npz"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "empty"])
def test_a_damaged_matrix_is_noticed_said_and_rebuilt(store, put, embedder, end, harm):
    for i in range(300):
        put(f"{i}.md", f"text number {i}")
    embed(store, embedder)
    store.vectors.matrix("fake-1")
    (path,) = store.vectors.folder("fake-1").glob(f"*.{end}")
    data = path.read_bytes()
    if harm == "delete":
        path.unlink()
    elif harm == "flip":
        where = len(data) // 2
        path.write_bytes(data[:where] + bytes([data[where] ^ 0x10]) + data[where + 1 :])
    else:
        path.write_bytes(data[: len(data) // 2] if harm == "truncate" else b"")
    again, notes = fresh(store)
    with again:
        assert_exact(again, embedder, again.vectors.matrix("fake-1"))
        if (end, harm) != ("npz", "delete"):
            assert len(notes) == 1
            assert "damaged" in notes[0]
    third, notes = fresh(store)
    with third:
        assert_exact(third, embedder, third.vectors.matrix("fake-1"))
        assert notes == []


def test_every_single_flip_in_the_matrix_is_noticed(store, put, embedder):
    from qmd.store.matrix import checksums

    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, (1 << 20) + 12_345, np.uint8)
    truth = checksums(data)
    for _ in range(300):
        at, bit = int(rng.integers(len(data))), np.uint8(1 << rng.integers(8))
        data[at] ^= bit
        assert not np.array_equal(checksums(data), truth)
        data[at] ^= bit
    assert np.array_equal(checksums(data), truth)


def test_a_flipped_vector_in_the_database_is_noticed_and_made_again(store, put, embedder):
    put("a.md", "one")
    put("b.md", "two")
    embed(store, embedder)
    blob = store.db.value("SELECT vector FROM vectors WHERE id = 1")
    store.db.run("UPDATE vectors SET vector = ? WHERE id = 1", (bytes([blob[0] ^ 1]) + blob[1:],))
    with pytest.raises(StoreDamaged, match="qmd cleanup"):
        store.vectors.matrix("fake-1")
    assert [p.what for p in store.integrity()] == ["1 vectors do not match their checksums"]
    assert store.cleanup().dropped_vectors == 1
    assert embed(store, embedder).embedded == 1
    assert store.integrity() == []
    assert_exact(store, embedder, store.vectors.matrix("fake-1"))


def test_models_are_not_mixed(store, put, embedder):
    put("a.md", "one")
    embed(store, embedder)
    other = FakeEmbedder(8, "fake-2", "other")
    with pytest.raises(ModelMismatch, match="--model-changed"):
        embed(store, other)
    with pytest.raises(NotFound, match="qmd embed"):
        store.vectors.matrix("fake-2")
    with pytest.raises(ModelMismatch):
        store.vectors.put("fake-1", "fake", 8, [(b"k" * 32, np.zeros(8, np.float32))])
    assert embed(store, other, model_changed=True).dropped_models == ("fake",)
    assert [(m.name, m.dim, m.count) for m in store.vectors.models()] == [("other", 8, 1)]
    assert not store.vectors.folder("fake-1").exists()


def test_ctrl_c_keeps_what_is_done(store, put, embedder, monkeypatch):
    monkeypatch.setattr("qmd.ingest.embed.BATCH_TEXTS", 2)
    for i in range(7):
        put(f"{i}.md", f"text {i}")

    def progress(stage, done, total):
        if done == 4:
            raise KeyboardInterrupt

    report = embed(store, embedder, progress)
    assert (report.interrupted, report.embedded, report.done, report.total) == (True, 4, 4, 7)
    assert embed(store, embedder).embedded == 3
    assert len(set(embedder.texts)) == len(embedder.texts) == 7


def test_the_estimate_follows_the_characters_of_the_last_half_minute():
    now = [0.0]
    pace = Pace(100_000, clock=lambda: now[0])
    assert pace.seconds_left is None
    for _ in range(10):
        now[0] += 1
        pace.step(1000)
    assert pace.seconds_left == pytest.approx(90)
    for _ in range(40):
        now[0] += 1
        pace.step(500)
    assert pace.seconds_left == pytest.approx(70_000 / 500)


def test_a_read_only_folder_still_gives_vectors(store, put, embedder, monkeypatch):
    put("a.md", "one")
    embed(store, embedder)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("qmd.store.matrix.MatrixFiles.locked", refuse)
    matrix = store.vectors.matrix("fake-1")
    assert "held in memory" in matrix.notes[0]
    assert_exact(store, embedder, matrix)


def test_a_restored_backup_never_meets_vectors_of_its_other_life(store, put, embedder):
    """Ids repeat after a backup is put back; the matrix beside it was made from what came after the backup."""
    put("a.md", "one")
    embed(store, embedder)
    store.vectors.matrix("fake-1")
    store.close()
    backup = store.path.read_bytes()
    for life in ("first", "second"):
        store.path.write_bytes(backup)
        with Store.open(store.path) as again:
            with again.writing() as writer:
                for i in range(3):
                    writer.put_document(
                        "notes",
                        f"{i}.md",
                        size=1,
                        mtime_ns=i,
                        hash=f"{life}{i}".encode(),
                        document=document(f"{life} life, text {i}"),
                    )
            embed(again, embedder)
            assert_exact(again, embedder, again.vectors.matrix("fake-1"))
