"""Documents are weighed by their own BM25 and by cosine above the background; scores are probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

import qmd
from qmd.search.calibrate import Evidence, any_relevant, probability
from qmd.search.dense import Scan
from qmd.search.expand import FEWEST_WORDS, feedback
from qmd.search.fuse import FLOOR, PER_DEVIATION, fuse_scores
from qmd.store.wholes import DOCUMENT_SHARE


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    long = "".join(
        f"## Part {n}\n\n{'filler ' * 150} {word}\n\n" for n, word in enumerate(("apple", "banana"))
    )
    (folder / "both.md").write_text(long)
    (folder / "one.md").write_text("## Only\n\napple apple here, and a few other words beside it\n")
    for n in range(12):
        (folder / f"other{n}.md").write_text(f"nothing of the kind number{n} in this text about weather\n")
    with qmd.open(tmp_path / "index.sqlite") as opened:
        opened.add(folder, embed=False)
        yield opened


def documents(index):
    return {d.path: d.id for d in index.store.list_documents()}


def test_the_score_of_a_document_is_its_bm25(index):
    """Against BM25 counted by hand from the texts; the chunk's share is taken out."""
    ids = documents(index)
    store = index.store
    rows = store.keyword._db.all(
        "SELECT c.document_id, k.sz FROM chunks c JOIN keyword_docsize k ON k.id = c.id", ()
    )
    from qmd.store.keyword import varints

    length: dict[int, int] = {}
    for document, sizes in rows:
        length[document] = length.get(document, 0) + varints(sizes)[2]
    mean = sum(length.values()) / len(ids)
    found = store.wholes.match([('"banana"', 1)], ids.values())
    (chunk, share) = max(found.chunks.items(), key=lambda item: item[1])
    assert found.parts[chunk] == ids["both.md"]
    whole = 1 / (1 + 1.2 * (0.25 + 0.75 * length[ids["both.md"]] / mean))
    expected = DOCUMENT_SHARE * whole + (1 - DOCUMENT_SHARE) * share
    assert found.documents[ids["both.md"]] == pytest.approx(expected, rel=1e-4)
    assert found.documents[ids["one.md"]] == 0


def test_words_in_two_chunks_add_up_for_the_document(index):
    ids = documents(index)
    atoms = [('"apple"', 2), ('"banana"', 1)]
    found = index.store.wholes.match(atoms, ids.values())
    chunks = [share for chunk, share in found.chunks.items() if found.parts[chunk] == ids["both.md"]]
    assert found.documents[ids["both.md"]] > (1 - DOCUMENT_SHARE) * max(chunks)
    parts = (DOCUMENT_SHARE * 2 * max(chunks), (1 - DOCUMENT_SHARE) * max(chunks))
    assert found.documents[ids["both.md"]] == pytest.approx(sum(parts), rel=0.5)
    alone = index.store.wholes.match(atoms[1:], ids.values(), missing=1)
    assert found.documents[ids["both.md"]] > alone.documents[ids["both.md"]]


def test_kept_postings_score_as_rows_do(index):
    ids = documents(index).values()
    atoms = [('"apple"', 2), ('"filler"', 2)]
    before = index.store.wholes.match(atoms, ids)
    index.store.keyword.rank([expression for expression, _ in atoms])
    assert index.store.keyword.keeps([expression for expression, _ in atoms])
    after = index.store.wholes.match(atoms, ids)
    assert after.documents == pytest.approx(before.documents, rel=1e-3)


def test_words_the_index_lacks_lower_the_share(index):
    ids = documents(index).values()
    without = index.store.wholes.match([('"banana"', 1)], ids)
    missing = index.store.wholes.match([('"banana"', 1)], ids, missing=1)
    assert max(missing.documents.values()) < 0.6 * max(without.documents.values())


def test_a_list_that_says_little_cannot_outvote_a_clear_match():
    fused = fuse_scores([({"a": 0.8, "b": 0.1}, 1.0)], [({"b": 2.0, "a": 1.5, "c": 2.1}, 1.0)])
    assert next(iter(fused)) == "a"
    assert fused["b"] == pytest.approx((0.1 / 0.8 + 2 * PER_DEVIATION) / 2)
    weak = fuse_scores([({"a": 0.1}, 1.0)], [({"b": 6.0}, 1.0)])
    assert next(iter(weak)) == "b"
    assert weak["a"] == pytest.approx(0.1 / FLOOR / 2)


def test_the_background_is_measured_and_assumed_where_there_is_none():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    query = rows[0].copy()
    scan = Scan(rows, np.arange(2000))
    background = scan.background(query)
    assert background.mean == pytest.approx(float((rows @ query).mean()), abs=0.03)
    assert background.z(1.0) > 3
    tiny = Scan(rows[:2], np.arange(2)).background(query)
    assert math.isfinite(tiny.z(0.6))
    assert tiny.z(0.6) > 3
    assert scan.score(query, [5, 99_999, 0]) == pytest.approx(
        {5: float(rows[5] @ query), 0: float(rows[0] @ query)}, abs=1e-6
    )


def test_a_probability_rises_with_the_evidence():
    for mode in ("keyword", "vector", "hybrid"):
        seen = [
            probability(Evidence(mode, 0.5, match=m / 10, cosine=m / 10, deviations=m, words=5))
            for m in range(10)
        ]
        assert seen == sorted(seen)
        assert seen[0] < 0.05
        assert seen[-1] > 0.5
    assert any_relevant([]) is None
    strong = Evidence("hybrid", 1.0, match=0.6, cosine=0.7, deviations=6, words=8)
    weak = Evidence("hybrid", 1.0, match=0.1, cosine=0.2, deviations=2, words=8)
    assert any_relevant([strong]) > 0.9 > 0.1 > any_relevant([weak])


def test_two_documents_and_a_clear_match(tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "a.md").write_text("# Bread\n\nKnead the dough, let it rest, bake it hot.\n")
    (folder / "b.md").write_text("# Taxes\n\nThe declaration is due in July.\n")
    with qmd.open(tmp_path / "two.sqlite") as two:
        two.add(folder, embed=False)
        hits = two.search("knead dough")
        assert hits[0].path == "a.md"
        assert hits[0].score > 0.25


def test_feedback_takes_what_passages_share_for_long_questions_alone():
    passages = [
        "sugar yeast flour rises in warm dough",
        "yeast flour and water make dough",
        "flour yeast salt",
    ]
    frequency = {"yeast": 3, "flour": 4, "dough": 2}

    def count(words):
        return {word: frequency.get(word, 1) for word in words}

    def stem(words):
        return {word: [word] for word in words}

    question = ["how", "long", "must", "bread", "rest", "before", "it", "is", "dough"]
    words = [word for word, _ in feedback(question, passages, count, stem, 1000)]
    assert words[:2] == ["yeast", "flour"] or words[:2] == ["flour", "yeast"]
    assert "dough" not in words
    assert "salt" not in words  # in one chunk only
    assert feedback(question[: FEWEST_WORDS - 1], passages, count, stem, 1000) == []
    assert feedback(["如何", *question], passages, count, stem, 1000) == []


def test_texts_below_the_background_are_ordered_by_cosine(tmp_path):
    """Their scores are all 0; docids would order them."""
    from .conftest import WordsEmbedder

    asked = "alpha beta gamma delta"
    with qmd.open(tmp_path / "index.sqlite", embedder=WordsEmbedder()) as index:
        for name, texts in (
            ("near", [f"{asked} recipe{n}" for n in range(60)]),
            ("far", [f"{' '.join(asked.split()[: n % 4])} other words of note{n}" for n in range(12)]),
        ):
            (tmp_path / name).mkdir()
            for n, text in enumerate(texts):
                (tmp_path / name / f"{n}.md").write_text(text + "\n")
            index.add(tmp_path / name)
        hits = index.vsearch(asked, collections=["far"], limit=12, explain=True)
        cosines = [hit.explain["cosine"] for hit in hits]
        assert len({hit.explain["scores"]["before_calibration"] for hit in hits}) == 1
        assert cosines == sorted(cosines, reverse=True)
        assert len(set(cosines)) > 2


def test_what_the_reranker_says_is_part_of_the_probability():
    known = {"match": 0.6, "cosine": 0.7, "deviations": 6, "words": 8}
    plain = Evidence("hybrid", 1.0, **known)
    for said in (0.0, 1.0):
        read = Evidence("hybrid", 1.0, **known, reranked=said, rerank_weight=0.7)
        assert probability(read) == pytest.approx(0.3 * probability(plain) + 0.7 * said)
        assert any_relevant([read, plain]) == pytest.approx(0.3 * any_relevant([plain]) + 0.7 * said)
