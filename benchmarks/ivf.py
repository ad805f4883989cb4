"""qmd.ivf beside faiss-cpu, hnswlib and torch-ivf: one process, the same lists, turns taken, medians.

Every sub-command appends JSON lines (environment in each) to --output and prints a table. Examples:
  python benchmarks/ivf.py compare --nq 1 8 32 512 2048 --threads 1 --data random clustered
  python benchmarks/ivf.py nq --plot qps.svg        sweep of the number of queries
  python benchmarks/ivf.py max-codes | budget | threshold | build | profile | env
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch

from qmd import ivf

try:
    import faiss
except ImportError:
    faiss = None  # type: ignore[assignment]


def environment() -> dict[str, Any]:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line),
            cpu,
        )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "faiss": getattr(faiss, "__version__", None),
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


class Contest:
    """Indexes of one data set, all with Faiss's centroids, so every one reads the same lists."""

    def __init__(self, o: argparse.Namespace, kind: str, peers: Sequence[str]) -> None:
        self.o, self.kind = o, kind
        self.x, self.q = make_data(kind, o.nb, max(o.nq), o.d)
        self.d = self.x.shape[1]
        sample = self.x[: o.train_n]
        theirs = (
            faiss.IndexIVFFlat(faiss.IndexFlatL2(self.d), self.d, o.nlist, faiss.METRIC_L2) if faiss else None
        )
        self.ours = ivf.IndexIVFFlat(d=self.d, nlist=o.nlist, nprobe=o.nprobe)
        if theirs is not None:
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
        self.small.index.centroids = self.ours.centroids
        self.small.index._lists.codec.train(torch.from_numpy(sample))
        self.small.index.is_trained = True
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
            import hnswlib

            graph = hnswlib.Index("l2", self.d)
            graph.init_index(len(self.x), M=16, ef_construction=100)
            graph.set_num_threads(max(o.threads))
            graph.add_items(self.x)
            graph.set_ef(128)

            def ask(q: np.ndarray) -> tuple[Any, Any]:
                ids, dist = graph.knn_query(q, o.k, num_threads=torch.get_num_threads())
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


def emit(o: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    env = environment()
    with open(o.output, "a") as f:
        for row in rows:
            f.write(json.dumps({**row, "environment": env}) + "\n")
    for row in rows:
        print("  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))


def compare(o: argparse.Namespace) -> None:
    rows = []
    for kind in o.data:
        contest = Contest(o, kind, o.peers)
        n_truth = min(512, max(o.nq))
        truth = contest.truth(n_truth)
        found = {n: np.asarray(f(contest.q[:n_truth])[1]) for n, f in contest.search.items()}
        for threads in o.threads:
            set_threads(threads)
            for nq in o.nq:
                q = contest.q[:nq]
                times = take_turns(
                    {n: (lambda f=f, q=q: f(q)) for n, f in contest.search.items()},
                    o.repeat if nq <= 4096 else 3,
                )
                base = times.get("faiss IVFFlat", {}).get("wall_s")
                for name, t in times.items():
                    ids = found[name]
                    row = {
                        "bench": "compare",
                        "data": kind,
                        "d": contest.d,
                        "threads": threads,
                        "nq": nq,
                        "index": name,
                    }
                    row |= {
                        "qps": nq / t["wall_s"],
                        "qps_per_cpu_s": nq / t["cpu_s"],
                        "recall": recall(ids, truth),
                    }
                    if base:
                        row["times_faiss"] = base / t["wall_s"]
                    rows.append({**row, **t})
                emit(o, rows)
                rows = []


def sweep_nq(o: argparse.Namespace) -> None:
    contest = Contest(o, o.data[0], o.peers)
    set_threads(o.threads[0])
    truth = contest.truth(min(512, max(o.nq)))
    rows = []
    for nq in o.nq:
        times = take_turns(
            {n: (lambda f=f, nq=nq: f(contest.q[:nq])) for n, f in contest.search.items()}, o.repeat
        )
        for name, t in times.items():
            r = recall(np.asarray(contest.search[name](contest.q[: len(truth)])[1]), truth)
            rows.append(
                {"bench": "nq", "index": name, "x": nq, "nq": nq, "qps": nq / t["wall_s"], "recall": r, **t}
            )
    emit(o, rows)
    plot(o, rows, "queries in a batch")


def _sweep(o: argparse.Namespace, name: str, params: list[tuple[float, ivf.SearchParams]]) -> None:
    contest = Contest(o, o.data[0], ())
    set_threads(o.threads[0])
    q = contest.q
    full = np.asarray(contest.ours.search(q, o.k)[1])
    times = take_turns({str(v): (lambda p=p: contest.ours.search(q, o.k, p)) for v, p in params}, o.repeat)
    rows = []
    for v, p in params:
        t = times[str(v)]
        r = recall(np.asarray(contest.ours.search(q, o.k, p)[1]), full)
        rows.append(
            {
                "bench": name,
                "index": "qmd IVFFlat",
                "x": v,
                "qps": len(q) / t["wall_s"],
                "recall_to_unlimited": r,
                **t,
            }
        )
    emit(o, rows)
    plot(o, rows, name)


def sweep_max_codes(o: argparse.Namespace) -> None:
    _sweep(o, "max_codes", [(m, ivf.SearchParams(max_codes=m)) for m in (1024, 4096, 8192, 16384, 32768, 0)])


def sweep_budget(o: argparse.Namespace) -> None:
    budgets = (8192, 16384, 32768, 65536, 98304, 131072)
    _sweep(
        o,
        "candidate_budget",
        [
            (b, ivf.SearchParams(profile="approx", candidate_budget=b, use_per_list_sizes=True))
            for b in budgets
        ],
    )


def score_threshold(o: argparse.Namespace) -> None:
    """Where the two roads cross, and what `auto` chose there."""
    contest = Contest(o, o.data[0], ())
    set_threads(o.threads[0])
    rows = []
    for nq in (1, 2, 4, 8, 16, 32, 64):
        q = contest.q[:nq]
        t = take_turns(
            {
                m: (lambda m=m, q=q: contest.ours.search(q, o.k, ivf.SearchParams(search_mode=m)))
                for m in ("matrix", "csr")
            },
            o.repeat,
        )
        chosen = "csr" if contest.ours._use_grouped(nq, o.nprobe, ivf.SearchParams()) else "matrix"
        best = min(t, key=lambda m: t[m]["wall_s"])
        rows.append({
            "bench": "threshold", "nq": nq, "avg_group_size": nq * o.nprobe / o.nlist, "matrix_s": t["matrix"]["wall_s"],  # noqa: E501
            "csr_s": t["csr"]["wall_s"], "auto": chosen, "best": best, "regret": t[chosen]["wall_s"] / t[best]["wall_s"],  # noqa: E501
        })  # fmt: skip
    emit(o, rows)


def build(o: argparse.Namespace) -> None:
    x, _ = make_data(o.data[0], o.nb, 1, o.d)
    sample = x[: o.train_n]
    set_threads(o.threads[0])
    rows = []
    for _ in range(o.repeat):
        row: dict[str, Any] = {"bench": "build", "data": o.data[0]}
        ours = ivf.IndexIVFFlat(d=x.shape[1], nlist=o.nlist)
        pairs: list[tuple[str, Any]] = [("qmd", ours)]
        if faiss:
            quantizer = faiss.IndexFlatL2(x.shape[1])
            pairs.append(("faiss", faiss.IndexIVFFlat(quantizer, x.shape[1], o.nlist, faiss.METRIC_L2)))
        for name, index in pairs:
            for stage, call in (
                ("train", lambda index=index: index.train(sample)),
                ("add", lambda index=index: index.add(x)),
            ):
                begin = time.perf_counter()
                call()
                row[f"{name}_{stage}_s"] = time.perf_counter() - begin
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            ours.save(Path(folder) / "i")
            row["save_mb_s"] = (Path(folder) / "i").stat().st_size / 1e6 / (time.perf_counter() - begin)
            begin = time.perf_counter()
            ivf.load(Path(folder) / "i")
            row["load_mmap_s"] = time.perf_counter() - begin
            begin = time.perf_counter()
            ivf.load(Path(folder) / "i", mmap=False)
            row["load_mb_s"] = (Path(folder) / "i").stat().st_size / 1e6 / (time.perf_counter() - begin)
        row["bytes_per_data_byte"] = ours.nbytes / (x.nbytes + 12 * len(x))
        rows.append(row)
    numbers = [k for k, v in rows[0].items() if isinstance(v, float)]
    emit(
        o,
        [
            {
                "bench": "build",
                "data": o.data[0],
                **{k: statistics.median(r[k] for r in rows) for k in numbers},
            }
        ],
    )


def profile(o: argparse.Namespace) -> None:
    contest = Contest(o, o.data[0], ())
    set_threads(o.threads[0])
    contest.ours.search(contest.q, o.k)
    with torch.profiler.profile() as p:
        contest.ours.search(contest.q, o.k)
    print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


def plot(o: argparse.Namespace, rows: list[dict[str, Any]], label: str) -> None:
    if not o.plot:
        return
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(r["index"] for r in rows):
        mine = [r for r in rows if r["index"] == name]
        axes.plot([r["x"] for r in mine], [r["qps"] for r in mine], marker="o", label=name)
    if min(r["x"] for r in rows) > 0:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("queries a second")
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(o.plot)


def main(argv: Sequence[str] | None = None) -> None:
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "compare": compare, "nq": sweep_nq, "max-codes": sweep_max_codes, "budget": sweep_budget,
        "threshold": score_threshold, "build": build, "profile": profile,
        "env": lambda o: print(json.dumps(environment(), indent=2)),
    }  # fmt: skip
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=commands)
    p.add_argument("--data", nargs="+", default=["random"], help="random, clustered or a .npy file of rows")
    p.add_argument("--nb", type=int, default=262_144)
    p.add_argument("--train-n", type=int, default=20_480)
    p.add_argument("--d", type=int, default=128)
    p.add_argument("--nlist", type=int, default=512)
    p.add_argument("--nprobe", type=int, default=32)
    p.add_argument("--k", type=int, default=20)
    p.add_argument("--nq", type=int, nargs="+", default=[1, 8, 32, 512, 2048])
    p.add_argument("--threads", type=int, nargs="+", default=[1])
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--peers", nargs="*", default=[], choices=["pq", "hnsw", "torch-ivf"])
    p.add_argument("--output", default="ivf-benchmarks.jsonl")
    p.add_argument("--plot", default=None, help="an .svg file")
    o = p.parse_args(argv)
    commands[o.command](o)


if __name__ == "__main__":
    main()
