"""Documents scored over lists and over arrays come out the same."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd.store import Store, whole_arrays, wholes
from qmd.store.keyword import K1, B
from qmd.store.wholes import Means, Word

SHARES = st.floats(0.001, 1.2)


@st.composite
def questions(draw):
    count = draw(st.integers(1, 5))
    sizes, chunk = {}, 0
    for document in draw(st.permutations(range(10, 10 + count))):
        rows = []
        for _ in range(draw(st.integers(1, 4))):
            chunk += draw(st.integers(1, 3))
            body = draw(st.integers(1, 200))
            rows.append((chunk, body + draw(st.integers(0, 40)), body))
        sizes[document] = rows
    ids = sorted(row[0] for rows in sizes.values() for row in rows)
    words = []
    for _ in range(draw(st.integers(0, 3))):
        held = sorted(draw(st.sets(st.sampled_from(ids), max_size=len(ids))))
        found = [(i, draw(SHARES), draw(SHARES)) for i in held]
        words.append(Word(draw(st.floats(0.1, 8)), draw(st.floats(0.5, 3)), found))
    return sizes, words


@given(questions())
def test_lists_and_arrays_agree(question):
    sizes, words = question
    means = Means(80.0, 190.0)
    plain = wholes._add_words(sizes, words, means, 2.5)
    arrays = whole_arrays.add_words(sizes, words, means, 2.5)
    assert arrays.documents == pytest.approx(plain.documents)
    assert arrays.chunks == pytest.approx(plain.chunks)
    assert arrays.parts == plain.parts


def test_one_word_by_hand():
    """A word twice in the body of the first of two chunks, once in the title, which both chunks hold."""
    means = Means(100.0, 200.0)
    norm = K1 * (1 - B + B * 1.0)
    unit = 3.0 * (K1 + 1)

    def bm25(times):
        return unit * times / (times + norm)

    word = Word(2.0, unit, [(1, bm25(3), bm25(2)), (2, bm25(1), 0.0)])
    found = wholes._add_words({7: [(1, 100, 95), (2, 100, 105)]}, [word], means, 2.0)
    counted = 2 + (1 + 1) / 2
    whole = counted / (counted + K1)
    part = 3 / (3 + norm)
    assert found.documents[7] == pytest.approx(
        wholes.DOCUMENT_SHARE * whole + (1 - wholes.DOCUMENT_SHARE) * part
    )
    assert math.isclose(found.chunks[2], 1 / (1 + norm))


def test_nothing_found_scores_nothing():
    for add_words in (wholes._add_words, whole_arrays.add_words):
        assert add_words({}, [], Means(1.0, 1.0), 1.0).documents == {}
        assert add_words({1: [(5, 9, 9)]}, [], Means(1.0, 1.0), 1.0).documents == {1: 0.0}


def test_a_search_keeps_to_its_state_while_another_thread_goes_on(store, put, monkeypatch):
    for number in range(3):
        put(f"{number}.md", f"lamp number {number}")
    before = store.wholes.match([('"lamp"', 3)], [1, 2, 3])
    spread, waiting = store.wholes._spread, [True]

    def go_on():
        put("new.md", "lamp lamp oil")
        store.keyword.rank(['"oil"'])
        store.wholes.match([('"oil"', 1)], [4])

    def meanwhile(*arguments, **named):
        if waiting and waiting.pop():
            thread = threading.Thread(target=go_on)
            thread.start()
            thread.join()
        return spread(*arguments, **named)

    monkeypatch.setattr(store.wholes, "_spread", meanwhile)
    assert store.wholes.match([('"lamp"', 3)], [1, 2, 3]) == before
    after = store.wholes.match([('"lamp"', 4)], [1, 2, 3, 4])
    with Store.open(store.path) as fresh:
        assert after == fresh.wholes.match([('"lamp"', 4)], [1, 2, 3, 4])


def test_stems_are_given_whole_when_another_thread_begins_to_collect_anew(store, monkeypatch):
    store.keyword.stem(["lamps"])
    tokenizer = store.keyword._tokenizer

    def meanwhile():
        store.keyword._stems = {}
        return tokenizer()

    monkeypatch.setattr(store.keyword, "_tokenizer", meanwhile)
    assert store.keyword.stem(["lamps", "running"]) == {"lamps": ["lamp"], "running": ["run"]}
