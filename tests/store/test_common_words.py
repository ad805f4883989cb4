"""Postings of common words outlive the process that read them, and nothing else of what was asked does."""

from __future__ import annotations

import numpy as np
import pytest

from qmd.store import Store, common
from qmd.store.keyword import Keyword


@pytest.fixture
def filled(store, put, monkeypatch):
    """60 passages with "lamp", 5 with "secret"; a word counts as common from 20 passages on."""
    monkeypatch.setattr(common, "LEAST_POSTINGS", 20)
    for i in range(60):
        put(f"{i:02d}.md", f"lamp number {i}" + (" secret" if i < 5 else ""))
    return store


def read_again(store: Store, monkeypatch) -> tuple[Store, list[str]]:
    """The index closed and opened anew, and the statements that read postings from then on."""
    path = store.path
    store.close()
    opened, read = Store.open(path), []
    query = Keyword._query

    def counting(self, sql, values):
        read.append(values[0])
        return query(self, sql, values)

    monkeypatch.setattr(Keyword, "_query", counting)
    return opened, read


def test_the_next_process_reads_rare_words_only(filled, monkeypatch):
    words = ['"lamp"', '"secret"', '"number"']
    before = filled.keyword.rank(words, limit=100)
    frequencies = filled.keyword.document_frequency(["lamp", "secret"])
    opened, read = read_again(filled, monkeypatch)
    with opened:
        assert opened.keyword.rank(words, limit=100) == before
        assert read == ['"secret"']
        assert opened.keyword.document_frequency(["lamp", "secret"]) == frequencies


def test_rare_words_and_phrases_are_not_written(filled):
    filled.keyword.rank(['"lamp"', '"secret"', '"lamp number"'], limit=10)
    filled.close()
    written = filled.path.with_name("index.sqlite.words")
    assert written.stat().st_mode & 0o777 == 0o600
    head = written.read_bytes().split(b"}")[0]
    assert b"lamp" in head
    assert b"secret" not in head
    assert b"lamp number" not in head


def test_words_of_another_state_are_left_aside(filled, put, monkeypatch):
    filled.keyword.rank(['"lamp"', '"number"'], limit=100)
    filled.keyword.save_common()
    put("new.md", "a lamp more")
    opened, read = read_again(filled, monkeypatch)
    with opened:
        assert len(opened.keyword.rank(['"lamp"'], limit=100)) == 61
        assert read == ['"lamp"']


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "words"])
def test_a_damaged_file_is_read_around(filled, damage, monkeypatch):
    before = filled.keyword.rank(['"lamp"'], limit=100)
    filled.close()
    path = filled.path.with_name("index.sqlite.words")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-9] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-8], "empty": b"", "words": b"not what it was"}[damage])
    opened, read = read_again(filled, monkeypatch)
    with opened:
        assert opened.keyword.rank(['"lamp"'], limit=100) == before
        assert read == ['"lamp"']
    with Store.open(filled.path) as again:  # and was written anew
        assert '"lamp"' in again.keyword._common_words()


def test_the_file_has_a_limit_and_keeps_what_was_asked_last(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "MOST_POSTINGS", 5_000)

    def kept(start: int):
        return np.arange(start, start + 2_001), np.ones(2_001), np.ones(2_001, np.float32)

    path = tmp_path / "words"
    common.CommonWords(path, "one", 1).write([('"old"', kept(0))], {"old": 2_001})
    common.CommonWords(path, "one", 1).write([('"b"', kept(3)), ('"a"', kept(7))], {})
    found = common.CommonWords(path, "one", 1)
    assert ['"b"' in found, '"a"' in found, '"old"' in found] == [True, True, False]
    assert found.get('"a"')[0].tolist() == list(range(7, 2_008))
    assert found.frequencies == {"old": 2_001}
    assert '"a"' not in common.CommonWords(path, "another", 1)


def test_a_folder_that_cannot_be_written_is_done_without(filled, monkeypatch):
    filled.keyword.rank(['"lamp"'], limit=1)
    monkeypatch.setattr(common.os, "open", lambda *a: (_ for _ in ()).throw(PermissionError("no")))
    filled.keyword.save_common()
    assert not filled.path.with_name("index.sqlite.words").exists()
