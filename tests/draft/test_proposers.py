from __future__ import annotations

import pytest

from qmd.draft.cost import CostTable, Ledger, best_length
from qmd.draft.proposers import Situation, SuffixProposer
from qmd.draft.sampling import Sampling


def ask(proposer, limit=8):
    return proposer.propose(Situation([], None, Sampling(0)), limit)


def test_copies_what_followed_the_longest_match():
    p = SuffixProposer()
    p.start([1, 2, 3, 4, 50, 9, 3, 4, 60, 7, 1, 2, 3, 4])
    offer = ask(p, 3)
    assert offer.tokens == (50, 9, 3)
    assert offer.match == 4
    assert offer.origin == "passage"
    assert list(offer.confidence) == sorted(offer.confidence)


def test_passages_and_earlier_answers_are_searched_and_named():
    p = SuffixProposer()
    p.remember([11, 12, 13, 14])
    p.start([90, 21, 22], passages=[[21, 22, 23, 24]])
    assert (ask(p).tokens, ask(p).origin) == ((23, 24), "passage")
    p.extend([11, 12])
    assert (ask(p).tokens, ask(p).origin) == ((13, 14), "answer")


def test_repetition_goes_round():
    p = SuffixProposer()
    p.start([1])
    p.extend([7, 8, 7, 8])
    offer = ask(p, 5)
    assert offer.tokens == (7, 8, 7, 8, 7)
    assert offer.origin == "self"


def test_nothing_known_nothing_offered():
    p = SuffixProposer()
    p.start([1, 2, 3, 4])
    assert ask(p).tokens == ()


def test_confidence_is_learnt():
    p = SuffixProposer()
    p.start([1, 2, 3, 1, 2])
    before = ask(p)
    for _ in range(50):
        p.observe(before, 1, 0)
    assert ask(p).confidence[0] < 0.5 * before.confidence[0]


def test_length_follows_the_cost_table():
    cheap = CostTable(1.0, (1.0, 1.05, 1.1, 1.15, 1.2))
    steep = CostTable(1.0, (1.0, 2.0, 3.0, 4.0, 5.0))
    sure, unsure = [0.9] * 4, [0.04] * 4
    assert best_length(sure, cheap)[0] == 4
    assert best_length(sure, steep) == (0, 1.0)
    assert best_length(unsure, cheap) == (0, 1.0)
    step = CostTable(1.0, (1.0, 1.2, 1.2, 2.5, 2.5))  # a stair: two offered tokens cost what one does
    assert best_length([0.8] * 4, step)[0] == 2
    assert best_length([0.8] * 4, cheap, token_cost=1.0)[0] == 0


def test_cost_table_fills_gaps_and_never_falls():
    table = CostTable.from_times({1: 0.1, 2: 0.12, 4: 0.2, 6: 0.18})
    assert table.relative == pytest.approx((1.0, 1.2, 1.6, 2.0, 2.0, 2.0))
    assert table.cost(40) == pytest.approx(2.0)


def test_a_proposer_that_does_not_pay_is_switched_off():
    ledger = Ledger(trial=5)
    for _ in range(5):
        assert ledger.pays
        ledger.add(1, 1.5)
    assert not ledger.pays
    assert ledger.gain == pytest.approx(1 / 1.5)
