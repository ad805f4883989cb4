"""qmd.ivf beside faiss-cpu, hnswlib and torch-ivf: one process, the same lists, turns taken, medians.

Every sub-command appends JSON lines (environment in each) to --output and prints a table. Examples:
  python benchmarks/ivf.py compare --nq 1 8 32 512 2048 --threads 1 --data random clustered
  python benchmarks/ivf.py nq --plot qps.svg        sweep of the number of queries
  python benchmarks/ivf.py at-recall --data clustered --peers hnsw --nq 2048
  python benchmarks/ivf.py max-codes | budget | threshold | build | first-pass | profile | env
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ivf_contest import Contest, build_graph, environment, faiss, make_data, recall, set_threads, take_turns

from qmd import ivf


def emit(o: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    env = environment()
    with open(o.output, "a") as f:
        for row in rows:
            f.write(json.dumps({**row, "environment": env}) + "\n")
    for row in rows:
        print("  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))


def compare(o: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    drawn: list[dict[str, Any]] = []
    for kind in o.data:
        contest = Contest(o, kind, o.peers)
        n_truth = min(512, max(o.nq))
        truth = contest.truth(n_truth)
        found = {n: np.asarray(f(contest.q[:n_truth])[1]) for n, f in contest.search.items()}
        for threads in o.threads:
            set_threads(threads)
            for nq in o.nq:
                batches = _batches(contest.q, nq, o.in_a_row)
                work = {n: (lambda f=f, b=batches: [f(q) for q in b]) for n, f in contest.search.items()}
                repeat = o.repeat * 8 if nq <= 32 else o.repeat if nq <= 4096 else 1
                times = {
                    name: {what: seconds / len(batches) for what, seconds in t.items()}
                    for name, t in take_turns(work, repeat).items()
                }
                base = times.get("faiss IVFFlat")
                for name, t in times.items():
                    ids = found[name]
                    row = {
                        "bench": "compare",
                        "data": Path(kind).name,
                        "d": contest.d,
                        "threads": threads,
                        "nq": nq,
                        "in_a_row": len(batches),
                        "index": name,
                    }
                    row |= {
                        "qps": nq / t["wall_s"],
                        "qps_per_cpu_s": nq / t["cpu_s"],
                        "recall": recall(ids, truth),
                    }
                    if base:
                        row["times_faiss"] = base["wall_s"] / t["wall_s"]
                        row["times_faiss_cpu"] = base["cpu_s"] / t["cpu_s"]
                    rows.append({**row, **t})
                emit(o, rows)
                drawn += [{**r, "x": nq} for r in rows]
                rows = []
    plot(o, drawn, "queries in a batch")


def _batches(q: np.ndarray, nq: int, count: int) -> list[np.ndarray]:
    """`count` batches of nq queries, different ones as far as there are so many."""
    starts = [i * nq % max(1, len(q) - nq + 1) for i in range(count)]
    return [q[start : start + nq] for start in starts]


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
    both = [{"index": m, "x": r["nq"], "qps": r["nq"] / r[f"{m}_s"]} for m in ("matrix", "csr") for r in rows]
    plot(o, both, "queries in a batch")


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


def at_recall(o: argparse.Namespace) -> None:
    """Every contender's own dial, and the fastest setting of each that reaches --recall."""
    rows = []
    for kind in o.data:
        contest = Contest(o, kind, ())
        q, truth = contest.q, contest.truth(512)
        set_threads(o.threads[0])
        settings = _settings(contest, o, q)
        found = {name: recall(np.asarray(ask()[1])[:512], truth) for name, (_, ask) in settings.items()}
        family = {name: f for name, (f, _) in settings.items()}
        near = {n: s for n, s in settings.items() if found[n] >= 0.5}
        times = take_turns({n: ask for n, (_, ask) in near.items()}, o.repeat)
        mine = []
        for name, t in times.items():
            row = {"bench": "at-recall", "data": kind, "threads": o.threads[0], "nq": len(q), "index": family[name],
                   "setting": name, "x": found[name], "recall": found[name], "qps": len(q) / t["wall_s"]}  # fmt: skip
            mine.append({**row, **t})
        for f in dict.fromkeys(family.values()):
            enough = [r for r in mine if r["index"] == f and r["recall"] >= o.recall]
            if enough:
                best = max(enough, key=lambda r: r["qps"])
                mine.append({**best, "bench": "best-at-recall", "least": o.recall})
        rows += mine
        emit(o, mine)
    dial = sorted((r for r in rows if r["bench"] == "at-recall"), key=lambda r: r["recall"])
    plot(o, dial, "recall against exact search")


def _settings(
    contest: Contest, o: argparse.Namespace, q: np.ndarray
) -> dict[str, tuple[str, Callable[[], Any]]]:
    """name -> (family, search)"""
    out: dict[str, tuple[str, Callable[[], Any]]] = {}
    for p in (1, 2, 4):
        params = ivf.SearchParams(nprobe=p)
        out[f"qmd IVFFlat nprobe {p}"] = "qmd IVFFlat", lambda s=params: contest.ours.search(q, o.k, s)
        out[f"qmd SQ8,RFlat nprobe {p}"] = "qmd SQ8,RFlat", lambda s=params: contest.small.search(q, o.k, s)
    if faiss:
        pq = faiss.index_factory(contest.d, f"IVF{o.nlist},PQ{contest.d // 2}x4fs,RFlat")
        pq.train(contest.x[: o.train_n])
        pq.add(contest.x)

        def ask(nprobe: int, factor: int) -> Any:
            inner = faiss.SearchParametersIVF(nprobe=nprobe)
            wanted = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
            return pq.search(q, o.k, params=wanted)

        for p in (1, 2, 4, 8, 32):
            for factor in (1, 2, 4):
                name = f"faiss PQ{contest.d // 2}x4fs,RFlat nprobe {p} k_factor {factor}"
                out[name] = "faiss PQx4fs,RFlat", lambda p=p, f=factor: ask(p, f)
    if "hnsw" in o.peers:
        graph = build_graph(contest.x, o.graph)

        def walk(ef: int) -> Any:
            graph.set_ef(ef)
            ids, dist = graph.knn_query(q, o.k, num_threads=torch.get_num_threads())
            return dist, ids

        for ef in (20, 40, 80, 160):
            out[f"hnswlib ef {ef}"] = "hnswlib", lambda ef=ef: walk(ef)
    return out


def first_pass(o: argparse.Namespace) -> None:
    """Ways for torch to score 1,024 rows of 4-bit codes, beside the product of whole rows."""
    set_threads(o.threads[0])
    rows, d = 1024, o.d
    lists = [torch.randn(rows, d) for _ in range(64)]
    codes = torch.randint(0, 256, (rows, d // 4), dtype=torch.uint8)  # d / 2 codes of 4 bits
    book, start = torch.randn(d // 4 * 256, 4), torch.arange(0, d // 4 * 256, 256, dtype=torch.int32)
    out = []
    for nq in (1, 8, 32, 128, 512):
        q, table, turn = torch.randn(nq, d), torch.randn(d // 4 * 256, nq), iter(range(1 << 30))

        def decode() -> torch.Tensor:
            return book.index_select(0, (codes.to(torch.int32) + start).view(-1)).view(rows, d)

        times = take_turns(
            {
                "whole rows": lambda q=q, turn=turn: torch.mm(lists[next(turn) % 64], q.T),
                "decode, then product": lambda q=q: torch.mm(decode(), q.T),
                "tables by embedding_bag": lambda table=table: torch.nn.functional.embedding_bag(
                    codes.to(torch.int32) + start, table, mode="sum"
                ),
            },
            max(o.repeat, 30),
        )
        out += [{"bench": "first-pass", "nq": nq, "way": name, **t} for name, t in times.items()]
    emit(o, out)


def dump_environment(o: argparse.Namespace) -> None:
    """Prints the environment; with --env FILE also writes it there."""
    text = json.dumps(environment(), indent=2)
    if o.env:
        Path(o.env).write_text(text + "\n")
    print(text)


def plot(o: argparse.Namespace, rows: list[dict[str, Any]], label: str) -> None:
    if not o.plot:
        return
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "qmd"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(r["index"] for r in rows):
        mine = [r for r in rows if r["index"] == name]
        axes.plot([r["x"] for r in mine], [r["qps"] for r in mine], marker="o", label=name)
    if min(r["x"] for r in rows) >= 1:
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
        "at-recall": at_recall, "first-pass": first_pass, "threshold": score_threshold, "build": build,
        "profile": profile, "env": dump_environment,
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
    p.add_argument(
        "--in-a-row", type=int, default=1, help="batches that `compare` asks of one index in its turn"
    )
    p.add_argument("--peers", nargs="*", default=[], choices=["pq", "hnsw", "torch-ivf"])
    p.add_argument("--recall", type=float, default=0.78, help="what at-recall must reach")
    p.add_argument("--output", default="ivf-benchmarks.jsonl")
    p.add_argument("--graph", default=None, help="where hnswlib's graph is kept between runs")
    p.add_argument("--env", default=None, help="a .json file for `env`")
    p.add_argument("--plot", default=None, help="an .svg file")
    o = p.parse_args(argv)
    commands[o.command](o)


if __name__ == "__main__":
    main()
