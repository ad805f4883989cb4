import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmd.search import dense
from qmd.search.dense import Scan
from qmd.store.matrix import quantise

METHODS = ["exact"] + (["int8"] if dense.numkong is not None else [])


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Clustered rows: neighbours differ by little, as real embeddings do."""
    rng = np.random.default_rng(seed)
    rows = (
        rng.standard_normal((max(n // 20, 1), d)).repeat(20, axis=0)[:n] + rng.standard_normal((n, d)) * 0.7
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute(rows, ids, query, k, allowed=None):
    scores = rows.astype(np.float64) @ query
    pairs = [(-s, i) for s, i in zip(scores, ids, strict=True) if allowed is None or i in allowed]
    return [i for _, i in sorted(pairs)[:k]]


@pytest.mark.parametrize("method", METHODS)
def test_finds_what_brute_force_finds(method):
    rows = unit(6000, 128)
    ids = np.arange(6000, dtype=np.int64) * 3 + 1
    queries = unit(40, 128, seed=1)
    scan = Scan(rows, ids)
    same = 0
    for query in queries:
        found, scores = scan.search(query, 10, method=method)
        assert np.all(np.diff(scores) <= 0)
        assert scores == pytest.approx(rows[(found - 1) // 3] @ query, abs=1e-5)
        same += len({*found.tolist()} & {*brute(rows, ids, query, 10)})
    assert same / 400 >= 0.999


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_filter_takes_part_before_the_top_k(method, share):
    rows = unit(2000, 64)
    ids = np.arange(2000, dtype=np.int64)
    query = rows[7]
    order = np.argsort(rows @ query)
    allowed = ids[order[: int(2000 * share)]]  # the worst rows only: a filter after the top-k would find none
    found, _ = Scan(rows, ids).search(query, 5, allowed=allowed, method=method)
    assert found.tolist() == brute(rows, ids, query, 5, set(allowed.tolist()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 60), st.data())
def test_any_size_and_any_filter(n, k, data):
    rows = np.eye(64, dtype=np.float32)[np.arange(n) % 3]  # ties everywhere
    ids = np.random.default_rng(n).permutation(n).astype(np.int64)
    allowed = np.array(data.draw(st.lists(st.integers(0, 50), unique=True)), dtype=np.int64)
    query = np.eye(64, dtype=np.float32)[0]
    for method in METHODS:
        found, _ = Scan(rows, ids).search(query, k, allowed=allowed, method=method)
        expected = brute(rows, ids, query, k, set(allowed.tolist()))
        assert len(found) == len(expected)
        assert found.tolist() == expected


@pytest.mark.skipif(dense.numkong is None, reason="numkong is not installed")
def test_large_matrices_are_prescanned(monkeypatch):
    rows, ids = unit(2000, 64), np.arange(2000, dtype=np.int64)
    codes = quantise(rows)
    zeros = (
        np.zeros_like(codes[0]),
        np.ones_like(codes[1]),
    )  # misleading codes: the prescan must be seen to use them
    assert Scan(rows, ids, *zeros).search(rows[1999], 1)[0].tolist() == [1999]
    monkeypatch.setattr(dense, "PRESCAN_ROWS", 100)
    assert Scan(rows, ids, *codes).search(rows[3], 1)[0].tolist() == [3]
    found = {int(Scan(rows, ids, *zeros).search(rows[i], 1)[0][0]) == i for i in range(0, 2000, 50)}
    assert False in found


def test_works_without_the_accelerator(monkeypatch):
    monkeypatch.setattr(dense, "PRESCAN_ROWS", 100)
    monkeypatch.setattr(dense, "numkong", None)
    rows, ids = unit(2000, 64), np.arange(2000, dtype=np.int64)
    assert Scan(rows, ids).search(rows[3], 10)[0].tolist() == brute(rows, ids, rows[3], 10)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_deleted_chunks_are_never_found(method):
    rows, ids = unit(500, 64), np.arange(500, dtype=np.int64)
    ids[100:300] = -1
    found, _ = Scan(rows, ids).search(rows[150], 400, method=method)
    assert sorted(found.tolist()) == [*range(100), *range(300, 500)]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="belong together"):
        Scan(np.zeros((3, 4), np.float32), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="dimensions"):
        Scan(np.zeros((3, 4), np.float32), np.arange(3)).search(np.zeros(5, np.float32), 1)
