"""Measures against figures worked out by hand, and the significance test against its exact answer."""

import math

import numpy as np
import pytest

from qmd.search.measures import measure, randomisation_test


def test_measures_by_hand():
    got = measure(["x", "a", "y", "b"], {"a": 1.0, "b": 1.0, "c": 1.0}, k=3, depth=4)
    assert got["p@3"] == pytest.approx(1 / 3)
    assert got["recall@3"] == pytest.approx(1 / 3)
    assert got["recall@4"] == pytest.approx(2 / 3)
    assert got["mrr@3"] == pytest.approx(1 / 2)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert got["ndcg@3"] == pytest.approx((1 / math.log2(3)) / ideal)


def test_gains_count_in_ndcg():
    best = measure(["a", "b"], {"a": 3.0, "b": 1.0})
    worse = measure(["b", "a"], {"a": 3.0, "b": 1.0})
    assert best["ndcg@10"] == pytest.approx(1.0)
    assert worse["ndcg@10"] == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_nothing_found_and_nothing_relevant():
    assert set(measure([], {"a": 1.0}).values()) == {0.0}
    with pytest.raises(ValueError, match="cannot be measured"):
        measure(["a"], {})


def test_randomisation_is_exact_for_few_questions():
    # All five differences point one way: 2 of 32 signs are as extreme.
    assert randomisation_test([0.0] * 5, [0.5, 0.25, 0.125, 0.25, 0.5]) == pytest.approx(2 / 32)
    assert randomisation_test([0.1, 0.2], [0.1, 0.2]) == 1.0
    with pytest.raises(ValueError, match="paired"):
        randomisation_test([1.0], [])


def test_sampled_signs_agree_with_the_exact_answer():
    random = np.random.default_rng(1)
    difference = np.round(random.normal(0.05, 0.2, 16), 3)
    bits = (np.arange(1 << 16)[:, None] >> np.arange(16)) & 1
    exact = float(np.mean(np.abs((2 * bits - 1) @ difference) >= abs(difference.sum()) - 1e-12))
    assert randomisation_test([0.0] * 16, difference.tolist()) == pytest.approx(exact, abs=0.015)


def test_chance_is_called_chance():
    random = np.random.default_rng(7)
    found = [
        randomisation_test(a.tolist(), b.tolist(), rounds=2000) < 0.05
        for a, b in ((random.random(50), random.random(50)) for _ in range(60))
    ]
    assert sum(found) <= 9
