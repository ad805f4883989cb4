"""The neural draft: its step against the target's on the Qwen3-0.6B shape (random weights), and a small training run
on real weights with held-out acceptance, knowledge on and off.

    python benchmarks/drafting_neural.py cost [--hot 16384]
    python benchmarks/drafting_neural.py train [--samples 40] [--minutes 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from qmd.draft import KnowledgeCacheManager, Qwen3DraftModel, TorchTarget
from qmd.draft.load import SMOLLM2, load_model, load_tokenizer
from qmd.draft.neural import NeuralProposer
from qmd.draft.training import acceptance, train, write_samples

VAULT = Path(__file__).parent.parent / "examples" / "vault"


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


def small_run(samples: int, minutes: float) -> None:
    model, tokenizer = load_model(SMOLLM2), load_tokenizer(SMOLLM2)
    questions = ["What does the text say?", "Which fact here matters most?", "Continue the text."]
    texts: list[str] = []
    for path in sorted(VAULT.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if len(text.encode()) < 1.05 * len(text):
            texts += [b[:400] for b in text.split("\n\n") if len(b) > 100]
    pairs = [(questions[i % 3], texts[i % len(texts)]) for i in range(samples)]
    begin = time.perf_counter()
    made = write_samples(model, tokenizer, pairs, max_new_tokens=32)
    print(
        f"{len(made)} samples, {sum(len(s.answer) for s in made)} answer tokens, {time.perf_counter() - begin:.0f} s"
    )
    manager = KnowledgeCacheManager(model.config.hidden_size, 8, 512)
    manager.tokenizer = tokenizer
    manager.build(TorchTarget(model), tokenizer, texts[:20])
    config: dict[str, Any] = {
        "training": {"num_epochs": 1, "batch_size": 4, "learning_rate": 3e-4, "held_out": 0.2}
    }
    draft = Qwen3DraftModel(config, model, manager)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    held = made[: max(1, round(0.2 * len(made)))]
    print(f"untrained: held-out acceptance {acceptance(draft, held):.3f}")
    deadline = time.perf_counter() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        epoch = 0
        while time.perf_counter() < deadline:
            epoch += 1
            import msgspec

            draft.config = msgspec.structs.replace(
                draft.config, training=msgspec.structs.replace(draft.config.training, num_epochs=epoch)
            )
            report = train(draft, made, folder)
            score = report.held_out_acceptance[-1]
            score = report.held_out_acceptance[-1]
            print(f"epoch {epoch}: loss {report.loss[-1]:.3f}, held-out acceptance {score:.3f}", flush=True)
    on, off = acceptance(draft, held), acceptance(draft, held, knowledge=False)
    print(f"knowledge on {on:.3f}, off {off:.3f} ({on / off - 1:+.1%})")
    same = all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    print(f"target bit-identical afterwards: {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["cost", "train"])
    parser.add_argument("--hot", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=3)
    args = parser.parse_args()
    if args.part == "cost":
        cost(args.hot, args.repeats)
    else:
        small_run(args.samples, args.minutes)
