"""A few queries that want nothing special are answered in one go: the answers are those of the long way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qmd import ivf
from qmd.ivf import SearchParams, single

LONG = SearchParams()  # any parameters at all go the long way


@pytest.fixture
def taken(monkeypatch):
    """What searches at once gave back, None where they left the question to the long way."""
    answers = []

    def search(self, *a, f=single.AtOnce.search):
        answers.append(f(self, *a))
        return answers[-1]

    monkeypatch.setattr(single.AtOnce, "search", search)
    return answers


def rows(n, seed, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(24, 40, generator=g)
    return centres[torch.randint(0, 24, (n,), generator=g)] + 0.4 * torch.randn(n, 40, generator=g) + shift


def made(kind, metric, x):
    index = ivf.IndexIVFFlat(d=40, nlist=16, nprobe=5, metric=metric)
    if kind == "refined":
        inner = ivf.IndexIVFScalarQuantizer(d=40, nlist=16, nprobe=5, metric=metric)
        index = ivf.IndexRefineFlat(inner, k_factor=2.0)
    else:
        index.shadow = True
    index.train(x)
    index.add(x)
    return index


def check(index, q, k=10):
    for n in (1, 2, 7, 16):
        near, far = index.search(q[:n], k), index.search(q[:n], k, LONG)
        torch.testing.assert_close(near[0], far[0], rtol=0, atol=0)
        assert torch.equal(near[1], far[1])


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", ["plain", "refined"])
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_answers_are_those_of_the_long_way(kind, metric, shift, taken):
    x, q = rows(4000, 1, shift), rows(16, 2, shift)
    index = made(kind, metric, x)
    check(index, q)
    if not shift:  # far off, products say little, and refined rows are shifted otherwise
        assert [a is not None for a in taken] == [True] * 4
    d, i = index.search(q[:3].numpy(), 10)
    assert isinstance(d, np.ndarray)
    assert i.dtype == np.int64
    assert np.array_equal(i, index.search(q[:3], 10)[1].numpy())


@pytest.mark.parametrize("kind", ["plain", "refined"])
def test_it_follows_every_change(kind, taken):
    x, q = rows(4000, 1), rows(16, 2)
    index = made(kind, "l2", x)
    check(index, q)
    index.remove_ids(torch.arange(0, 900))
    check(index, q)
    assert int(index.search(q, 50)[1].min()) >= 900
    index.add(rows(500, 3))
    check(index, q)
    index.update_vectors(torch.tensor([1200, 1300]), q[:2])
    check(index, q)
    assert index.search(q[:2], 1)[1].reshape(-1).tolist() == [1200, 1300]
    index.nprobe = 9
    check(index, q)
    index.reset()
    index.add(rows(3000, 4))
    check(index, q)
    assert any(a is not None for a in taken)


def test_what_it_cannot_answer_goes_the_long_way(taken):
    x, q = rows(4000, 1), rows(16, 2)
    index = made("plain", "l2", x)
    check(index, q, k=3000)  # more than the probed lists hold
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64):
        check(index, q.to(dtype))
    check(index, q.T.contiguous().T)
    assert not any(a is not None for a in taken)
    wants_grad = q[:2].clone().requires_grad_()
    assert torch.equal(index.search(wants_grad, 5)[1], index.search(q[:2], 5, LONG)[1])
    bad = q[:2].clone()
    bad[1, 3] = float("nan")
    for wrong in (bad, q[:2, :39], q[:2] * float("inf")):
        with pytest.raises(ValueError, match="queries"):
            index.search(wrong, 5)
    assert index.search(q[:0], 5)[1].shape == (0, 5)
    scores, ids = index.search(q[:2], 5)
    scores += 1.0  # ordinary tensors, that their owner may write to
    ids += 1


def test_copies_of_one_row_go_the_long_way(taken):
    x, q = rows(4000, 1), rows(16, 2)
    x[100:3500] = x[0]
    check(made("plain", "l2", x), torch.cat([x[:1], q[1:]]))
    assert any(a is None for a in taken)
