"""The roads of other devices: tiles as batches, and the Triton kernel where its interpreter can run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types

import pytest
import torch

from qmd import ivf
from qmd.ivf import SearchParams, grouped, operators, scan, tiles

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WAYS = ["ieee"] if INTERPRETED else ["batches"]


def data(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=WAYS)
def far(request, monkeypatch):
    """Every search takes the road of a device that is far away, and this way of filling in."""
    asked = []
    monkeypatch.setattr(tiles, "wanted", lambda device: asked.append(device) or True)
    monkeypatch.setattr(tiles, "best_way", lambda *a: request.param)
    yield monkeypatch
    assert asked or INTERPRETED  # some tests are left out there


def both(far, index, q, k, **how):
    """The answer by tiles, and by the loop over runs."""
    got = index.search(q, k, SearchParams(search_mode="csr", **how))
    with far.context() as m:
        m.setattr(tiles, "wanted", lambda device: False)
        return got, index.search(q, k, SearchParams(search_mode="csr", **how))


def filled(text, x, metric="l2", nprobe=6):
    index = ivf.index_factory(x.shape[1], text, metric)
    index.train(x)
    index.add(x[: len(x) * 2 // 3])
    index.add(x[len(x) * 2 // 3 :])  # a second slab
    index.nprobe = nprobe
    return index


CASES = [(m, t, n) for m in ("l2", "ip") for t in ("Flat", "SQ8", "SQbf16", "PQ8") for n in (1, 5, 90)]
FEW = [
    ("l2", "Flat", 1),
    ("ip", "Flat", 20),
    ("l2", "SQ8", 20),
    ("ip", "SQbf16", 3),
]  # a tile takes 50 ms there


@pytest.mark.parametrize(("metric", "text", "nq"), FEW if INTERPRETED else CASES)
def test_tiles_answer_like_the_loop(far, metric, text, nq):
    x = data(450 if INTERPRETED else 1800, 24, 1)
    index = filled(f"IVF{4 if INTERPRETED else 12},{text}", x, metric, 3)
    q = data(nq, 24, 2)
    keep = torch.arange(0, len(x), 3)
    for how in ({}, {"max_codes": 300}, {"candidate_budget": 250, "use_per_list_sizes": True}):
        a, b = both(far, index, q, 9, **how)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    a, b = both(far, index, q, 9, filter=keep, exact_below=0)
    assert torch.equal(a[1], b[1])
    assert bool((a[1] % 3 <= 0).all())


@pytest.mark.parametrize("d", [40, 200, 520])
def test_group_minima_are_those_of_the_scores(far, d):
    """Every minimum, for each of the three shapes of groups, against scores in float64."""
    x, q = data(700, d, 3), data(40, d, 4)
    index = filled("IVF5,Flat", x, nprobe=3)
    lists, table = index._lists, index._lists.table()
    made = []
    far.setattr(tiles, "make", lambda *a, f=tiles.make: made.append((a, f(*a))) or made[-1][1])
    index.search(q, 5, SearchParams(search_mode="csr"))
    (args, got), (group, unit) = made[0], grouped.shape_of(d)
    flat = args[4]
    for task in range(0, flat.shape[0], 7):
        run = int(flat[task])
        rows, norms = (t.double() for t in table.views[run][:2])
        score = norms - 2 * rows @ args[3][task // (flat.shape[0] // 40)].double()
        height, units = int(got.height[run]), int(got.units[run])
        padded = torch.full((height * group,), float("inf"), dtype=torch.float64)
        padded[: len(score)] = score
        want = torch.full((units * unit,), float("inf"), dtype=torch.float64)
        want[:height] = padded.view(group, height).amin(0)
        at = got.first[task] + torch.arange(units * unit) * got.stride[task]
        torch.testing.assert_close(got.minima[at].double(), want, rtol=1e-5, atol=1e-4)
        dense = want.view(unit, units).amin(0)
        torch.testing.assert_close(got.dense[task, :units].double(), dense, rtol=1e-5, atol=1e-4)
        assert bool(torch.isinf(got.dense[task, units:]).all())
    assert lists.ntotal == 700


def test_lists_that_are_empty_or_in_many_pieces(far):
    x = data(400, 16, 5)
    index = ivf.IndexIVFFlat(d=16, nlist=8 if INTERPRETED else 30, nprobe=30)
    index.train(x)
    index.add(x[:20])
    for row in x[20:60]:
        index.add(row[None])
    a, b = both(far, index, x[:20], 8)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    index.remove_ids(torch.arange(5, 60))
    a, b = both(far, index, x[:20], 8)
    assert torch.equal(a[1], b[1])
    assert bool((a[1][:, 5:] == -1).all())


def test_far_devices_group_one_query_and_are_waited_for_once(far):
    """What makes the host wait is counted: none may depend on the number of lists or queries."""
    if INTERPRETED:
        pytest.skip("the interpreter itself reads values")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Waits(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = str(func)
            if name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten._unique", "aten.bincount")):
                Waits.count += 1
            return func(*args, **(kwargs or {}))

    x = data(3000, 16, 1)
    seen = {}
    for nlist in (8, 40):
        index = filled(f"IVF{nlist},Flat", x)
        index.compact()  # each further slab is one more to wait for
        assert index._use_grouped(1, 6, SearchParams())
        probes = index._probes(index._lists, x[:64], SearchParams(max_codes=600))
        for n in (1, 64):
            Waits.count = 0
            with Waits():
                tiles_only = grouped._by_tiles(
                    index._lists, index._lists.table(), x[:n], probes.rows(slice(n)),
                    scan.expand(index._lists.table(), probes.rows(slice(n)))[0].reshape(-1), None, "l2",
                )  # fmt: skip
            assert tiles_only.dense.shape[0] == n * scan.expand(index._lists.table(), probes)[0].shape[1]
            seen[nlist, n] = Waits.count
    assert len(set(seen.values())) == 1
    assert seen[8, 1] <= 3  # one transfer of three numbers


def test_a_poor_backend_can_make_tiles(far):
    if INTERPRETED:
        pytest.skip("batches only")
    sys.path.insert(0, os.path.dirname(__file__))
    spec = importlib.util.spec_from_file_location(
        "parts", os.path.join(os.path.dirname(__file__), "test_parts.py")
    )
    parts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parts)
    x, q = data(1200, 32, 1), data(40, 32, 2)
    want = filled("IVF16,Flat", x).search(q, 5, SearchParams(search_mode="csr"))
    operators.forget()
    try:
        with parts.Refusing():
            got = filled("IVF16,Flat", x).search(q, 5, SearchParams(search_mode="csr"))
    finally:
        operators.forget()
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
    assert (got[1] == want[1]).double().mean() > 0.99


@pytest.mark.parametrize(
    ("flaw", "best"), [("", "ieee"), ("slow", "batches"), ("wrong", "batches"), ("fails", "batches")]
)
def test_the_kernel_is_taken_where_it_is_right_and_faster(flaw, best, monkeypatch):
    """A stand-in for the module of the kernel, that answers, lies or fails."""

    def least(job, row_at, norm_at, minima, dense, precision):
        if flaw == "fails":
            raise RuntimeError("no compiler")
        tiles._by_batches(job, minima, dense)
        if flaw == "wrong":
            minima[3] *= 1.001

    module = types.SimpleNamespace(
        PRECISIONS=("ieee",), ERRORS=(RuntimeError,), runs_on=lambda device: True, least=least
    )
    timed = iter([2.0, 3.0 if flaw == "slow" else 1.0])
    monkeypatch.setattr(tiles, "kernels", lambda: module)
    monkeypatch.setattr(tiles, "time_of", lambda *a: next(timed))
    choose = tiles.best_way.__wrapped__
    assert choose(torch.device("cpu"), 24, torch.float32, 16) == best
    assert choose(torch.device("cpu"), 24, torch.uint8, 16) == "batches"


TRITON = importlib.util.find_spec("triton") is not None


@pytest.mark.skipif(not TRITON or INTERPRETED, reason="wants Triton")
def test_the_kernel_in_the_interpreter():
    """The tests above again, on the kernel: Triton decides at its import whether it interprets."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout


@pytest.mark.skipif(not TRITON or INTERPRETED, reason="wants Triton")
@pytest.mark.parametrize(
    ("backend", "arch", "warp"),
    [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64), ("hip", "gfx1100", 32)],
)
def test_the_kernel_compiles_for_cards_that_are_not_here(backend, arch, warp):
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qmd.ivf.triton_minima import minima_kernel

    names = minima_kernel.arg_names
    for kind, precision in ((tl.float32, "tf32x3" if backend == "cuda" else "ieee"), (tl.int8, "ieee")):
        fixed = {
            "D": 128, "GROUP": 8, "UNIT": 8, "BLOCK": 8, "QUERIES": 32, "DEPTH": 32, "KIND": kind, "LIMITED": True,
            "PRECISION": precision,
        }  # fmt: skip
        kinds = dict.fromkeys(names, "*i64") | dict.fromkeys(fixed, "constexpr")
        kinds |= dict.fromkeys(("queries", "minima", "dense"), "*fp32") | {
            "slots": "i32",
            "wide": "i32",
            "alpha": "fp32",
        }
        source = ASTSource(
            fn=minima_kernel, signature=kinds, constexprs={(names.index(n),): v for n, v in fixed.items()}
        )
        made = triton.compile(source, target=GPUTarget(backend, arch, warp))
        assert made.metadata.shared <= 48 << 10  # what every card has
