"""`qmd.bench` on a fixture in the original's form, and on a BEIR folder."""

import json

import pytest

from qmd.bench import bench, documents_indexed, read_fixture, without_questions
from qmd.config import Config
from qmd.errors import NotFound, UsageError

from .conftest import PickReranker

FILES = {
    "Heap.md": "# Heap\n\nHow memory is allocated on the heap.\n",
    "sub/tomato.md": "# Tomato\n\nTomatoes rot when watered unevenly.\n",
    "python.md": "# Python\n\nA snake that swallows its prey.\n",
}


def fixture(tmp_path, **changes):
    tree = {
        "description": "three",
        "version": 1,
        "queries": [
            {
                "id": "1",
                "query": "heap",
                "type": "exact",
                "expected_files": ["heap.md"],
                "expected_in_top_k": 1,
            },
            {"id": "2", "query": "tomatoes", "expected_files": ["qmd://notes/sub/tomato.md"]},
            {"id": "3", "query": "snake heap", "expected_files": ["Python.md", "absent.md"]},
        ],
        **changes,
    }
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(tree))
    return path


def test_a_fixture_of_the_original(build, tmp_path):
    index = build(FILES, reranker=PickReranker("snake"))
    report = bench(index, read_fixture(fixture(tmp_path)), k=1)
    assert report.questions == 3
    assert set(report.results) == {"keyword", "vector", "hybrid", "reranked"}
    reranked = report.results["reranked"]
    assert reranked.by_question["3"]["recall@1"] == 0.5
    assert report.results["keyword"].by_question["1"]["ndcg@1"] == 1.0
    assert {"keyword", "embed", "rerank"} <= reranked.stages_ms.keys()
    assert [c.second for c in report.comparisons] == ["vector", "hybrid", "reranked"]
    assert all(0 < c.p <= 1 for c in report.comparisons)
    assert without_questions(report).results["keyword"].by_question == {}


def test_without_a_reranker_that_way_is_named(build, tmp_path):
    report = bench(build(FILES), read_fixture(fixture(tmp_path)))
    assert "models.reranker" in report.left_out["reranked"]
    assert "reranked" not in report.results


def test_two_configurations_are_compared_way_by_way(build, tmp_path):
    index = build(FILES)
    report = bench(index, read_fixture(fixture(tmp_path)), ways=["keyword", "hybrid"], against=index)
    assert [(c.first, c.second, c.difference, c.p) for c in report.comparisons] == [
        ("against keyword", "keyword", 0.0, 1.0),
        ("against hybrid", "hybrid", 0.0, 1.0),
    ]


def test_a_beir_folder(tmp_path):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    texts = {"d1": "memory on the heap", "d2": "tomatoes rot", "d3": "snakes swallow"}
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "title": "", "text": t}) + "\n" for i, t in texts.items())
    )
    (folder / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "heap"}\n{"_id": "q2", "text": "snakes"}\n{"_id": "q3", "text": "unjudged"}\n'
    )
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td3\t1\n"
    )
    read = read_fixture(folder)
    assert [(q.id, dict(q.relevant)) for q in read.questions] == [("q1", {"d1": 2.0}), ("q2", {"d3": 1.0})]
    with documents_indexed(read, Config()) as index:
        report = bench(index, read, ways=["keyword"])
    assert report.results["keyword"].means["ndcg@10"] == 1.0
    assert report.results["keyword"].means["p@10"] == 0.1


def test_a_beir_folder_may_hold_line_separators_in_its_texts(tmp_path):
    row = json.dumps({"_id": "d1", "title": "", "text": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "corpus.jsonl").write_text(row + "\n", encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "two"}\n')
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    assert read_fixture(tmp_path).documents == {"d1": ("", "one\u2028two")}


@pytest.mark.parametrize("text", ["[]", "{}", '{"queries": [{"id": "1"}]}', "nothing"])
def test_what_is_no_fixture_is_said(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="neither a fixture"):
        read_fixture(path)


def test_wrong_words_are_errors(build, tmp_path):
    index = build(FILES)
    with pytest.raises(UsageError, match="no way to search"):
        bench(index, read_fixture(fixture(tmp_path)), ways=["magic"])
    with pytest.raises(NotFound, match="no collection"):
        bench(index, read_fixture(fixture(tmp_path)), collection="absent")
    with pytest.raises(UsageError, match="no question"):
        bench(index, read_fixture(fixture(tmp_path, queries=[])))
