"""Build an index over synthetic rows and search it: python examples/ivf_demo.py [--device cuda] [--verify]"""

from __future__ import annotations

import argparse
import time

import torch

from qmd import ivf


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ...")
    p.add_argument("--verify", action="store_true", help="compare with exact search")
    p.add_argument("--nb", type=int, default=50_000)
    p.add_argument("--nq", type=int, default=256)
    p.add_argument("--d", type=int, default=64)
    p.add_argument("--nlist", type=int, default=128)
    p.add_argument("--nprobe", type=int, default=16)
    p.add_argument("--k", type=int, default=10)
    o = p.parse_args()
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(500, o.d, generator=g)
    rows = centres[torch.randint(0, 500, (o.nb,), generator=g)] + 0.5 * torch.randn(o.nb, o.d, generator=g)
    queries = rows[torch.randint(0, o.nb, (o.nq,), generator=g)] + 0.1 * torch.randn(o.nq, o.d, generator=g)
    index = ivf.IndexIVFFlat(d=o.d, nlist=o.nlist, nprobe=o.nprobe).to(o.device)
    for name, work in (("train", lambda: index.train(rows[:20_000])), ("add", lambda: index.add(rows))):
        begin = time.perf_counter()
        work()
        print(f"{name:7} {time.perf_counter() - begin:7.3f} s")
    queries = queries.to(o.device)
    index.search(queries, o.k)
    begin = time.perf_counter()
    distances, ids = index.search(queries, o.k)
    took = time.perf_counter() - begin
    print(
        f"search  {took:7.3f} s  {o.nq / took:,.0f} queries a second, {index.ntotal:,} rows, {index.nbytes / 1e6:.0f} MB"  # noqa: E501
    )
    print(
        f"first query: ids {ids[0, :5].tolist()}, squared distances {[round(v, 2) for v in distances[0, :5].tolist()]}"
    )
    if o.verify:
        flat = ivf.IndexFlatL2(o.d).to(o.device)
        flat.add(rows)
        exact = flat.search(queries, o.k)[1]
        recall = (ids[:, :, None] == exact[:, None]).any(-1).double().mean().item()
        index.nprobe = o.nlist
        same = torch.equal(index.search(queries, o.k)[0], flat.search(queries, o.k)[0])
        print(f"recall@{o.k} {recall:.4f}; all lists probed equals exact search: {same}")
        if not same:
            raise SystemExit("verification failed")


if __name__ == "__main__":
    main()
