"""Indexes against a brute-force model in float64."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qmd import ivf
from qmd.errors import IndexNotTrained
from qmd.ivf import SearchParams


def data(n, d, seed=0, clustered=False):
    g = torch.Generator().manual_seed(seed)
    if not clustered:
        return torch.randn(n, d, generator=g)
    centres = torch.randn(20, d, generator=g)
    return centres[torch.randint(0, 20, (n,), generator=g)] + 0.2 * torch.randn(n, d, generator=g)


def truth(x, ids, q, k, metric):
    x, q, ids = np.asarray(x, np.float64), np.asarray(q, np.float64), np.asarray(ids)
    s = ((q[:, None] - x[None]) ** 2).sum(-1) if metric == "l2" else -(q @ x.T)
    out_d = np.full((len(q), k), np.inf)
    out_i = np.full((len(q), k), -1)
    order = np.argsort(s, 1, kind="stable")[:, :k]
    out_d[:, : order.shape[1]] = np.take_along_axis(s, order, 1)
    out_i[:, : order.shape[1]] = ids[order] if len(ids) else -1
    return (out_d if metric == "l2" else -out_d), out_i


def assert_same(got, want, tolerance=1e-4):
    """Equal distances; equal ids except where distances tie."""
    (d, i), (wd, wi) = got, want
    d, i = np.asarray(d), np.asarray(i)
    np.testing.assert_allclose(d, wd, rtol=tolerance, atol=tolerance)
    for r in range(len(i)):
        differing = i[r] != wi[r]
        for c in np.nonzero(differing)[0]:
            assert (np.abs(wd[r] - wd[r][c]) <= tolerance * (1 + abs(wd[r][c]))).sum() > 1 or c == len(
                i[r]
            ) - 1


def make(kind, d, metric, nlist=8):
    if kind == "flat":
        return ivf.IndexFlat(d, metric)
    return ivf.IndexIVFFlat(d=d, nlist=nlist, nprobe=nlist, metric=metric)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("clustered", [False, True])
def test_search_matches_brute_force(kind, metric, clustered):
    x, q = data(3000, 24, 1, clustered), data(70, 24, 2, clustered)
    index = make(kind, 24, metric)
    index.train(x)
    index.add(x)
    for mode in ("csr", "matrix"):
        got = index.search(q, 10, SearchParams(search_mode=mode))
        assert got[0].dtype == torch.float32
        assert got[1].dtype == torch.int64
        assert_same(got, truth(x, np.arange(3000), q, 10, metric))


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("mode", ["csr", "matrix"])
def test_all_lists_probed_equals_flat_bit_for_bit(metric, mode):
    x, q = data(5000, 48, 3), data(100, 48, 4)
    flat, index = make("flat", 48, metric), make("ivf", 48, metric, nlist=40)
    index.train(x)
    for i in (flat, index):
        i.add(x[:3000])
        i.add(x[3000:])
    a, b = flat.search(q, 15), index.search(q, 15, SearchParams(search_mode=mode))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, "f2", "f4", "f8", ">f4"]
)
def test_every_float_dtype_goes_in_and_float32_comes_out(kind, dtype):
    x = data(400, 16)
    x = x.to(dtype) if isinstance(dtype, torch.dtype) else x.numpy().astype(dtype)
    index = make(kind, 16, "l2", 4)
    index.train(x)
    index.add(x)
    d, i = index.search(x[:9], 3)
    assert isinstance(d, torch.Tensor if isinstance(dtype, torch.dtype) else np.ndarray)
    assert d.dtype in (torch.float32, np.float32)
    assert i.dtype in (torch.int64, np.int64)
    assert np.asarray(i)[:, 0].tolist() == list(range(9))


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("mode", ["csr", "matrix"])
def test_places_without_a_hit_are_padded(kind, metric, mode):
    x = data(10, 8)
    index = make(kind, 8, metric, 2)
    index.train(x)
    worst = np.inf if metric == "l2" else -np.inf
    d, i = index.search(x.numpy(), 4, SearchParams(search_mode=mode))
    assert (i == -1).all()
    assert (d == worst).all()
    index.add(x)
    d, i = index.search(x.numpy(), 25, SearchParams(search_mode=mode))
    assert (i[:, 10:] == -1).all()
    assert (d[:, 10:] == worst).all()
    assert sorted(i[0, :10].tolist()) == list(range(10))
    assert index.search(x[:0], 3)[1].shape == (0, 3)


def test_bad_input_is_refused_with_reason():
    index = ivf.IndexIVFFlat(d=4, nlist=2)
    x = data(10, 4)
    with pytest.raises(IndexNotTrained, match="train"):
        index.add(x)
    with pytest.raises(IndexNotTrained, match="train"):
        index.search(x, 1)
    with pytest.raises(ValueError, match="at least as many"):
        index.train(x[:1])
    index.train(x)
    index.add(x)
    bad = x.clone()
    bad[3, 2] = float("nan")
    for call in (
        index.add,
        lambda v: index.search(v, 2),
        index.train,
        lambda v: index.add_with_ids(v, range(10)),
    ):
        with pytest.raises(ValueError, match=r"NaN|holds"):
            call(bad)
    with pytest.raises(ValueError, match="shape"):
        index.add(data(3, 5))
    with pytest.raises(ValueError, match="at least 1"):
        index.search(x, 0)
    with pytest.raises(ValueError, match="one id"):
        index.add_with_ids(x, [1, 2])
    with pytest.raises(ValueError, match="negative"):
        index.add_with_ids(x[:1], [-1])
    with pytest.raises(ValueError, match="search_mode"):
        index.search_mode = "fast"
    with pytest.raises(ValueError, match="nprobe"):
        index.nprobe = 0
    assert index.ntotal == 10


def test_far_off_centre_rows_find_themselves():
    g = torch.Generator().manual_seed(5)
    x = 100 + 0.01 * torch.randn(4000, 64, generator=g)
    for index in (ivf.IndexFlatL2(64), ivf.IndexIVFFlat(d=64, nlist=16, nprobe=4)):
        index.train(x)
        index.add(x)
        for mode in ("csr", "matrix"):
            d, i = index.search(x, 1, SearchParams(search_mode=mode))
            assert (i[:, 0] == torch.arange(4000)).all()
            assert (d == 0).all()
        assert torch.equal(index.reconstruct(7), x[7])


def test_training_is_seeded_and_leaves_the_global_state_alone():
    x = data(2000, 8)
    before = torch.get_rng_state()
    a, b = make("ivf", 8, "l2"), make("ivf", 8, "l2")
    a.train(x)
    b.train(x)
    assert torch.equal(a.centroids, b.centroids)
    assert torch.equal(before, torch.get_rng_state())


def test_kmeans_repairs_empty_lists_and_balances():
    same = torch.cat([torch.zeros(500, 4), data(12, 4)])
    c = ivf.kmeans(same, 8, niter=20)
    numbers = torch.cdist(same, c).argmin(1)
    assert torch.isfinite(c).all()
    assert len(numbers.unique()) >= 6
    g = torch.Generator().manual_seed(0)
    skewed = torch.cat([0.05 * torch.randn(3000, 8, generator=g), torch.randn(1000, 8, generator=g)])
    plain, even = (ivf.IndexIVFFlat(d=8, nlist=32, balance=b) for b in (0.0, 1.0))
    for index in (plain, even):
        index.train(skewed)
        index.add(skewed)
    assert even.imbalance < plain.imbalance
    assert torch.allclose(ivf.kmeans(data(300, 8), 5, metric="ip").norm(dim=1), torch.ones(5), atol=1e-5)


def test_faiss_positional_form():
    x = data(500, 8)
    for index in (
        ivf.IndexIVFFlat(ivf.IndexFlatL2(8), 8, 4, ivf.METRIC_L2),
        ivf.IndexIVFFlat(8, 4, "l2"),
        ivf.IndexIVFFlat(d=8, nlist=4, metric="l2"),
    ):
        index.train(x)
        index.add(x)
        assert (index.nlist, index.d, index.metric) == (4, 8, "l2")
        assert index.search(x[:5], 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert ivf.IndexIVFFlat(ivf.IndexFlatIP(8), 8, 4).metric == "ip"
    quantizer = ivf.IndexFlatL2(8)
    quantizer.add(x[:4])
    assert torch.equal(ivf.IndexIVFFlat(quantizer, 8, 4).centroids, x[:4])


@pytest.mark.parametrize(
    "profile", ["exact", "speed", "approx", "approx_fast", "approx_balanced", "approx_quality"]
)
@pytest.mark.parametrize("strategy", ["uniform", "distance_weighted"])
@pytest.mark.parametrize("ordering", [None, "none", "residual_norm_asc"])
@pytest.mark.parametrize("per_list", [None, True, False])
def test_every_combination_of_search_params_works(profile, strategy, ordering, per_list):
    x, q = data(2000, 12, 1), data(20, 12, 2)
    index = make("ivf", 12, "l2", 10)
    index.train(x)
    index.add(x)
    want = truth(x, np.arange(2000), q, 5, "l2")
    for budget in (None, 300):
        for mode in ("csr", "matrix"):
            params = SearchParams(
                profile=profile, budget_strategy=strategy, list_ordering=ordering, use_per_list_sizes=per_list,
                candidate_budget=budget, search_mode=mode, debug_stats=True,
            )  # fmt: skip
            got = index.search(q, 5, params)
            if budget is None or profile == "exact":
                assert_same(got, want)
            else:
                assert 100 <= index.last_search_stats["candidates_per_query"] <= 320


def test_roads_agree_under_budgets_and_ordering_changes_what_is_read():
    x, q = data(4000, 16, 1), data(50, 16, 2)
    index = ivf.IndexIVFFlat(d=16, nlist=16, nprobe=8)
    index.train(x)
    index.add(x)
    hits = {}
    for ordering in ("none", "residual_norm_asc"):
        p = {"candidate_budget": 400, "use_per_list_sizes": True, "list_ordering": ordering}
        a = index.search(q, 10, SearchParams(**p, search_mode="csr"))
        b = index.search(q, 10, SearchParams(**p, search_mode="matrix"))
        assert torch.equal(a[1], b[1])
        hits[ordering] = a[1]
    assert not torch.equal(hits["none"], hits["residual_norm_asc"])
    with pytest.raises(ValueError, match="l2"):
        SearchParams(list_ordering="residual_norm_asc").ordering("ip")


def test_max_codes_stops_early():
    x, q = data(4000, 16, 1), data(30, 16, 2)
    index = ivf.IndexIVFFlat(d=16, nlist=16, nprobe=16)
    index.train(x)
    index.add(x)
    index.max_codes = 300
    _, i = index.search(q, 10, SearchParams(debug_stats=True))
    assert index.last_search_stats["candidates_per_query"] < 1000
    full = index.search(q, 10, SearchParams(max_codes=0))
    assert 0.1 < (i[:, :, None] == full[1][:, None]).any(-1).double().mean() < 1
    assert torch.equal(
        index.search(q, 10, SearchParams(search_mode="csr"))[1],
        index.search(q, 10, SearchParams(search_mode="matrix"))[1],
    )


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("share", [0.003, 0.3, 0.9])
def test_filters_in_every_form(kind, metric, share):
    x, q = data(3000, 12, 1), data(25, 12, 2)
    index = make(kind, 12, metric)
    index.train(x)
    index.add(x)
    keep = torch.rand(3000, generator=torch.Generator().manual_seed(1)) < share
    ids = keep.nonzero().reshape(-1)
    want = truth(x[keep], ids, q, 10, metric)
    forms = [keep, keep.numpy(), ids, ids.tolist(), ivf.IDSelectorBatch(ids), lambda i: keep[i.clamp(min=0)]]
    for form in forms:
        for mode in ("csr", "matrix"):
            for exact_below in (None, 0):
                p = SearchParams(search_mode=mode, exact_below=exact_below)
                assert_same(index.search(q, 10, p, filter=form), want)
    assert_same(
        index.search(q, 10, SearchParams(sel=ivf.IDSelectorNot(ivf.IDSelectorNot(ivf.IDSelectorBatch(ids))))),
        want,
    )
    low = index.search(q, 10, filter=ivf.IDSelectorRange(0, 50))[1]
    assert ((low >= 0) & (low < 50)).all()
    assert (index.search(q, 10, filter=[])[1] == -1).all()


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_range_search(kind, metric):
    x, q = data(2000, 8, 1), data(30, 8, 2)
    index = make(kind, 8, metric)
    index.train(x)
    index.add(x)
    radius = 4.0 if metric == "l2" else 6.0
    lims, d, i = index.range_search(q.numpy(), radius)
    s = (
        ((q[:, None].double() - x[None].double()) ** 2).sum(-1)
        if metric == "l2"
        else -(q.double() @ x.double().T)
    )
    inside = s < (radius if metric == "l2" else -radius)
    assert lims[0] == 0
    assert len(d) == len(i) == lims[-1] == int(inside.sum())
    for r in range(30):
        assert sorted(i[lims[r] : lims[r + 1]].tolist()) == inside[r].nonzero().reshape(-1).tolist()
    few = index.range_search(q, radius, filter=list(range(100)))
    assert int(few[0][-1]) == int(inside[:, :100].sum())


def test_duplicate_ids_are_defined():
    x = data(20, 4)
    index = make("ivf", 4, "l2", 2)
    index.train(x)
    index.add_with_ids(x[:2], [7, 7])
    assert index.ntotal == 2
    assert index.search(x[:1], 2)[1].tolist() == [[7, 7]]
    index.update_vectors([7, 7], x[3:5])
    assert index.ntotal == 1
    assert torch.equal(index.reconstruct(7), x[4])
    with pytest.raises(KeyError, match="9"):
        index.update_vectors([7, 9], x[:2])
    assert index.remove_ids([7]) == 1
    with pytest.raises(KeyError):
        index.reconstruct(7)


def test_merge_reset_reconstruct():
    x = data(600, 8)
    a, b = make("ivf", 8, "l2", 4), make("ivf", 8, "l2", 3)
    for index, part in ((a, x[:400]), (b, x[400:])):
        index.train(part)
        index.add(part)
    a.merge_from(b, add_id=400)
    assert (a.ntotal, b.ntotal) == (600, 0)
    assert torch.equal(a.reconstruct_n(0, 600), x)
    assert torch.equal(a.reconstruct_batch(torch.tensor([500, 3])), x[[500, 3]])
    assert a.search(x[450:451], 1)[1].item() == 450
    a.reset()
    assert a.ntotal == 0
    a.add(x[:5])
    assert a.search(x[:5], 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]


OPERATION = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 60)),
    st.tuples(st.just("add_one"), st.integers(1, 25)),
    st.tuples(st.just("remove"), st.floats(0.0, 0.9)),
    st.tuples(st.just("update"), st.floats(0.0, 0.4)),
    st.tuples(st.just("save"), st.booleans()),
    st.tuples(st.just("order"), st.just(0)),
    st.tuples(st.just("compact"), st.just(0)),
)


@example(  # free pieces of a loaded file are smaller than a page
    kind="ivf",
    metric="l2",
    operations=[("add", 2), ("remove", 0.0), ("save", False), ("remove", 0.5), ("add_one", 4)],
    seed=32,
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["flat", "ivf"]),
    metric=st.sampled_from(["l2", "ip"]),
    operations=st.lists(OPERATION, max_size=12),
    seed=st.integers(0, 999),
)
def test_random_operations_against_a_model(tmp_path, kind, metric, operations, seed):
    g = torch.Generator().manual_seed(seed)
    d = 6
    index = make(kind, d, metric, 5)
    index.train(torch.randn(40, d, generator=g))
    model: dict[int, torch.Tensor] = {}
    next_id = 0
    for name, argument in operations:
        held = sorted(model)
        if name in ("add", "add_one"):
            x = torch.randn(argument, d, generator=g)
            ids = torch.arange(next_id, next_id + argument)
            next_id += argument
            if name == "add":
                index.add_with_ids(x, ids)
            else:
                for row, i in zip(x, ids, strict=True):
                    index.add_with_ids(row[None], i[None])
            model.update(zip(ids.tolist(), x, strict=True))
        elif name == "remove":
            gone = [i for i in held if torch.rand((), generator=g) < argument]
            assert index.remove_ids(gone) == len(gone)
            for i in gone:
                del model[i]
        elif name == "update":
            changed = [i for i in held if torch.rand((), generator=g) < argument]
            x = torch.randn(len(changed), d, generator=g)
            if changed:
                index.update_vectors(changed, x)
            model.update(zip(changed, x, strict=True))
        elif name == "save":
            index.save(tmp_path / "i.safetensors")
            index = type(index).load(tmp_path / "i.safetensors", mmap=argument)
        elif name == "order" and kind == "ivf" and metric == "l2":
            index.rebuild_lists()
        elif name == "compact":
            index.compact()
        assert index.ntotal == len(model)
        ids = np.asarray(sorted(model), dtype=np.int64)
        x = torch.stack([model[int(i)] for i in ids]) if len(ids) else torch.zeros(0, d)
        q = torch.randn(4, d, generator=g)
        allowed = torch.rand(next_id + 1, generator=g) < 0.5
        for mode in ("csr", "matrix"):
            p = SearchParams(search_mode=mode)
            assert_same(index.search(q, 7, p), truth(x, ids, q, 7, metric))
            chosen = allowed[torch.from_numpy(ids)]
            assert_same(
                index.search(q, 7, p, filter=allowed), truth(x[chosen], ids[chosen.numpy()], q, 7, metric)
            )


def test_single_row_adds_stay_linear_and_small():
    import time

    x = data(6000, 32)
    index = make("ivf", 32, "l2", 16)
    index.train(x)
    times = []
    for part in range(3):
        begin = time.process_time()
        for i in range(part * 2000, part * 2000 + 2000):
            index.add(x[i : i + 1])
        times.append(time.process_time() - begin)
    assert times[2] < 2.5 * times[0] + 0.2
    assert index.nbytes <= 1.3 * 6000 * (32 * 4 + 12)
    assert torch.equal(index.reconstruct_n(0, 6000), x)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", ["random", "clustered", "wild"])
def test_int8_shadows_change_no_answer(metric, kind, monkeypatch):
    """Codes choose, rows decide; `wild` has one huge row, whose codes' error leaves every query open."""
    x, q = data(4000, 40, 1, kind == "clustered"), data(60, 40, 2, kind == "clustered")
    if kind == "wild":
        x[17] *= 1000
    index = ivf.IndexIVFFlat(d=40, nlist=16, nprobe=5, metric=metric)
    index.train(x)
    index.add(x)
    asked = []
    from qmd.ivf import scan

    monkeypatch.setattr(scan, "unsettled", lambda *a, f=scan.unsettled: asked.append(f(*a)) or asked[-1])
    singly = []
    monkeypatch.setattr(scan, "read_each", lambda *a, f=scan.read_each: singly.append(f(*a)) or singly[-1])

    def both(queries, **how):
        answers = []
        for index.shadow in (False, True):
            answers.append(index.search(queries, 10, SearchParams(search_mode="matrix", **how)))
        torch.testing.assert_close(answers[0][0], answers[1][0], rtol=0, atol=0)
        assert torch.equal(answers[0][1], answers[1][1])

    def check():
        for n in (1, 3, 35, 60):
            both(q[:n])
            both(q[:n], max_codes=500)
            both(q[:n], filter=torch.arange(0, 4000, 3), exact_below=0)

    check()
    assert asked
    assert singly
    if kind == "wild":
        assert any(a.numel() for a in asked)
        assert any(again for _, again in singly)
    codes = index._lists.shadows()
    rows = torch.cat([index._lists.table().views[r][0] for r in range(16)])
    back = torch.cat([c.float() * s.float()[:, None] for c, s in codes.views])
    assert float((back - rows).norm(dim=1).max()) <= codes.worst
    product = torch.cat([torch._weight_int8pack_mm(q.bfloat16(), c, s) for c, s in codes.views], 1)
    assert bool(((product.float() - q @ rows.T).abs() <= codes.error(q)[:, None]).all())
    assert index.nbytes < 1.35 * (x.numel() * 4 + 12 * 4000)
    index.remove_ids(torch.arange(0, 1500))
    index.add(data(700, 40, 5))
    index.update_vectors([1600, 1700], data(2, 40, 6))
    check()
    index.compact()
    check()


@pytest.fixture
def rows_moved(monkeypatch):
    """How many rows each copy inside the lists moved, as it goes on."""
    from qmd.ivf import lists

    moved = []

    def count(source, span, target, to, copy=lists.copy_rows):
        moved.append(span.stop - span.start)
        copy(source, span, target, to)

    monkeypatch.setattr(lists, "copy_rows", count)
    return moved


def test_lists_grown_row_by_row_leave_little_idle_and_move_little(rows_moved):
    """Long lists were once joined whole, all at about the same time, and half of the memory lay in pieces too small."""
    from qmd.ivf import lists
    from qmd.ivf.codec import Codec

    n, nlist = 60_000, 16
    held = lists.Lists(nlist, Codec("fp32", 1), torch.device("cpu"))
    share = np.random.default_rng(0).dirichlet(np.full(nlist, 4.0))
    where = np.random.default_rng(1).choice(nlist, n, p=share)
    rows, ids, norms = torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n), torch.zeros(n)
    for i, list_no in enumerate(where.tolist()):
        held._append_span(list_no, rows[i : i + 1], ids[i : i + 1], norms[i : i + 1])
        if i > 5000 and i % 500 == 0:
            assert sum(s.rows.shape[0] for s in held.slabs) < 1.25 * i
    held.ntotal = n
    assert 0 < sum(rows_moved) < n // 4
    assert max(len(runs) for runs in held.lists) <= 32
    for list_no, runs in enumerate(held.lists):
        kept = torch.cat([r.slab.rows[r.start : r.start + r.size, 0] for r in runs]).sort().values
        assert kept.long().tolist() == np.flatnonzero(where == list_no).tolist()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_million_single_row_adds_stay_linear(rows_moved):
    """Counted, not timed alone: a loaded machine once failed the clock."""
    import time

    x = data(10_000, 32)
    index = make("ivf", 32, "l2", 256)
    index.train(x)
    times = []
    for _ in range(10):
        begin = time.process_time()
        for i in range(100_000):
            index.add(x[i % 10_000 : i % 10_000 + 1])
        times.append(time.process_time() - begin)
    assert sum(rows_moved) < 4 * 1_000_000
    assert min(times[-3:]) < 2 * min(times[:3])
    assert index.nbytes <= 1.3 * 1_000_000 * (32 * 4 + 12)


def test_many_removals_give_memory_back():
    x = data(20_000, 16)
    index = make("ivf", 16, "l2", 8)
    index.train(x)
    index.add(x)
    before = index.nbytes
    assert index.remove_ids(ivf.IDSelectorRange(0, 15_000)) == 15_000
    assert index.nbytes < 0.4 * before
    assert_same(index.search(x[:5], 3), truth(x[15_000:], np.arange(15_000, 20_000), x[:5], 3, "l2"))


@pytest.mark.parametrize("d", [25, 100])
@pytest.mark.parametrize("text", ["IVF8,Flat", "IVF8,SQ8"])
def test_rows_of_odd_width_never_go_through_int8_products(text, d, monkeypatch):
    """torch's kernel reads beyond such rows: wrong numbers, or a crash."""
    x = data(2000, d)
    index = ivf.index_factory(d, text)
    index.train(x)
    index.add(x)
    index.nprobe, index.shadow = 8, True
    monkeypatch.setattr(torch, "_weight_int8pack_mm", None)
    for n in (1, 5, 30):
        rows = index.reconstruct_n(0, 2000)
        got = index.search(x[:n], 5, SearchParams(search_mode="matrix"))
        assert_same(got, truth(rows, np.arange(2000), x[:n], 5, "l2"), 1e-3)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("mean,sd", [(10, 0.1), (1, 0.1), (0, 1)])
def test_int8_rows_in_tight_clusters_are_found_whatever_the_batch(metric, mean, sd):
    g = torch.Generator().manual_seed(0)
    centres = mean * torch.sign(torch.randn(16, 64, generator=g))
    x = centres[torch.arange(6000) % 16] + sd * torch.randn(6000, 64, generator=g)
    index = ivf.IndexIVFScalarQuantizer(d=64, nlist=16, nprobe=16, metric=metric)
    index.train(x)
    index.add(x)
    want = index.search(x[:30], 10, SearchParams(search_mode="csr"))[0]
    for n in (1, 6, 30):
        got = [index.search(q, 10, SearchParams(search_mode="matrix"))[0] for q in x[:30].split(n)]
        torch.testing.assert_close(torch.cat(got), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("text", ["Flat", "IVF4,Flat"])
@pytest.mark.parametrize("mode", ["matrix", "csr"])
def test_tight_clusters_far_from_zero_are_told_apart(text, mode):
    """Distances there are smaller than what float32 products round off."""
    far = torch.tensor([100.0, -100.0])[torch.arange(1500) % 2][:, None]
    x = far + 0.01 * data(1500, 64)
    index = ivf.index_factory(64, text)
    index.train(x)
    index.add(x)
    index.nprobe = 4
    for how in ({}, {"filter": torch.arange(0, 1500, 2)}, {"filter": torch.arange(100)}):
        ids = how.get("filter", torch.arange(1500))
        q = x[ids[:30]]
        want = truth(x[ids], ids, q, 5, "l2")
        for n in (1, 4, 30):
            got = [index.search(part, 5, SearchParams(search_mode=mode), **how) for part in q.split(n)]
            assert_same([torch.cat(t) for t in zip(*got, strict=True)], want, 1e-5)


def test_first_rows_far_off_do_not_blur_those_that_follow():
    x = data(300, 8)
    index = ivf.IndexFlatL2(8)
    index.add(1e4 + data(2, 8, 1).abs())
    index.add(x)
    assert torch.equal(index.reconstruct_n(2, 300), x)
    assert index.search(x, 1)[1][:, 0].tolist() == list(range(2, 302))
    assert index.search(index.reconstruct_n(0, 2), 1)[1][:, 0].tolist() == [0, 1]


def test_threads_that_first_want_sorted_lists_or_shadows_leave_the_rows_whole():
    x = data(6000, 16)
    made = ivf.IndexIVFFlat(d=16, nlist=16, nprobe=16)
    made.train(x)
    made.add(x)
    want = made.search(x[:8], 3, SearchParams(search_mode="csr"))[1]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for params in (SearchParams(profile="approx_fast", candidate_budget=10**6), None):
            for _ in range(5):
                index = made.clone()
                index.shadow = params is None
                ready = threading.Barrier(4)

                def ask(index=index, ready=ready, params=params):
                    ready.wait()
                    return [index.search(q, 3, params)[1] for q in x[:8].split(2)]

                with ThreadPoolExecutor(4) as pool:
                    answers = [f.result() for f in [pool.submit(ask) for _ in range(4)]]
                assert all(torch.equal(torch.cat(a), want) for a in answers)
                ids = index.ids
                assert ids.unique().numel() == 6000
                assert torch.equal(index._rows_at(index._lists.all_addresses()), x[ids])
    finally:
        sys.setswitchinterval(before)


def test_exact_below_counts_for_one_query_as_for_many():
    x = data(3000, 8)
    index = ivf.IndexIVFFlat(d=8, nlist=64, nprobe=1)
    index.train(x)
    index.add(x)
    params = SearchParams(filter=torch.tensor([5, 6, 7]), exact_below=10)
    assert all(set(index.search(q[None], 3, params)[1][0].tolist()) == {5, 6, 7} for q in x[:20])


def test_indexes_share_no_memory_with_what_they_took_over():
    x = data(200, 8)
    a, b = ivf.IndexFlatL2(8), ivf.IndexFlatL2(8)
    a.add(x)
    b.load_state_dict(a.state_dict())
    b.remove_ids([0, 1, 2])
    b.add(data(3, 8, 9))
    assert torch.equal(a.reconstruct_n(), x)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", ["IVF16,Flat", "IVF16,SQ8", "IVF16,SQfp16", "IVF16,PQ8x4"])
def test_scores_kept_or_looked_at_again_give_the_same_answers(kind, metric, monkeypatch):
    """Where few rows are read all scores are kept; else the best groups' rows are read again."""
    from qmd.ivf import grouped

    x, q = data(3000, 40, 1, True), data(70, 40, 2, True)
    index = ivf.index_factory(40, kind, metric)
    index.nprobe = 5
    index.train(x)
    index.add(x[:2500])
    index.remove_ids(torch.arange(300, 700))
    index.add(x[2500:])
    for how in (
        {},
        {"max_codes": 300},
        {"candidate_budget": 200, "use_per_list_sizes": True},
        {"filter": torch.arange(0, 3000, 3), "exact_below": 0},
        {"filter": torch.arange(0, 40), "exact_below": 0},
    ):
        answers = []
        for kept in (0, 1 << 24):
            monkeypatch.setattr(grouped, "_KEPT", kept)
            for k in (1, 10, 400):
                answers.append(index.search(q, k, SearchParams(search_mode="csr", **how)))
        for again, all_ in zip(answers[:3], answers[3:], strict=True):
            torch.testing.assert_close(all_[0], again[0], rtol=1e-5, atol=1e-5)
            assert torch.equal(all_[1] < 0, again[1] < 0)
            if kind != "IVF16,PQ8x4":  # so few codes that rows share them
                assert (all_[1] == again[1]).float().mean() > 0.99


def test_values_beyond_float16_are_refused_and_nothing_is_lost():
    x = data(600, 16, 1)
    index = ivf.index_factory(16, "IVF4,SQfp16")
    index.train(x)
    index.add(x)
    far = x[:2] * 1e6
    with pytest.raises(ValueError, match="float16"):
        index.add(far)
    with pytest.raises(ValueError, match="float16"):
        index.update_vectors(torch.tensor([5, 6]), far)
    assert index.ntotal == 600
    torch.testing.assert_close(index.reconstruct(5), x[5], rtol=1e-3, atol=1e-3)
