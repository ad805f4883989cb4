"""Keyword primitives against exact oracles."""

from __future__ import annotations

import math
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd.errors import UsageError
from qmd.store.cjk import fold, index_text, query_terms
from qmd.store.keyword import K1, B
from qmd.store.schema import WEIGHTS
from qmd.types import Filter

WORDS = ["lamp", "cat", "ink", "dog", "sun", "map", "box", "fig"]  # their own stems


def test_weighted_bm25_is_exact(store, put):
    rng = random.Random(7)
    rows = []
    for i in range(60):
        title, body = rng.choices(WORDS, k=3), rng.choices(WORDS[: 2 + i % 7], k=rng.randint(3, 40))
        put(f"{rng.choice(WORDS)}/{i:03d}.md", " ".join(body), title=" ".join(title))
        path = store.list_documents()[-1].path
        del path
        rows.append((title, title, body))
    paths = {d.id: d.path.replace("/", " ").replace(".", " ").split() for d in store.list_documents()}
    columns = {
        i + 1: (*row, paths[i + 1]) for i, row in enumerate(rows)
    }  # the stand-in's heading is the title
    query = ["lamp", "fig", "cat"]
    n = len(columns)
    lengths = {i: sum(map(len, c)) for i, c in columns.items()}
    mean = sum(lengths.values()) / n
    expected = {}
    for i, parts in columns.items():
        score = 0.0
        for word in query:
            holding = sum(any(word in part for part in c) for c in columns.values())
            idf = max(math.log((n - holding + 0.5) / (holding + 0.5)), 1e-6)
            tf = sum(w * part.count(word) for w, part in zip(WEIGHTS, parts, strict=True))
            score += idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * lengths[i] / mean))
        if any(word in part for word in query for part in parts):
            expected[i] = score
    found = dict(store.keyword.match("lamp OR fig OR cat", limit=100))
    assert found.keys() == expected.keys()
    for i, score in expected.items():
        assert found[i] == pytest.approx(score, rel=1e-9)
    ranked = [s for _, s in store.keyword.match("lamp OR fig OR cat", limit=100)]
    assert ranked == sorted(ranked, reverse=True)
    assert set(store.keyword.candidates("lamp OR fig OR cat")) == expected.keys()


def test_document_frequency_follows_the_index(store, put):
    first = put("a.md", "running water")
    put("b.md", "he runs")
    assert store.keyword.document_frequency(["run", "Running", "water", "absent"]) == {
        "run": 2,
        "Running": 2,
        "water": 1,
        "absent": 0,
    }
    with store.writing() as writer:
        writer.delete_documents([first])
    assert store.keyword.document_frequency(["run", "water"]) == {"run": 1, "water": 0}


def test_near_terms_know_all_four_edits_and_no_more(store, put):
    put("a.md", "kitchen umbrella naïve привет")
    for typo in ("kithen", "kitchhen", "kitcsen", "kicthen", "KITCEN"):
        assert store.keyword.near_terms(typo) == ["kitchen"], typo
    assert store.keyword.near_terms("naibe") == ["naiv"] or store.keyword.near_terms("naibe") == ["naive"]
    assert store.keyword.near_terms("превет") == ["привет"]
    assert store.keyword.near_terms("ktchn") == []
    assert store.keyword.near_terms("kitchen") == []
    assert store.keyword.near_terms("厨房设计") == []


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("如何设置文件权限", "文件权限"),
        ("如何设置文件权限", "限"),
        ("ファイルの権限を変更する方法", "権限"),
        ("ﾌｧｲﾙの権限", "ファイル"),
        ("파일 권한을 바꾸는 방법", "권한"),
        ("ＱＭＤ　ｓｅａｒｃｈ", "qmd"),
        ("qmd search", "ＱＭＤ"),
        ("café crème", "CAFE"),
        ("用Python写的程序", "python"),
        ("用Python写的程序", "写的"),
        ("水", "水"),
        ("𠮷野家", "𠮷野"),
        ("面积为100㎡，价格另议", "100㎡"),
        ("面积为100㎡", "㎡"),
        ("面积为100㎡，价格另议", "100"),
        ("Java™，x²", "java"),
        ("Java™，x²", "x²"),
        ("x²", "x2"),
        ("Ⅲ期临床，①安装", "Ⅲ期"),
        ("Ⅲ期临床", "III期"),
        ("Ⅲ期临床，①安装", "①安装"),
        (unicodedata.normalize("NFD", "ガイドとデータ"), "ガイド"),
        ("ガイドとデータ", unicodedata.normalize("NFD", "データ")),
        ("H₂O… 5\u00a0µm", "H2O"),
    ],
)
def test_cjk_and_folding_find(store, put, text, query):
    put("a.md", text)
    put("b.md", "文限 件权 unrelated 法方")
    hits = store.keyword.match(" ".join(query_terms(query)))
    assert {i for i, _ in hits} >= {1}


@given(st.text("ab1²①Ⅲ㎡™，,。 がか\u3099ｶﾞ权限é\u0301ﬁ", max_size=12), st.sampled_from(["", "，", "㎡"]))
def test_a_word_is_folded_alike_whatever_stands_beside_it(text, beside):
    assert query_terms(text) == query_terms(fold(text))
    for word in text.split(" "):
        assert fold(f"{word} {beside}").startswith(fold(word).rstrip())
        assert fold(fold(word)) == fold(word)


def test_cjk_bigrams_keep_their_order(store, put):
    put("a.md", "文件权限")
    put("b.md", "权限和文件")
    assert [i for i, _ in store.keyword.match(query_terms("权限和")[0])] == [2]
    assert [i for i, _ in store.keyword.match(query_terms("件权")[0])] == [1]


def test_text_without_cjk_passes_untouched():
    for text in ("plain ascii", "naïve Ærøskøbing", "Привет мир"):
        assert index_text(text) is text


def test_illegal_expressions_are_usage_errors(store, put):
    put("a.md", "x")
    for expression in ('"open', "AND", "nocolumn: x", "(", "*"):
        with pytest.raises(UsageError, match="keyword expression"):
            store.keyword.match(expression)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), {"a/one.md", "a/b/two.md", "three.txt"}),
        (Filter(collections=("notes",)), {"a/one.md", "a/b/two.md", "three.txt"}),
        (Filter(collections=("elsewhere",)), set()),
        (Filter(path="a"), {"a/one.md", "a/b/two.md"}),
        (Filter(path="**/*.md"), {"a/one.md", "a/b/two.md"}),
        (Filter(path="a/**/two.md"), {"a/b/two.md"}),
        (Filter(path="three.txt"), {"three.txt"}),
        (Filter(path="thr"), set()),
        (Filter(tags=("area",)), {"a/one.md", "a/b/two.md"}),
        (Filter(tags=("#Area/Work",)), {"a/one.md"}),
        (Filter(tags=("area", "x")), {"a/b/two.md"}),
        (Filter(tags=("are",)), set()),
        (Filter(type="Markdown"), {"a/one.md"}),
        (Filter(lang="de"), {"three.txt"}),
        (Filter(title="ÜBER"), {"three.txt"}),
        (Filter(title="uber A"), {"three.txt"}),
        (Filter(title="Àllés"), {"three.txt"}),
        (Filter(title=unicodedata.normalize("NFD", "über")), {"three.txt"}),
        (Filter(title="100%"), set()),
        (Filter(title="カ"), set()),
        (Filter(title="ガ"), {"a/b/two.md"}),
        (Filter(title="ｶﾞ"), {"a/b/two.md"}),
        (Filter(tags=("resume",)), {"a/one.md"}),
        (Filter(tags=("#Résumé",)), {"a/one.md"}),
        (Filter(tags=("ärea/work",)), {"a/one.md"}),
        (Filter(tags=("resum",)), set()),
        (Filter(after="2024-03-01"), {"a/one.md", "three.txt"}),
        (Filter(before="2024-03-01"), {"a/b/two.md"}),
        (Filter(after="2024-03-01", before="2024-03-02"), {"a/one.md"}),
    ],
)
def test_filters_hold_for_keyword_and_chunk_ids_alike(store, put, wanted, expected):
    from dataclasses import replace

    from standin import document

    for path, more in (
        ("a/one.md", {"tags": ("Area/Work", "Résumé/2024"), "date": "2024-03-01", "type": "markdown"}),
        ("a/b/two.md", {"tags": ("#area/home", "x"), "title": "ガイド", "date": "2024-02-29T23:00"}),
        ("three.txt", {"title": "über alles", "lang": "de"}),
    ):
        with store.writing() as writer:
            parsed = replace(document("shared words"), **more)
            writer.put_document(
                "notes", path, size=1, mtime_ns=1_800_000_000 * 10**9, hash=path.encode(), document=parsed
            )
    matched = {c.path for c in store.chunks([i for i, _ in store.keyword.match("shared", wanted)]).values()}
    assert matched == expected
    ids = store.chunk_ids(wanted)
    if wanted == Filter():
        assert ids is None
    else:
        assert {c.path for c in store.chunks(ids).values()} == expected
        assert sorted(store.keyword.candidates("shared", wanted)) == ids.tolist()
