"""What the benchmark of the vector index compares, and how it takes turns. The commands are in `ivf.py`."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import environment as machine
import numpy as np
import torch

from qmd import ivf

try:
    import faiss
except ImportError:
    faiss = None  # type: ignore[assignment]


def environment() -> dict[str, Any]:
    """Machine, versions, commit, and what torch and Faiss were built for."""
    names = ("torch", "faiss-cpu", "hnswlib", "torch-ivf")
    return {
        **machine.environment(names),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "faiss_options": faiss.get_compile_options().strip() if faiss else None,
    }


def make_data(kind: str, n: int, nq: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) rows and (nq, d) queries; or the rows of a .npy file, the last nq of them as queries."""
    if kind.endswith(".npy"):
        x = np.load(kind).astype(np.float32)
        return np.ascontiguousarray(x[: len(x) - nq][:n]), np.ascontiguousarray(x[len(x) - nq :])
    g = torch.Generator().manual_seed(0)
    if kind == "random":
        return torch.randn(n, d, generator=g).numpy(), torch.randn(nq, d, generator=g).numpy()
    centres = torch.randn(2000, d, generator=g)

    def draw(m: int) -> np.ndarray:
        picked: np.ndarray = (
            centres[torch.randint(0, 2000, (m,), generator=g)] + 0.6 * torch.randn(m, d, generator=g)
        ).numpy()
        return picked

    return draw(n), draw(nq)


def take_turns(work: dict[str, Callable[[], Any]], repeat: int) -> dict[str, dict[str, float]]:
    """Each contender once for warm-up, then `repeat` rounds of all. Seconds: wall median and spread, CPU
    median."""
    wall: dict[str, list[float]] = {name: [] for name in work}
    cpu: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeat + 1):
        for name, call in work.items():
            c, w = time.process_time(), time.perf_counter()
            call()
            if turn:
                wall[name].append(time.perf_counter() - w)
                cpu[name].append(time.process_time() - c)
    return {
        name: {
            "wall_s": statistics.median(wall[name]),
            "wall_min_s": min(wall[name]),
            "wall_max_s": max(wall[name]),
            "cpu_s": statistics.median(cpu[name]),
        }
        for name in work
    }


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    )


def build_graph(x: np.ndarray) -> Any:
    """hnswlib with M 16, ef_construction 100, ef 128."""
    import hnswlib

    graph = hnswlib.Index("l2", x.shape[1])
    graph.init_index(len(x), M=16, ef_construction=100)
    graph.set_num_threads(os.cpu_count() or 1)
    graph.add_items(x)
    graph.set_ef(128)
    return graph


class Contest:
    """Indexes of one data set, all with Faiss's centroids, so every one reads the same lists."""

    def __init__(self, o: argparse.Namespace, kind: str, peers: Sequence[str]) -> None:
        self.o, self.kind = o, kind
        self.x, self.q = make_data(kind, o.nb, max(o.nq), o.d)
        self.d = self.x.shape[1]
        sample = self.x[: o.train_n]
        theirs = None
        self.ours = ivf.IndexIVFFlat(d=self.d, nlist=o.nlist, nprobe=o.nprobe)
        if faiss:
            quantizer = faiss.IndexFlatL2(self.d)
            theirs = faiss.IndexIVFFlat(quantizer, self.d, o.nlist, faiss.METRIC_L2)
            self._keep = [quantizer]
            theirs.train(sample)
            theirs.add(self.x)
            theirs.nprobe = o.nprobe
            self.ours.set_centroids(quantizer.reconstruct_n(0, o.nlist))
        else:
            self.ours.train(sample)
        self.ours.add(self.x)
        self.small = ivf.IndexRefineFlat(
            ivf.IndexIVFScalarQuantizer(d=self.d, nlist=o.nlist, nprobe=o.nprobe), k_factor=2.0
        )
        self.small.index.set_centroids(self.ours.centroids)
        self.small.index.train_codes(sample)
        self.small.add(self.x)
        self.search: dict[str, Callable[[np.ndarray], tuple[Any, Any]]] = {}
        if theirs is not None:
            self.search["faiss IVFFlat"] = lambda q: theirs.search(q, o.k)
        self.search["qmd IVFFlat"] = lambda q: self.ours.search(q, o.k)
        self.search["qmd SQ8,RFlat"] = lambda q: self.small.search(q, o.k)
        if "pq" in peers and faiss:
            pq = faiss.index_factory(self.d, f"IVF{o.nlist},PQ{self.d // 2}x4fs,RFlat")
            pq.train(sample)
            pq.add(self.x)
            faiss.extract_index_ivf(pq).nprobe = o.nprobe
            self.search["faiss PQx4fs,RFlat"] = lambda q: pq.search(q, o.k)
        if "hnsw" in peers:
            self.graph = build_graph(self.x)

            def ask(q: np.ndarray) -> tuple[Any, Any]:
                ids, dist = self.graph.knn_query(q, o.k, num_threads=torch.get_num_threads())
                return dist, ids

            self.search["hnswlib"] = ask
        if "torch-ivf" in peers:
            from torch_ivf.index import IndexIVFFlat as TheirIVF

            other = TheirIVF(d=self.d, nlist=o.nlist, nprobe=o.nprobe, metric="l2")
            other.train(torch.from_numpy(sample))
            other._centroids = self.ours.centroids.clone()
            other.add(torch.from_numpy(self.x))
            other.search_mode = "csr"
            self.search["torch-ivf csr"] = lambda q: other.search(torch.from_numpy(q), o.k)

    def truth(self, n: int) -> np.ndarray:
        flat = ivf.IndexFlatL2(self.d)
        flat.add(self.x)
        ids: np.ndarray = flat.search(self.q[:n], self.o.k)[1]
        return ids


def set_threads(n: int) -> None:
    torch.set_num_threads(n)
    if faiss:
        faiss.omp_set_num_threads(n)
