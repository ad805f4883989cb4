"""Parts of a search on threads of one core each: two small products side by side take half the time of two that
each keep all cores waiting for one another. Knows no index."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
_LEADERS = 2  # searches at a time, each on all cores; each keeps its large buffers
_guard = threading.Lock()
_teams: dict[tuple[int, int, str], ThreadPoolExecutor] = {}
_leading = threading.local()


def lead(work: Callable[[], _T], device: torch.device) -> _T:
    """work(), where `share` has all of torch's threads. It runs on a thread of its own, since the helpers of a thread
    that has had torch share out its operations wait for more by turning, and take the time of those that work."""
    cores = torch.get_num_threads()
    if cores < 2 or device.type != "cpu" or not torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        return work()
    leaders, helpers = _team(_LEADERS, "leader"), _team(cores, "worker")
    quiet = torch.is_inference_mode_enabled()  # of this thread: the others are to be alike

    def run() -> _T:
        _leading.helpers, _leading.cores = helpers, cores
        try:
            with torch.inference_mode(quiet):
                return work()
        finally:
            _leading.cores = 1

    return leaders.submit(run).result()


def share(work: Callable[[slice], _T], total: int) -> list[_T]:
    """work(slice) of slices that make up `total`, side by side within `lead`; of an empty one where that is 0."""
    cores = getattr(_leading, "cores", 1)
    edges = [total * i // cores for i in range(cores + 1)]
    cuts = [slice(a, b) for a, b in itertools.pairwise(edges) if b > a] or [slice(0, 0)]
    if len(cuts) < 2:
        return [work(cut) for cut in cuts]
    helpers: ThreadPoolExecutor = _leading.helpers
    quiet = torch.is_inference_mode_enabled()

    def one(cut: slice) -> _T:
        with torch.inference_mode(quiet):
            return work(cut)

    return list(helpers.map(one, cuts))


def share_rows(work: Callable[[slice], tuple[Tensor, Tensor]], total: int) -> tuple[Tensor, Tensor]:
    """As `share`: two tensors with a row for each of `total`, the parts one below the other."""
    parts = share(work, total)
    return (
        parts[0] if len(parts) == 1 else (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
    )


def _team(size: int, kind: str) -> ThreadPoolExecutor:
    """Made by the thread that leads no work itself: it has the number of threads that all others are to have."""
    key = os.getpid(), size, kind  # threads do not survive a fork
    with _guard:
        team = _teams.get(key)
        if team is None:
            team = ThreadPoolExecutor(size, f"qmd-ivf-{kind}", _settle)
            started = threading.Barrier(size + 1)
            waiting = [team.submit(started.wait) for _ in range(size)]
            started.wait()
            for one in waiting:
                one.result()
            # what _settle said was also for threads yet to come
            torch.set_num_threads(torch.get_num_threads())
            _teams[key] = team
        return team


def _settle() -> None:
    torch.get_num_threads()  # the first question takes the number from the process
    torch.set_num_threads(1)
