"""The neural draft: its step against the target's on the Qwen3-0.6B shape (random weights), and a small training run
on real weights with held-out acceptance, knowledge on and off.

    python benchmarks/drafting_neural.py cost [--hot 16384]
    python benchmarks/drafting_neural.py train [--samples 90] [--minutes 10] [--rate 3e-4] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).parent))
from quoting import VAULT, passages

from qmd.draft import KnowledgeCacheManager, Qwen3DraftModel, TorchTarget
from qmd.draft.load import SMOLLM2, load_model, load_tokenizer
from qmd.draft.neural import NeuralProposer
from qmd.draft.training import Sample, acceptance, load_draft, train, write_samples

HELD_OUT = 0.1


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


ASKS = (
    "What does the text say about {}?",
    "Summarise the text about {}.",
    "Copy the text about {}.",
    "Explain to a child: {}.",  # without the passage: the target says what it knows
)


def material(size: int) -> list[str]:
    """Single paragraphs of the sample vault and of these docs, in a fixed order, mixed."""
    found = passages(10_000, size)
    for path in sorted((VAULT.parent.parent / "docs").glob("*.md")):
        blocks = path.read_text(encoding="utf-8").split("\n\n")
        found += [b[:size] for b in blocks if len(b) > 120 and b[0].isalpha()]
    random.Random(0).shuffle(found)
    return found


def make_samples(
    model: Any,
    tokenizer: Any,
    target: TorchTarget,
    count: int,
    held: int,
    tokens: int,
    folder: Path,
    read: int = 0,
) -> tuple[list[Sample], KnowledgeCacheManager]:
    """The first `held` samples are about passages that no other sample is about. Knowledge: every passage, and for the
    questions without one what the target answered. read: so many passages are learnt as they stand, too: the target
    reads them, which is cheaper than to let it write."""
    chosen = folder / "prompts.json"  # the notes and pages may change between two calls
    if not chosen.exists():
        texts = material(240)
        pairs = []
        for i in range(count):
            own = i if i < held else held + (i - held) % (len(texts) - held)
            ask = ASKS[(i + i // len(texts)) % len(ASKS)]
            about = " ".join(texts[own].replace("#", " ").split()[:5])
            pairs.append((ask.format(about), "" if ask is ASKS[-1] else texts[own]))
        chosen.write_text(json.dumps({"held": held, "pairs": pairs, "others": texts[held:]}))
    kept = json.loads(chosen.read_text())
    pairs = [(question, passage) for question, passage in kept["pairs"]][:count]
    made = write_samples(
        model, tokenizer, pairs, max_new_tokens=tokens, path=folder / "samples.jsonl", batch=8
    )[:count]
    manager = KnowledgeCacheManager(model.config.hidden_size, 8, 512, folder=folder / "knowledge_cache")
    manager.tokenizer = tokenizer
    manager.attach(target)
    known = dict.fromkeys(p for _, p in pairs if p)
    for sample, (question, passage) in zip(made, pairs, strict=True):
        if not passage:
            known[f"{question}\n{tokenizer.decode(sample.answer, skip_special_tokens=True)}"] = None
    manager.build(target, tokenizer, list(known))
    opening = tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    for text in kept["others"][:read]:
        ids = tokenizer(text, add_special_tokens=False).input_ids[:tokens]
        made.append(Sample(tuple(opening), tuple(ids), text[:40]))
    return made, manager


def small_run(args: argparse.Namespace) -> None:
    """Train on answers the target wrote; samples, checkpoints and curves stay in the folder, and a later call goes on
    from them. Held-out acceptance is over passages and questions that were not trained on."""
    folder: Path = args.folder
    model, tokenizer = load_model(SMOLLM2), load_tokenizer(SMOLLM2)
    target = TorchTarget(model)
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.process_time()
    chosen = folder / "prompts.json"
    held = json.loads(chosen.read_text())["held"] if chosen.exists() else round(HELD_OUT * args.samples) or 1
    made, manager = make_samples(model, tokenizer, target, args.samples, held, args.tokens, folder, args.read)
    written = time.process_time() - begin
    hot = args.hot if args.part == "train" else 0
    inside = sum(t < (hot or 1 << 30) for s in made for t in s.answer) / sum(len(s.answer) for s in made)
    print(
        f"{len(made)} samples, {sum(len(s.answer) for s in made)} answer tokens, {inside:.1%} of them in the head; "
        f"{written:.0f} CPU s",
        flush=True,
    )
    config: dict[str, Any] = {
        "target_model": SMOLLM2,
        "draft_model": {"hot_vocabulary": hot},
        "training": {
            "num_epochs": 1, "batch_size": 4, "learning_rate": args.rate, "held_out": held / len(made)
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    draft = Qwen3DraftModel(config, model, manager)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    test = made[:held]
    curves = folder / "curves.json"
    epoch = json.loads(curves.read_text())["epochs"] if curves.exists() else 0
    untrained = acceptance(draft, test)
    print(f"untrained: held-out acceptance {untrained:.3f}", flush=True)
    deadline = time.perf_counter() + 60 * args.minutes
    while time.perf_counter() < deadline:
        epoch += 1
        training = msgspec.structs.replace(draft.config.training, num_epochs=epoch)
        draft.config = msgspec.structs.replace(draft.config, training=training)
        report = train(draft, made, folder, knowledge=not args.no_knowledge)
        score, spent = report.held_out_acceptance[-1], time.process_time() - begin
        print(
            f"epoch {epoch}: loss {report.loss[-1]:.3f}, held-out acceptance {score:.3f}, {spent:.0f} CPU s",
            flush=True,
        )
    load_draft(draft, max(folder.glob("best_*.pth"), key=lambda p: p.stat().st_mtime_ns))
    groups = {
        "all": test,
        "with the passage": [s for s in test if not s.question.startswith(ASKS[-1][:8])],
        "question alone": [s for s in test if s.question.startswith(ASKS[-1][:8])],
    }
    figure = {
        "part": "neural draft", "samples": len(made), "passages_read": args.read,
        "answer_tokens": sum(len(s.answer) for s in made),
        "learning_rate": args.rate, "hot_vocabulary": hot, "epochs": epoch,
        "trained_with_knowledge": not args.no_knowledge, "untrained": round(untrained, 3),
        "held_out_acceptance": {n: round(acceptance(draft, g), 3) for n, g in groups.items() if g},
        "without_knowledge": {
            n: round(acceptance(draft, g, knowledge=False), 3) for n, g in groups.items() if g
        },
        "by_drafted_place": {w: round(acceptance(draft, test, window=w), 3) for w in (0, 1, 2, 3)},
        "target_bit_identical": all(torch.equal(v, before[k]) for k, v in model.state_dict().items()),
        "cpu_s_of_this_call": round(time.process_time() - begin), "curve": report.held_out_acceptance,
    }  # fmt: skip
    print(figure)
    if args.out is not None:
        with args.out.open("a") as file:
            file.write(json.dumps(figure) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["cost", "train"])
    parser.add_argument("--hot", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--samples", type=int, default=90)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    parser.add_argument("--read", type=int, default=0, help="passages that are learnt as they stand, too")
    parser.add_argument("--no-knowledge", action="store_true", help="train without knowledge")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("draft-run"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.part == "cost":
        cost(args.hot, args.repeats)
    else:
        small_run(args)
