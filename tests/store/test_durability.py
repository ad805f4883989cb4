"""Killed, crowded, full and damaged: what was acknowledged is found, errors are clear, nothing is silently wrong."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmd.errors import StoreDamaged, StoreError, StoreFull
from qmd.store import Store
from qmd.types import Collection

WORKER = str(Path(__file__).with_name("worker.py"))
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
FILES = 120


def start(*arguments, **more):
    command = [sys.executable, WORKER, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, **more
    )


@pytest.fixture
def database(tmp_path):
    root = tmp_path / "notes"
    root.mkdir()
    for i in range(FILES):
        (root / f"{i:03d}.md").write_text(f"unique{i} text\n" + "filler words here\n" * 60)
    path = tmp_path / "index.sqlite"
    with Store.open(path) as store:
        store.add_collection(Collection("notes", str(root)))
    return path


def state(path):
    with Store.open(path) as store:
        documents = [(d.path, d.docid, d.hash, d.title) for d in store.list_documents()]
        chunks = store.db.all(
            "SELECT d.path, c.start, c.end, c.key FROM chunks c JOIN documents d ON d.id = c.document_id "
            "ORDER BY 1, 2"
        )
        vectors = store.db.all("SELECT key, vector FROM vectors ORDER BY key")
    return documents, chunks, vectors


def kill_at_random(job, database, rng):
    """One run, killed with SIGKILL; gives the last number it had acknowledged."""
    process = start(job, database)
    first = process.stdout.readline()  # starting Python is not what is tested: wait for the first batch
    time.sleep(rng.random() * 0.12)
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    lines = [line for line in (first + rest).split("\n") if line.strip().isdigit()]
    return int(lines[-1]) if lines else 0


@pytest.mark.parametrize("job", ["index", "embed"])
def test_kill_9_keeps_what_was_acknowledged(database, tmp_path, job):
    """25 moments: 13 of `update`, 12 of `embed`, always going on from what the killed run left."""
    rng = random.Random(job)
    if job == "embed":
        assert start("index", database).wait() == 0
    before = database.read_bytes()
    table = "documents" if job == "index" else "chunks"
    kept = 0
    for _ in range(13 if job == "index" else 12):
        acknowledged = kill_at_random(job, database, rng)
        with Store.open(database) as store:
            assert store.integrity() == []
            if job == "index":
                done = store.counts().documents
                assert done >= kept + acknowledged, "an acknowledged document is gone"
                assert done <= kept + acknowledged + 10, "more than one batch was not acknowledged"
                for document in store.list_documents():
                    number = int(document.path[:3])
                    assert store.keyword.match(f"unique{number}"), document.path
            else:
                done, total = store.vectors.count("fake-1")
                assert done >= max(kept, acknowledged)
                if done:  # rows of chunks that are gone may stay in the matrix, marked
                    assert (store.vectors.matrix("fake-1").chunk_ids >= 0).sum() == done
                assert total == store.db.value(f"SELECT count(*) FROM {table}")
        kept = done
        if kept == (FILES if job == "index" else total):  # all done: the remaining kills begin afresh
            database.write_bytes(before)
            kept = 0
    assert start(job, database).wait() == 0
    undisturbed = tmp_path / "undisturbed.sqlite"
    undisturbed.write_bytes(before)
    assert start(job, undisturbed).wait() == 0
    assert state(database) == state(undisturbed)


def crowd(database, seconds):
    jobs = [start("write", database, f"w{i}", seconds) for i in range(2)]
    jobs += [start("read", database, f"r{i}", seconds) for i in range(8)]
    for job in jobs:
        out, error = job.communicate(timeout=seconds + 60)
        assert job.returncode == 0, error
        assert int(out) > 0
    with Store.open(database) as store:
        assert store.integrity() == []


def test_two_writers_and_eight_readers(database):
    crowd(database, 3)


@pytest.mark.soak
def test_two_writers_and_eight_readers_for_20_s(database):
    crowd(database, 20)


def test_disk_full_says_so_and_the_old_index_answers(database):
    """A limit on the size of files stands for a full disk."""
    assert start("index", database).wait() == 0
    for i in range(FILES, 5 * FILES):
        (database.parent / "notes" / f"{i:03d}.md").write_text(
            f"unique{i} text\n" + "filler words here\n" * 60
        )
    limit = database.stat().st_size + 20_000

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start("index", database, preexec_fn=full)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "StoreFull" in error
    assert "Free some disk space" in error
    with Store.open(database) as store:
        assert store.integrity() == []
        assert FILES <= store.counts().documents < 5 * FILES
        assert store.keyword.match("unique7")
    assert start("index", database).wait() == 0
    with Store.open(database) as store:
        assert store.counts().documents == 5 * FILES


def test_a_full_disk_while_creating(tmp_path):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from pathlib import Path; from qmd.store import Store; Store.open(Path('index.sqlite'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENV, capture_output=True, text=True, check=False
    )
    assert StoreFull.__name__ in done.stderr
    assert not list(tmp_path.iterdir()), "a half-made index was left behind"


def test_a_flipped_text_is_noticed_and_read_again(database):
    assert start("index", database).wait() == 0
    with Store.open(database) as store:
        data = store.db.value("SELECT text FROM bodies WHERE id = 5")
        changed = data.replace(b"filler", b"filleR", 1)
        store.db.run("UPDATE bodies SET text = ? WHERE id = 5", (changed,))
        with pytest.raises(StoreDamaged, match="qmd cleanup"):
            store.document(5)
        assert any("1 documents" in p.what for p in store.integrity())
        assert store.cleanup().dropped_documents == 1
        assert store.integrity() == []
    assert start("index", database).wait() == 0
    with Store.open(database) as store:
        assert store.counts().documents == FILES


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE documents SET path = CAST(x'ff2e6d64' AS TEXT) WHERE id = 5",
        "UPDATE documents SET title = CAST(x'41c3' AS TEXT) WHERE id = 5",
        "UPDATE chunks SET headings = CAST(x'e4b8' AS TEXT) WHERE document_id = 5",
    ],
)
def test_a_name_that_is_no_text_is_noticed_and_read_again(database, harm):
    assert start("index", database).wait() == 0
    with Store.open(database) as store:
        store.db.run(harm)
        with pytest.raises(StoreDamaged, match="qmd cleanup"):
            store.list_documents(), store.chunks(range(FILES))
        assert any("1 documents" in p.what for p in store.integrity())
        assert store.cleanup().dropped_documents == 1
        assert store.integrity() == []
        assert len(store.list_documents()) == FILES - 1
        assert {row.path for row in store.chunks(range(10 * FILES)).values()} == {
            document.path for document in store.list_documents()
        }


def test_a_schema_that_is_no_text_is_explained(tmp_path):
    path = tmp_path / "index.sqlite"
    Store.open(path).close()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE skipped", b"CREATE TABL\xff skipped"))
    with pytest.raises(StoreDamaged, match="move the file away"):
        Store.open(path)


def test_a_damaged_keyword_index_is_noticed_and_rebuilt(database):
    assert start("index", database).wait() == 0
    with Store.open(database) as store:
        store.db.run("DELETE FROM keyword_docsize WHERE id = 3")
        assert any("keyword" in p.what for p in store.integrity())
        assert store.cleanup().keyword_rebuilt
        assert store.integrity() == []
        assert store.keyword.match("unique3")


@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_damaged_file_is_never_silently_wrong(database, harm):
    """After any harm: an error of ours, a reported problem, or exactly the right answer."""
    assert start("index", database).wait() == 0
    healthy = database.read_bytes()
    rng = random.Random(5)
    for _ in range(12):
        data = bytearray(healthy)
        if harm == "truncate":
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(100, len(data))] ^= 1 << rng.randrange(8)
        database.write_bytes(data)
        try:
            with Store.open(database) as store:
                problems = store.integrity()
                texts = [store.document(i).text for i in range(1, FILES + 1)] if not problems else []
        except StoreError:
            continue
        for i, text in enumerate(texts):
            assert text == f"unique{i} text\n" + "filler words here\n" * 60


def test_a_store_that_nobody_holds_is_closed(database):
    store = Store.open(database)
    raw = store.db.raw
    assert raw.execute("SELECT 1").fetchone() == (1,)
    del store
    with pytest.raises(sqlite3.ProgrammingError):
        raw.execute("SELECT 1")
