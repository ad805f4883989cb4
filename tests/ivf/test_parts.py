"""Quantised lists, wrappers, factory, files, Faiss, operators that are missing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from qmd import ivf
from qmd.errors import IndexNotTrained, StoreDamaged, StoreTooNew
from qmd.ivf import SearchParams, operators


def data(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def filled(text, x, metric="l2", nprobe=16):
    index = ivf.index_factory(x.shape[1], text, metric)
    index.train(x)
    index.add(x)
    if "IVF" in text:
        index.nprobe = nprobe
    return index


ALL = [
    "Flat",
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,SQfp16",
    "IVF16,SQbf16",
    "IVF16,SQ8,RFlat",
    "IVF16,PQ16x4",
    "IVF16,PQ16",
    "IVF16,PQ16x4fs,RFlat",
    "IDMap,Flat",
    "IDMap,IVF16,SQ8",
]


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("mode", ["csr", "matrix"])
def test_factory_indexes_find_what_flat_finds(text, metric, mode):
    x, q = data(2000, 32, 1), data(40, 32, 2)
    want = filled("Flat", x, metric).search(q, 10)[1]
    got = filled(text, x, metric).search(q, 10, SearchParams(search_mode=mode))[1]
    recall = (got[:, :, None] == want[:, None]).any(-1).double().mean()
    least = {"IVF16,PQ16x4": 0.4, "IVF16,PQ16": 0.75, "IVF16,PQ16x4fs,RFlat": 0.85}
    assert recall >= least.get(text, 1.0 if "Flat" in text else 0.93)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("nbits", [4, 8])
@pytest.mark.parametrize("by_residual", [False, True])
def test_product_distances_are_those_to_the_decoded_rows(metric, nbits, by_residual):
    x, q = data(3000, 32, 1), data(45, 32, 2)
    index = ivf.IndexIVFPQ(d=32, nlist=8, M=16, nbits=nbits, nprobe=8, metric=metric, by_residual=by_residual)
    index.train(x)
    index.add(x)
    stored = index.reconstruct_n()
    assert (stored - x).square().mean() < (0.12 if nbits == 4 else 0.01)
    assert index._lists.slabs[0].rows.shape[1] == 16 * nbits // 8
    flat = ivf.IndexFlat(32, metric)
    flat.add(stored)
    want = flat.search(q, 10)
    for n in (1, 7, 45):  # one by one, few, many
        for mode in ("csr", "matrix"):
            d, i = index.search(q[:n], 10, SearchParams(search_mode=mode))
            torch.testing.assert_close(d, want[0][:n], rtol=1e-4, atol=1e-4)
            assert (i == want[1][:n]).double().mean() > 0.97


def test_product_codes_keep_what_faiss_keeps():
    """As near to the rows as Faiss's codes of the same size, with the same words."""
    faiss = pytest.importorskip("faiss")
    x = data(8000, 32, 1)
    theirs = faiss.IndexPQ(32, 16, 4)
    theirs.train(x.numpy())
    theirs_off = float(np.square(theirs.sa_decode(theirs.sa_encode(x.numpy())) - x.numpy()).mean())
    index = ivf.IndexIVFPQ(ivf.IndexFlatL2(32), 32, 4, 16, 4, by_residual=False)
    assert (index.M, index.nbits, index.metric) == (16, 4, "l2")
    index.train(x)
    index.add(x)
    assert float((index.reconstruct_n() - x).square().mean()) < 1.05 * theirs_off


@pytest.mark.parametrize(("m", "nbits"), [(5, 8), (32, 5), (0, 8), (1, 4)])
def test_product_codes_that_cannot_be_are_refused(m, nbits):
    with pytest.raises(ValueError, match=r"M is|nbits is"):
        ivf.IndexIVFPQ(d=32, nlist=4, M=m, nbits=nbits)


def test_refine_of_data_far_off_centre_is_exact():
    g = torch.Generator().manual_seed(5)
    x = 100 + 0.01 * torch.randn(3000, 32, generator=g)
    index, flat = filled("IVF16,SQ8,RFlat", x), filled("Flat", x)
    for n in (5, 300):
        a, b = index.search(x[:n], 4), flat.search(x[:n], 4)
        assert torch.equal(a[1], b[1])
        torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("text", ["PQ8", "IVF4,PQ8x5", "HNSW32", "IVF,Flat"])
def test_factory_names_what_it_does_not_know(text):
    with pytest.raises(ValueError, match="not known"):
        ivf.index_factory(8, text)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("qtype", ["int8", "fp16", "bf16"])
@pytest.mark.parametrize("by_residual", [False, True])
def test_quantised_distances_are_those_to_the_stored_rows(metric, qtype, by_residual):
    x, q = data(1500, 32, 1), data(20, 32, 2)
    index = ivf.IndexIVFScalarQuantizer(
        d=32, nlist=8, nprobe=8, metric=metric, qtype=qtype, by_residual=by_residual
    )
    index.train(x)
    index.add(x)
    stored = index.reconstruct_n()
    assert (stored - x).abs().max() < 0.05
    flat = ivf.IndexFlat(32, metric)
    flat.add(stored)
    want = flat.search(q, 10)
    for mode in ("csr", "matrix"):
        d, i = index.search(q, 10, SearchParams(search_mode=mode))
        torch.testing.assert_close(d, want[0], rtol=1e-4, atol=1e-4)
        assert (i == want[1]).double().mean() > 0.97


def test_refine_is_exact_and_follows_changes():
    x, q = data(1500, 32, 1), data(30, 32, 2)
    index = filled("IVF16,SQ8,RFlat", x)
    index.remove_ids(list(range(0, 1500, 3)))
    index.update_vectors([1, 2], x[[2, 1]])
    kept = [i for i in range(1500) if i % 3]
    flat = ivf.IndexFlatL2(32)
    y = x.clone()
    y[[1, 2]] = x[[2, 1]]
    flat.add_with_ids(y[kept], kept)
    a, b = index.search(q, 10), flat.search(q, 10)
    assert torch.equal(a[1], b[1])
    assert torch.equal(a[0], b[0])
    lims, _, _ = index.range_search(q, 40.0)
    want = flat.range_search(q, 40.0)
    assert (lims[-1] - want[0][-1]).abs() <= 0.02 * want[0][-1]
    with pytest.raises(ValueError, match="unique"):
        index.add_with_ids(x[:1], [1])


@pytest.mark.parametrize("text", ["IVF16,Flat", "IVF16,SQ8"])
def test_shards_are_trained_once_and_share_their_lists(text, monkeypatch):
    x = data(2000, 16)
    shards = ivf.IndexShards([ivf.index_factory(16, text) for _ in range(3)])
    calls = []
    kind = type(shards.shards[0])
    monkeypatch.setattr(kind, "train", lambda self, x, f=kind.train: calls.append(f(self, x)))
    shards.train(x)
    assert len(calls) == 1
    one = ivf.index_factory(16, text)
    one.train(x)
    for shard in shards.shards:
        assert torch.equal(shard.centroids, shards.shards[0].centroids)
        assert shard.is_trained
    shards.add(x)
    one.add(x)
    shards.nprobe = one.nprobe = 4
    a, b = shards.search(x[:50], 5), one.search(x[:50], 5)
    assert torch.equal(a[1], b[1])
    with pytest.raises(ValueError, match="holds"):
        shards.shards[0].adopt(one)


def test_shards_answer_like_one_index():
    x, q = data(2000, 16, 1), data(30, 16, 2)
    shards = ivf.IndexShards([ivf.IndexFlatL2(16) for _ in range(3)])
    shards.add(x[:1500])
    shards.add(x[1500:])
    one = filled("Flat", x)
    assert [s.ntotal for s in shards.shards] == [667, 667, 666]
    a, b = shards.search(q, 9), one.search(q, 9)
    assert torch.equal(a[1], b[1])
    assert torch.equal(shards.reconstruct(1999), x[1999])
    assert shards.remove_ids([0, 1999]) == 2


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("mmap", [True, False])
def test_files_bring_back_the_same_answers_and_can_be_changed(tmp_path, text, mmap):
    x, q = data(800, 16, 1), data(20, 16, 2)
    index = filled(text, x)
    index.remove_ids([5, 6])
    index.save(tmp_path / "index")
    again = ivf.load(tmp_path / "index", mmap=mmap)
    a, b = index.search(q, 6), again.search(q, 6)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    before = (tmp_path / "index").read_bytes()
    again.remove_ids([int(b[1][0, 0])])
    again.add_with_ids(q[:1], [5000])
    assert int(again.search(q[:1], 1)[1]) == 5000
    assert again.ntotal == 798
    assert (tmp_path / "index").read_bytes() == before
    again.save(tmp_path / "index")
    assert int(ivf.read_index(tmp_path / "index").search(q[:1], 1)[1]) == 5000
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_damaged_and_later_files_are_refused(tmp_path):
    path = tmp_path / "i"
    filled("Flat", data(50, 4)).save(path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(StoreDamaged):
        ivf.load(path)
    path.write_bytes(good.replace(b'"format_version":"1"', b'"format_version":"9"'))
    with pytest.raises(StoreTooNew, match="9"):
        ivf.load(path)
    with pytest.raises(FileNotFoundError):
        ivf.load(tmp_path / "none")


def test_state_dict_goes_into_another_index():
    x = data(300, 8)
    a = filled("IVF16,Flat", x)
    b = ivf.IndexIVFFlat(d=8, nlist=16)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.search(x, 3)[1], b.search(x, 3)[1])
    with pytest.raises(ValueError, match="another"):
        ivf.IndexFlatL2(8).load_state_dict(a.state_dict())


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("text", ["Flat", "IVF16,Flat", "IVF16,SQ8", "IVF16,SQfp16", "IVF16,SQbf16"])
def test_faiss_there_and_back(text, metric):
    faiss = pytest.importorskip("faiss")
    x, q = data(2000, 32, 1).numpy(), data(40, 32, 2).numpy()
    theirs = faiss.index_factory(32, text, faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)
    theirs.train(x)
    theirs.add(x)
    if "IVF" in text:
        theirs.nprobe = 5
    ours = ivf.from_faiss(theirs)
    back = ivf.to_faiss(ours)
    want_d, want_i = theirs.search(q, 10)
    for d, i in (ours.search(q, 10), back.search(q, 10)):
        np.testing.assert_allclose(d, want_d, rtol=1e-3, atol=1e-3)
        assert (i == want_i).mean() > 0.99
    own = ivf.index_factory(32, text, metric)
    own.train(x)
    own.add_with_ids(x, np.arange(2000) * 2)
    d, i = ivf.to_faiss(own).search(q, 10)
    mine = own.search(q, 10)
    assert (i == mine[1]).mean() > 0.98


class Refusing(TorchDispatchMode):
    """A backend without some operators, as DirectML, MPS and old ROCm are."""

    missing = (
        "searchsorted",
        "isin.",
        "_weight_int8pack_mm",
        "amin.out",
        "addmm.out",
        "index_select.out",
        "sort.stable",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if name.startswith(self.missing):
            raise NotImplementedError(f"{name} is not available on this backend")
        if any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in args):
            raise RuntimeError("float64 is not available on this backend")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("text", ["Flat", "IVF16,Flat", "IVF16,SQ8"])
def test_a_backend_that_lacks_operators_gives_the_same_answers(text):
    x, q = data(1200, 32, 1), data(40, 32, 2)
    keep = torch.arange(0, 1200, 2)
    answers = []
    for poor in (False, True):
        operators.forget()
        try:
            if poor:
                with Refusing():
                    with pytest.raises(NotImplementedError):
                        torch.isin(keep, keep)
                    answers.append(_use(filled(text, x), x, q, keep))
            else:
                answers.append(_use(filled(text, x), x, q, keep))
        finally:
            operators.forget()
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _use(index, x, q, keep):
    out = []
    for mode in ("csr", "matrix"):
        out += [index.search(q, 5, SearchParams(search_mode=mode, max_codes=600))[1]]
        out += [index.search(q, 5, SearchParams(search_mode=mode, exact_below=0), filter=keep)[1]]
    index.remove_ids([1, 2, 3])
    index.update_vectors([10], x[:1])
    out.append(index.search(x[:1], 2)[1].sort().values)
    out.append(index.range_search(q, 30.0)[0])
    return out


def test_two_processes_answer_like_one(tmp_path):
    code = """
import sys, torch, torch.distributed as dist
from qmd.ivf.distributed import DistributedIVF
from qmd import ivf
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
g = torch.Generator().manual_seed(0)
x, q = torch.randn(2000, 16, generator=g), torch.randn(30, 16, generator=g)
index = DistributedIVF(ivf.IndexIVFFlat(d=16, nlist=12, nprobe=4))
try:
    index.train(x[:5])
    raise SystemExit("trained with too little")
except ValueError:
    pass
index.train(x)
index.add(x)
one = ivf.IndexIVFFlat(d=16, nlist=12, nprobe=4)
one.train(x); one.add(x)
a, b = index.search(q, 10), one.search(q, 10)
assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
assert 0 < index.index.ntotal < 2000 and index.ntotal == 2000
for how in ({"max_codes": 300}, {"candidate_budget": 200}, {"candidate_budget": 200, "use_per_list_sizes": True}):
    p = ivf.SearchParams(**how)
    a, b = index.search(q, 10, p), one.search(q, 10, p)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]), how
    assert not torch.equal(b[1], one.search(q, 10)[1]), how
assert index.remove_ids([0, 1, 2]) == 3
f = index.search(q, 10, filter=torch.arange(100))[1]
assert ((f >= -1) & (f < 100)).all()
dist.destroy_process_group()
print("same")
"""
    rendezvous = str(tmp_path / "meet")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(r), rendezvous],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_env(),
        )
        for r in range(2)
    ]
    for w in workers:
        out, err = w.communicate(timeout=120)
        assert "same" in out, err


def _env():
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(ivf.__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def test_cost_model_prefers_grouping_for_large_batches():
    from qmd.ivf.cost import Cost

    c = Cost(few=3e-5, few_more=2e-5, grouped=1e-4, grouped_more=2e-6, row=1e-9, select=3e-5, start=1e-3)
    assert not c.prefers_grouped(1, 32, 512, 512)
    assert c.prefers_grouped(512, 32, 512, 512)
    index = filled("IVF16,Flat", data(2000, 16))
    for threshold, mode in ((0.0, "csr"), (1e9, "matrix")):
        index.auto_search_avg_group_threshold = threshold
        index.search(data(10, 16), 3, SearchParams(debug_stats=True))
        assert index.last_search_stats["search_mode"] == mode
    assert ivf.IndexIVFFlat(d=4, nlist=4).auto_search_avg_group_threshold == 8.0


def test_read_only_numpy_goes_in_without_a_warning(recwarn):
    x = data(50, 8).numpy()
    x.flags.writeable = False
    index = ivf.IndexFlatL2(8)
    index.add(x)
    assert index.search(x[:3], 1)[1][:, 0].tolist() == [0, 1, 2]
    assert not recwarn.list
    assert json.dumps(index.state_dict()["header"])


def test_old_names_are_in_qmd_ivf_index():
    from qmd.ivf.index import IndexFlatIP, IndexFlatL2, IndexIVFFlat
    from qmd.ivf.index import SearchParams as Same

    assert Same is SearchParams
    assert (IndexFlatIP, IndexFlatL2, IndexIVFFlat) == (ivf.IndexFlatIP, ivf.IndexFlatL2, ivf.IndexIVFFlat)


@pytest.mark.parametrize("text", ["Flat", "IVF4,Flat"])
def test_an_index_that_faiss_just_read_is_taken_over(tmp_path, text):
    faiss = pytest.importorskip("faiss")
    x = data(400, 16).numpy()
    theirs = faiss.index_factory(16, text)
    theirs.train(x)
    theirs.add(x)
    faiss.write_index(theirs, str(tmp_path / "f"))
    ours = ivf.from_faiss(faiss.read_index(str(tmp_path / "f")))
    ours.nprobe = 4
    assert ours.search(x, 1)[1][:, 0].tolist() == list(range(400))


def test_shards_of_inverted_files_can_be_saved(tmp_path):
    x = data(400, 8)
    shards = ivf.IndexShards([ivf.IndexIVFFlat(d=8, nlist=4, nprobe=4) for _ in range(2)])
    shards.train(x)
    shards.add(x)
    shards.save(tmp_path / "s")
    assert torch.equal(ivf.load(tmp_path / "s").search(x[:5], 3)[1], shards.search(x[:5], 3)[1])


@pytest.mark.parametrize(
    "change",
    [
        lambda h, s: h.pop("ntotal"),
        lambda h, s: h.update(nlist=30_000_000),
        lambda h, s: h.update(d=[4]),
        lambda h, s: h.update(next_id=3),
        lambda h, s: s["list_sizes"].copy_(torch.tensor([60, -10, 0, 0])),
        lambda h, s: s.update(list_ids=s["list_ids"][:7].clone()),
        lambda h, s: s["list_ids"].fill_(-5),
        lambda h, s: s["norms"].fill_(float("nan")),
        lambda h, s: s.pop("norms"),
        lambda h, s: s.update(centroids=s["centroids"][:, :2].clone()),
        lambda h, s: s.update(packed_embeddings=s["packed_embeddings"][:, :2].clone()),
    ],
)
def test_files_whose_parts_do_not_fit_are_refused(tmp_path, change):
    index = ivf.IndexIVFFlat(d=4, nlist=4)
    index.train(data(50, 4))
    index.add(data(50, 4))
    state = index.state_dict()
    header = state.pop("header")
    state = {name: t.clone() for name, t in state.items()}
    change(header, state)
    about = {"format": "qmd.ivf", "format_version": "1", "header": json.dumps(header)}
    save_file(state, tmp_path / "i", metadata=about)
    with pytest.raises(StoreDamaged):
        ivf.load(tmp_path / "i")


@pytest.mark.parametrize("header", ["{", "[" * 100_000, "[]", "{}"])
def test_files_with_a_bad_header_are_refused(tmp_path, header):
    about = {"format": "qmd.ivf", "format_version": "1", "header": header}
    save_file({"a": torch.zeros(1)}, tmp_path / "i", metadata=about)
    with pytest.raises(StoreDamaged):
        ivf.load(tmp_path / "i")


def test_saved_files_may_be_read_by_whom_the_process_allows(tmp_path):
    before = os.umask(0o022)
    try:
        filled("Flat", data(5, 4)).save(tmp_path / "i")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "i").stat().st_mode) == 0o644


def test_wrappers_hand_settings_on_and_are_whole():
    x = data(400, 8)
    for wrap in (ivf.IndexIDMap, ivf.IndexRefineFlat, lambda i: ivf.IndexShards([i])):
        inner = ivf.IndexIVFFlat(d=8, nlist=4, nprobe=4)
        index = wrap(inner)
        index.max_codes, index.search_mode = np.int64(7), "csr"
        assert (inner.max_codes, inner.search_mode) == (7, "csr")
        with pytest.raises(ValueError, match="max_codes"):
            index.max_codes = -1
        with pytest.raises(ValueError, match="search_mode"):
            index.search_mode = "fast"
        index.max_codes = 0
        index.train(x)
        index.add(x)
        for other in (index.clone(), wrap(ivf.IndexIVFFlat(d=8, nlist=4))):
            other.load_state_dict(index.state_dict())
            assert type(other) is type(index)
            assert torch.equal(other.search(x[:5], 3)[1], index.search(x[:5], 3)[1])


def test_wrapper_load_returns_its_own_kind(tmp_path):
    filled("Flat", data(5, 4)).save(tmp_path / "i")
    with pytest.raises(ValueError, match="IndexFlat"):
        ivf.IndexIDMap.load(tmp_path / "i", map_location="cpu")


def test_wrappers_nest():
    x = data(400, 8)
    index = ivf.IndexShards([ivf.IndexRefineFlat(ivf.IndexIVFFlat(d=8, nlist=4, nprobe=4)) for _ in range(2)])
    index.train(x)
    index.add(x)
    assert index.search(x, 1)[1][:, 0].tolist() == list(range(400))


def test_merge_changes_nothing_when_it_cannot_be_done():
    a, b = ivf.IndexFlatL2(2), ivf.IndexFlatL2(2)
    b.add_with_ids(torch.rand(70_000, 2), torch.arange(70_000).flip(0))
    with pytest.raises(ValueError, match="add_id"):
        a.merge_from(b, add_id=-100)
    assert (a.ntotal, b.ntotal) == (0, 70_000)
    mapped = ivf.IndexIDMap(ivf.IndexFlatL2(2))
    mapped.add(torch.rand(3, 2))
    with pytest.raises(ValueError, match="itself"):
        mapped.merge_from(mapped)
    assert mapped.ntotal == 3


def test_of_equal_ids_both_ways_of_reading_give_the_first():
    index = ivf.IndexFlatL2(2)
    index.add_with_ids(data(60, 2), torch.arange(60) % 3)
    wanted = torch.tensor([2, 0, 1])
    assert torch.equal(
        index.reconstruct_batch(wanted), torch.stack([index.reconstruct(int(i)) for i in wanted])
    )


def test_the_largest_id_leaves_room_for_the_next():
    index = ivf.IndexFlatL2(2)
    with pytest.raises(ValueError, match="2"):
        index.add_with_ids(data(1, 2), [2**63 - 1])
    index.add_with_ids(data(1, 2), [2**63 - 2])
    assert index.ntotal == 1


def test_arrays_with_a_mask_of_another_kind_are_ids():
    x = data(50, 4)
    index = filled("Flat", x)
    for ids in (np.ma.array([3, 4]), pytest.importorskip("pandas").Series([3, 4])):
        assert set(index.search(x[:2], 2, filter=ids)[1].reshape(-1).tolist()) == {3, 4}


def test_kmeans_takes_every_name_of_a_metric():
    x = data(200, 4)
    assert torch.equal(ivf.kmeans(x, 4, metric="L2"), ivf.kmeans(x, 4))


def test_product_codes_of_other_widths_are_not_adopted():
    one, other = (ivf.IndexIVFPQ(d=16, nlist=4, M=m, nbits=b) for m, b in ((8, 4), (4, 8)))
    one.train(data(2000, 16))
    with pytest.raises(ValueError, match="code"):
        other.adopt(one)


def test_faiss_indexes_that_cannot_be_are_refused():
    faiss = pytest.importorskip("faiss")
    x = data(400, 16).numpy()
    with pytest.raises(IndexNotTrained):
        ivf.from_faiss(faiss.index_factory(16, "IVF4,Flat"))
    with pytest.raises(IndexNotTrained):
        ivf.to_faiss(ivf.IndexIVFFlat(d=16, nlist=4))
    panorama = faiss.index_factory(16, "IVF4,FlatPanorama2")
    panorama.train(x)
    panorama.add(x)
    with pytest.raises(ValueError, match="Panorama"):
        ivf.from_faiss(panorama)
    negative = faiss.index_factory(16, "IVF4,Flat")
    negative.train(x)
    negative.add_with_ids(x, -1 - np.arange(400))
    with pytest.raises(ValueError, match="negative"):
        ivf.from_faiss(negative)
