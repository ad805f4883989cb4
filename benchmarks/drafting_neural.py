"""The neural draft: its step against the target's on the Qwen3-0.6B shape (random weights), and a small training run
on real weights with held-out acceptance, knowledge on and off.

    python benchmarks/drafting_neural.py cost [--hot 16384]
    python benchmarks/drafting_neural.py train [--samples 40] [--minutes 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).parent))
from quoting import passages

from qmd.draft import KnowledgeCacheManager, Qwen3DraftModel, TorchTarget
from qmd.draft.load import SMOLLM2, load_model, load_tokenizer
from qmd.draft.neural import NeuralProposer
from qmd.draft.training import acceptance, train, write_samples


def cost(hot: int, repeats: int) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(shape).eval().requires_grad_(False)
    target = TorchTarget(model)
    draft = Qwen3DraftModel({"draft_model": {"hot_vocabulary": hot}}, model).eval().requires_grad_(False)
    total, own = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in draft.parameters())
    print(
        f"target {total / 1e6:.0f}M; draft {own / 1e6:.0f}M of its own, {draft.new_parameters() / 1e6:.1f}M new"
    )
    cache = target.new_cache()
    target.forward(list(range(256)), cache, last_only=True)
    ways = {p: NeuralProposer(draft, target, precision=p) for p in ("int8", "float32")}  # type: ignore[arg-type]
    times: dict[str, list[float]] = {"target": [], **{p: [] for p in ways}}
    for _ in range(repeats):
        begin = time.perf_counter()
        target.forward([5], cache)
        times["target"].append(time.perf_counter() - begin)
        cache.crop(256)
        for name, proposer in ways.items():
            with torch.inference_mode():
                begin = time.perf_counter()
                proposer.step(5, cache, [None] * len(draft.blocks), 0)
                times[name].append(time.perf_counter() - begin)
    base = statistics.median(times["target"])
    for name, values in times.items():
        t = statistics.median(values)
        spread = f"{1000 * min(values):.1f} to {1000 * max(values):.1f}"
        print(f"{name}: {1000 * t:.1f} ms ({spread}), {t / base:.3f} of a step")


def small_run(samples: int, minutes: float, tokens: int, folder: Path, out: Path | None) -> None:
    """Train on answers the target wrote about passages; samples, checkpoints and curves stay in `folder`, and a later
    call goes on from them."""
    model, tokenizer = load_model(SMOLLM2), load_tokenizer(SMOLLM2)
    texts = passages(samples, 400)
    asks = ["What does the text say about {}?", "Summarise the text about {}.", "Copy the text about {}."]
    pairs = []
    for i in range(samples):
        text = texts[i % len(texts)]
        about = " ".join(text.replace("#", " ").split()[:5])
        pairs.append((asks[(i + i // len(texts)) % 3].format(about), text))
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.process_time()
    made = write_samples(model, tokenizer, pairs, max_new_tokens=tokens, path=folder / "samples.jsonl")
    print(f"{len(made)} samples, {sum(len(s.answer) for s in made)} answer tokens", flush=True)
    manager = KnowledgeCacheManager(model.config.hidden_size, 8, 512, folder=folder / "knowledge_cache")
    manager.tokenizer = tokenizer
    manager.build(TorchTarget(model), tokenizer, texts)
    config: dict[str, Any] = {
        "target_model": SMOLLM2,
        "training": {"num_epochs": 1, "batch_size": 4, "learning_rate": 3e-4, "held_out": 0.15},
    }
    (folder / "config.json").write_text(json.dumps(config))
    draft = Qwen3DraftModel(config, model, manager)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    held = made[: max(1, round(0.15 * len(made)))]
    untrained = acceptance(draft, held)
    print(f"untrained: held-out acceptance {untrained:.3f}", flush=True)
    deadline = time.perf_counter() + 60 * minutes
    epoch = (
        json.loads((folder / "curves.json").read_text())["epochs"] if (folder / "curves.json").exists() else 0
    )
    while time.perf_counter() < deadline:
        epoch += 1
        training = msgspec.structs.replace(draft.config.training, num_epochs=epoch)
        draft.config = msgspec.structs.replace(draft.config, training=training)
        report = train(draft, made, folder)
        score = report.held_out_acceptance[-1]
        print(f"epoch {epoch}: loss {report.loss[-1]:.3f}, held-out acceptance {score:.3f}", flush=True)
    on, off = acceptance(draft, held), acceptance(draft, held, knowledge=False)
    by_window = {w: round(acceptance(draft, held, window=w), 3) for w in (0, 1, 2, 3)}
    same = all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    figure = {
        "part": "neural draft", "samples": len(made), "answer_tokens": sum(len(s.answer) for s in made),
        "epochs": epoch, "untrained": round(untrained, 3), "held_out_acceptance": round(on, 3),
        "without_knowledge": round(off, 3), "by_drafted_place": by_window, "target_bit_identical": same,
        "cpu_s_of_this_call": round(time.process_time() - begin),
    }  # fmt: skip
    print(figure)
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(figure) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["cost", "train"])
    parser.add_argument("--hot", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("draft-run"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.part == "cost":
        cost(args.hot, args.repeats)
    else:
        small_run(args.samples, args.minutes, args.tokens, args.folder, args.out)
