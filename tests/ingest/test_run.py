"""Updates: only what changed is read, nothing is lost, nothing is wiped by accident."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

import standin
from PIL import Image

from qmd.config import Config, Ingest
from qmd.errors import UsageError
from qmd.ingest.embed import embed
from qmd.ingest.parse import parse
from qmd.ingest.run import LeftOut, update, update_files
from qmd.store import Store
from qmd.types import Collection


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "notes"
    (root / "sub").mkdir(parents=True)
    (root / "a.md").write_text("apples grow on trees")
    (root / "b.md").write_text("bread is baked")
    (root / "sub" / "c.md").write_text("cheese ages")
    return root


@pytest.fixture
def store(tmp_path, folder):
    with Store.open(tmp_path / "index.sqlite") as opened:
        opened.add_collection(Collection("notes", str(folder)))
        yield opened


def run(store, steps=standin.STEPS, **more):
    return update(store, "notes", Config(), steps=steps, **more)


def paths(store, word):
    return {c.path for c in store.chunks([i for i, _ in store.keyword.match(word)]).values()}


def test_first_update_then_nothing_to_do(store):
    seen = []
    report = run(store, progress=lambda *state: seen.append(state))
    assert (report.added, report.unchanged, report.skipped) == (3, 0, ())
    assert seen[-1] == ("index", 3, 3)
    generation = store.generation
    assert run(store).unchanged == 3
    assert store.generation == generation
    assert paths(store, "cheese") == {"sub/c.md"}


def test_change_touch_delete_and_rename(store, folder):
    run(store)
    embedder = standin.FakeEmbedder()
    embed(store, embedder)
    (folder / "a.md").write_text("avocados instead of fruit")
    os.utime(folder / "b.md", ns=(1, 5 * 10**17))
    (folder / "sub" / "c.md").rename(folder / "moved.md")
    docid = store.find_document("notes", "sub/c.md").docid
    report = run(store)
    assert (report.changed, report.unchanged, report.moved, report.removed, report.added) == (1, 1, 1, 0, 0)
    assert paths(store, "apples") == set()
    assert paths(store, "avocados") == {"a.md"}
    assert store.find_docid(docid).path == "moved.md"
    assert store.find_document("notes", "moved.md").title == "moved"
    embedder.texts.clear()
    embed(store, embedder)
    assert [t.split("\n")[1] for t in embedder.texts] == ["avocados instead of fruit"]
    (folder / "moved.md").unlink()
    assert run(store).removed == 1
    assert paths(store, "cheese") == set()
    assert store.integrity() == []


def test_a_missing_or_emptied_folder_wipes_nothing(store, folder):
    run(store)
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match="missing"):
        run(store)
    folder.mkdir()
    with pytest.raises(UsageError, match="--force"):
        run(store)
    assert store.counts().documents == 3
    assert run(store, force=True).removed == 3
    assert store.counts().chunks == 0
    assert run(store).removed == 0


def test_an_unreadable_folder_keeps_its_documents_and_is_reported(store, folder):
    run(store)

    def walk(where, config):
        yield from (f for f in standin.walk(where, config) if not f.path.startswith("sub/"))
        yield LeftOut("sub/", "cannot be listed: Permission denied")

    report = run(store, steps=replace(standin.STEPS, walk=walk))
    assert report.removed == 0
    assert report.errors == (LeftOut("sub/", "cannot be listed: Permission denied"),)
    assert paths(store, "cheese") == {"sub/c.md"}

    def read(found, config):
        return LeftOut(found.path, "cannot be opened: I/O error")

    (folder / "a.md").write_text("new but unreadable")
    report = run(store, steps=replace(standin.STEPS, read=read))
    assert [e.path for e in report.errors] == ["a.md"]
    assert paths(store, "apples") == {"a.md"}


def test_skipped_files_are_reported_every_time_but_read_once(store, folder):
    run(store)
    (folder / "a.md").write_bytes(b"\0binary")
    reads = []

    def read(found, config):
        reads.append(found.path)
        return standin.read(found, config)

    for _ in range(2):
        report = run(store, steps=replace(standin.STEPS, read=read))
        assert report.skipped == (LeftOut("a.md", "binary: NUL bytes"),)
    assert reads == ["a.md"]
    assert paths(store, "apples") == set()
    (folder / "a.md").write_text("apples again")
    assert run(store).skipped == ()
    assert paths(store, "apples") == {"a.md"}


def test_names_that_are_no_utf8_are_stored_and_found(store, folder):
    name = os.fsdecode(b"caf\xe9.md")
    (folder / name).write_text("latin name")
    assert run(store).added == 4
    assert paths(store, "latin") == {name}
    assert run(store).unchanged == 4
    (folder / name).unlink()
    assert run(store).removed == 1
    assert store.integrity() == []


def test_equal_files_have_different_docids(store, folder):
    (folder / "copy.md").write_text("apples grow on trees")
    run(store)
    docids = [d.docid for d in store.list_documents()]
    assert len(set(docids)) == 4
    for document in store.list_documents():
        assert store.find_docid("#" + document.docid).path == document.path


def test_the_real_stages(store, folder):
    (folder / "z.md").write_text(
        "---\ntags: [area/work]\n---\n# Zebra\n\nSee [[a]].\n\n## Stripes\n\nblack and white\n"
    )
    report = update(store, "notes", Config())
    assert report.added == 4
    (hit,) = store.chunks([i for i, _ in store.keyword.match("white")][:1]).values()
    assert (hit.path, hit.title) == ("z.md", "Zebra")
    assert "black and white" in hit.text
    assert [link.target for _, link in store.documents.links_naming(["a"])] == ["a"]
    assert update(store, "notes", Config()).unchanged == 4
    assert store.integrity() == []


def test_a_file_whose_parser_fails_is_named_and_the_others_are_indexed(store, folder):
    run(store)
    (folder / "a.md").write_text("a trap")
    (folder / "d.md").write_text("dates")

    def parse(path, data, config):
        return {}[path] if b"trap" in data else standin.parse(path, data, config)

    report = run(store, steps=replace(standin.STEPS, parse=parse))
    assert (report.added, [(e.path, "KeyError" in e.reason) for e in report.errors]) == (1, [("a.md", True)])
    assert paths(store, "apples") == {"a.md"}
    assert run(store).changed == 1
    assert paths(store, "trap") == {"a.md"}


@pytest.mark.parametrize(
    ("old", "new", "type", "date"),
    [
        ("k.txt", "k.md", "markdown", None),
        ("2024-01-01.md", "2026-03-05.md", "markdown", "2026-03-05"),
    ],
)
def test_a_renamed_file_that_reads_otherwise_is_read_again(store, folder, old, new, type, date):
    (folder / old).write_text("# Kiwi\n\nabout #fruit\n")
    update(store, "notes", Config())
    (folder / old).rename(folder / new)
    report = update(store, "notes", Config())
    assert (report.added, report.removed, report.moved, report.unchanged) == (1, 1, 0, 3)
    document = store.find_document("notes", new)
    assert (document.type, document.date) == (type, date)
    assert store.documents.tags(document.id) == ("fruit",)
    assert store.integrity() == []


def test_renamed_while_chunk_sizes_change_it_is_cut_anew(store, folder):
    (folder / "long.md").write_text("Kiwis are green. " * 200)
    update(store, "notes", Config())
    (folder / "long.md").rename(folder / "moved.md")
    update(store, "notes", Config(ingest=Ingest(chunk_tokens=60)))
    assert len([i for i, _ in store.keyword.match("kiwis")]) > 10


def stop(stage, done, total):
    raise KeyboardInterrupt


def test_interrupted_before_captions_are_written_the_next_update_writes_them(store, folder):
    Image.new("RGB", (4, 4)).save(folder / "IMG_1.png")
    (folder / "trip.md").write_text("# Trip\n\n![a tram in Lisbon](IMG_1.png)\n")
    with pytest.raises(KeyboardInterrupt):
        update(store, "notes", Config(), stop)
    assert paths(store, "apples") == {"a.md"}
    store.rename_collection("notes", "diary")
    update(store, "diary", Config())
    assert "a tram in Lisbon" in store.find_document("diary", "IMG_1.png").text
    assert update(store, "diary", Config()).unchanged == 5


@pytest.mark.parametrize("first", [240, 30])
def test_chunk_sizes_that_change_after_an_interrupted_run_are_seen(store, folder, first):
    (folder / "long.md").write_text("Kiwis are green. " * 200)
    small, large = (Config(ingest=Ingest(chunk_tokens=n)) for n in (60, first))
    with pytest.raises(KeyboardInterrupt):
        update(store, "notes", large, stop)
    (folder / "b.md").unlink()
    with pytest.raises(KeyboardInterrupt):
        update(store, "notes", small, stop)
    store.rename_collection("notes", "diary")
    report = update(store, "diary", large)
    assert "cut again" in report.notes[0]
    long = store.find_document("diary", "long.md")
    assert [c.text for c in store.chunks(range(1, 10_000)).values() if c.path == "long.md"] == [
        long.text[c.start : c.end] for c in parse("long.md", long.text.encode(), chunk_tokens=first).chunks
    ]
    assert update(store, "diary", large).notes == ()


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_single_files_are_found_by_their_real_names_and_links_are_left(store, folder):
    name = os.fsencode(folder) + b"/caf\xe9.md"
    Path(os.fsdecode(name)).write_text("latin name")
    update(store, "notes", Config())
    Path(os.fsdecode(name)).write_text("latin again")
    (folder / ".env").write_text("PASSWORD=secret")
    (folder / "a.md").unlink()
    (folder / "a.md").symlink_to(".env")
    report = update_files(store, "notes", ["caf\\xE9.md", "a.md"], Config())
    assert (report.changed, report.removed, [left.path for left in report.skipped]) == (1, 0, ["a.md"])
    assert paths(store, "again") == {"caf\\xE9.md"}
    assert paths(store, "secret") == set()
