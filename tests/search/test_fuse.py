import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmd.search.fuse import fuse_ranks

rankings = st.lists(st.integers(0, 30), unique=True, max_size=20)


def test_agreement_beats_one_first_place():
    fused = fuse_ranks({"keyword": ["a", "b"], "vector": ["c", "b"]}, {"keyword": 1.0, "vector": 1.0})
    assert [key for key, _ in fused] == ["b", "a", "c"]


def test_the_score_of_a_double_winner_is_one():
    assert fuse_ranks({"x": ["a"], "y": ["a", "b"]}, {"x": 1.0, "y": 0.5})[0] == ("a", pytest.approx(1.0))


def test_a_list_without_weight_says_nothing():
    assert fuse_ranks({"x": ["a"], "y": ["b"]}, {"x": 1.0, "y": 0.0}) == [("a", 1.0)]
    with pytest.raises(ValueError, match="negative"):
        fuse_ranks({"x": ["a"]}, {"x": -1.0})


@given(rankings, rankings)
def test_scores_are_the_formula(first, second):
    fused = fuse_ranks({"x": first, "y": second}, {"x": 2.0, "y": 1.0}, k=10)
    assert {key for key, _ in fused} == {*first, *second}
    for key, score in fused:
        expected = sum(
            weight / (11 + ranking.index(key))
            for ranking, weight in ((first, 2.0), (second, 1.0))
            if key in ranking
        )
        assert score * 3 / 11 == pytest.approx(expected)
    assert [score for _, score in fused] == sorted((score for _, score in fused), reverse=True)


@given(rankings)
def test_one_list_keeps_its_order(ranking):
    assert [key for key, _ in fuse_ranks({"x": ranking}, {"x": 1.0})] == ranking
