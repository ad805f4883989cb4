"""Loops over lists: compiled or plain, on one thread or several, they give the same answers."""

import threading

import numpy as np
import pytest
import torch

from qmd import ivf
from qmd.ivf import SearchParams, loops, workers


@pytest.fixture
def threads():
    """torch has three threads, as on a machine with cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def index_of(text, metric="l2"):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((3000, 32), dtype=np.float32)
    index = ivf.index_factory(32, text, metric)
    index.train(x)
    index.add(x)
    index.nprobe = 6
    return index, draw.standard_normal((90, 32), dtype=np.float32)


def answers(index, q):
    keep = np.arange(0, 3000, 3)
    out = []
    for mode in ("csr", "matrix"):
        for n in (1, 7, 40, 90):
            for params in (SearchParams(search_mode=mode), SearchParams(search_mode=mode, max_codes=300)):
                out.append(index.search(q[:n], 9, params=params))
                out.append(
                    index.search(q[:n], 9, params=SearchParams(search_mode=mode, exact_below=0), filter=keep)
                )
    return out


def same(one, other):
    for (scores, ids), (also, own) in zip(one, other, strict=True):
        np.testing.assert_array_equal(ids, own)
        np.testing.assert_allclose(scores, also, rtol=1e-6)


KINDS = ["IVF12,Flat", "IVF12,SQ8", "IVF12,SQfp16", "IVF12,PQ8"]


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize("text", KINDS)
def test_plain_python_answers_like_the_compiled_loops(monkeypatch, text, shadow):
    index, q = index_of(text)
    index.shadow = shadow
    assert loops.compiled(loops.minima) is not loops.minima
    compiled = answers(index, q)
    monkeypatch.setattr(loops, "compiled", lambda loop: loop)
    same(compiled, answers(index, q))


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("text", KINDS)
def test_three_threads_answer_like_one(text, metric, threads):
    index, q = index_of(text, metric)
    many = answers(index, q)
    torch.set_num_threads(1)
    same(many, answers(index, q))


def test_a_loop_that_torch_cannot_compile_runs_as_it_is():
    def loop(*anything):
        return len(anything)

    assert loops.compiled(loop) is loop


def test_parts_have_one_thread_and_leave_the_number_of_others_alone(threads, monkeypatch):
    monkeypatch.setattr(workers, "_teams", {})

    def parts():
        inside = workers.share(lambda cut: (cut.stop - cut.start, torch.get_num_threads()), 10)
        return torch.get_num_threads(), inside

    here, inside = workers.lead(parts, torch.device("cpu"))
    assert here == 1
    assert sorted(inside) == [(3, 1), (3, 1), (4, 1)]
    assert torch.get_num_threads() == threads
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]
    assert workers.share(lambda cut: cut, 10) == [slice(0, 10)]


def test_an_error_in_a_part_is_raised(threads):
    def part(cut):
        raise ValueError(f"part {cut.start}")

    with pytest.raises(ValueError, match="part 0"):
        workers.lead(lambda: workers.share(part, 9), torch.device("cpu"))


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("text", ["Flat", *KINDS])
def test_what_is_made_in_inference_mode_serves_outside_of_it(tmp_path, text, many, threads):
    if not many:
        torch.set_num_threads(1)
    with torch.inference_mode():
        index, q = index_of(text)
        index.shadow = True
        inside = answers(index, q)
        index.save(tmp_path / "i.safetensors")
        read = type(index).load(tmp_path / "i.safetensors")
    same(inside, answers(index, q))
    for one in (index, read):
        assert one.remove_ids(np.arange(0, 3000, 7)) == 429
        one.add(q[10:])
        one.update_vectors(np.arange(1, 6), q[:5])
        ids = one.search(q[:5], 2)[1]
        assert ids[:, 0].tolist() == [1, 2, 3, 4, 5] or "Flat" not in text


def test_searches_of_many_threads_do_not_wait_for_ever(threads):
    index, q = index_of("IVF12,Flat")
    want = index.search(q, 5)[1]
    found = {}
    asking = [
        threading.Thread(target=lambda i=i: found.update({i: index.search(q, 5)[1]}), daemon=True)
        for i in range(12)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert sorted(found) == list(range(12))
    for ids in found.values():
        np.testing.assert_array_equal(ids, want)
