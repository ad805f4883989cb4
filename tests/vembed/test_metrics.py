"""Metrics against values worked out by hand and against an oracle that counts one query at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qmd.vembed.evaluation.metrics import (
    bootstrap,
    compute_mrr,
    compute_ndcg_at_k,
    compute_recall_at_k,
    reciprocal_ranks,
)


def test_recall_of_one_to_one_pairs() -> None:
    similarities = np.array([[0.9, 0.1, 0.0], [0.8, 0.3, 0.1], [0.3, 0.2, 0.1]])
    assert compute_recall_at_k(similarities, 1) == pytest.approx(1 / 3)
    assert compute_recall_at_k(similarities, 2) == pytest.approx(2 / 3)
    assert compute_recall_at_k(similarities, 3) == 1.0


def test_a_tie_counts_against_the_model() -> None:
    constant = np.zeros((4, 4))
    assert compute_recall_at_k(constant, 1) == 0.0
    assert compute_recall_at_k(constant, 3) == 0.0
    assert compute_mrr(constant) == 0.25


def test_several_positives() -> None:
    similarities = np.array([[0.9, 0.8, 0.1, 0.7]])
    relevant = np.array([[True, False, False, True]])
    assert compute_recall_at_k(similarities, 1, relevant) == 0.5
    assert compute_recall_at_k(similarities, 3, relevant) == 1.0
    ideal = 1 + 1 / np.log2(3)
    assert compute_ndcg_at_k(similarities, 3, relevant) == pytest.approx((1 + 1 / np.log2(4)) / ideal)


@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(-3, 3)),
    st.data(),
)
def test_ranks_agree_with_counting(scores: np.ndarray, data: st.DataObject) -> None:
    n, m = scores.shape
    right = np.array(data.draw(st.lists(st.integers(0, m - 1), min_size=n, max_size=n)))
    expected = [
        1 / (1 + sum(scores[i, j] >= scores[i, right[i]] for j in range(m) if j != right[i]))
        for i in range(n)
    ]
    assert reciprocal_ranks(scores, right) == pytest.approx(expected)
    for k in (1, 2, m):
        hits = [1 / value <= k for value in expected]
        assert compute_recall_at_k(scores, k, right) == pytest.approx(np.mean(hits))


@pytest.mark.parametrize(
    ("similarities", "relevant"),
    [
        (np.zeros(3), None),
        (np.zeros((3, 2)), None),
        (np.array([[np.nan]]), None),
        (np.zeros((2, 2)), np.array([0, 5])),
        (np.zeros((2, 2)), np.zeros((2, 2), dtype=bool)),
    ],
)
def test_what_cannot_be_measured_is_refused(similarities: np.ndarray, relevant: np.ndarray | None) -> None:
    with pytest.raises(ValueError, match=r"."):
        compute_recall_at_k(similarities, 1, relevant)


def test_bootstrap_holds_the_mean_and_narrows() -> None:
    few, many = (np.random.default_rng(1).random(n) for n in (20, 2000))
    assert bootstrap(few).low < few.mean() < bootstrap(few).high
    assert bootstrap(many).high - bootstrap(many).low < bootstrap(few).high - bootstrap(few).low
    assert bootstrap(few) == bootstrap(few)
