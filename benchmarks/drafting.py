"""Speculative decoding on real weights, beside its peers: same model object, prompts, dtype and threads.

    python benchmarks/drafting.py [--model SmolLM2-135M-Instruct] [--repeats 5] [--parts cost identity ttft speed]

Peers: transformers greedy, `prompt_lookup_num_tokens` 3, 5 and 10, `assistant_model` (--assistant: a model, or
`layers:6` for that many of the target's own layers). Methods alternate within each repeat; medians over repeats, with
the spread; wall and CPU seconds. One JSON line per figure goes to --out. For llama.cpp and for what `qmd ask` does by
default see drafting_engine.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from quoting import KINDS, Board, content, passages, requests, timed

from qmd.draft import CostTable, KnowledgeCacheManager, SpeculativeDecoder, TorchTarget
from qmd.draft.load import SMOLLM2, load_model, load_tokenizer
from qmd.draft.proposers import SuffixProposer
from qmd.draft.writer import repeats_from


def prompts(tokenizer: Any, kind: str, count: int, size: int) -> list[list[int]]:
    made = []
    for request in requests(kind, count, size):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content(*request)}], add_generation_prompt=True, tokenize=False
        )
        made.append(tokenizer(text, add_special_tokens=False).input_ids)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--assistant", help="draft model for transformers' assistant_model")
    parser.add_argument("--precision", default=None, choices=["float32", "int8", "native"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=5, help="prompts of each kind")
    parser.add_argument("--identity", type=int, default=200, help="prompts of the identity check")
    parser.add_argument("--gamma", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--parts", nargs="+", default=["cost", "identity", "ttft", "speed"])
    parser.add_argument("--draft", type=Path, help="folder of a trained draft")
    parser.add_argument("--new", type=int, default=24, help="tokens of each prompt of the identity check")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop the identity check after this time")
    parser.add_argument("--reference", type=int, default=48, help="prompts that transformers writes as well")
    parser.add_argument("--state", type=Path, help="where the identity check keeps what is done")
    parser.add_argument("--lookups", nargs="*", type=int, default=[3, 5, 10])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    target = TorchTarget(model, precision=args.precision)
    about = {
        "model": args.model,
        "threads": args.threads,
        "torch": torch.__version__,
        "machine": platform.processor(),
    }
    board = Board(args.out, about | {"precision": target.precision})
    table = CostTable.measure(target)
    if "cost" in args.parts:
        print(f"step {1000 * table.step_s:.1f} ms; c(g)/c(1):", [round(x, 2) for x in table.relative])
        rows = torch.randint(0, 1000, (1, 400))
        with torch.inference_mode():
            from transformers import DynamicCache

            cache = DynamicCache()
            model(rows, past_key_values=cache)
            for m in (1, 2, 4, 8):
                times = []
                for _ in range(5):
                    times.append(timed(lambda m=m: model(rows[:, :m], past_key_values=cache))[1])
                    cache.crop(-m)
                print(f"transformers' forward of {m}: {1000 * statistics.median(times):.1f} ms")
    if "identity" in args.parts:
        identity(model, tokenizer, target, table, args)
    if "ttft" in args.parts:
        ttft(tokenizer, target, board, args)
    if "speed" in args.parts:
        for kind in args.kinds:
            speed(model, tokenizer, target, table, board, kind, args)


def identity(model: Any, tokenizer: Any, target: TorchTarget, table: CostTable, args: Any) -> None:
    """Greedy text equal to plain decoding, token for token, with every proposer. With --state, a run that was
    stopped goes on where it was."""
    each = args.identity // 3 + 1
    work = [p for kind in KINDS for p in prompts(tokenizer, kind, each, 400)][: args.identity]
    ways: dict[str, tuple[list[Any], int, CostTable]] = {
        "suffix": ([SuffixProposer()], 8, table),
        "suffix, always 16": ([SuffixProposer()], 16, CostTable.flat()),
    }
    if args.draft:  # alone: the suffix ways have a run of their own
        neural = open_draft(args.draft, model, target)
        knowing = open_draft(args.draft, model, target, tokenizer)
        knowing.query_text = "the text"
        ways = {
            "draft, always 4": ([neural], 4, CostTable.flat()),
            "draft with knowledge, always 4": ([knowing], 4, CostTable.flat()),
            "suffix, then draft, always 8": ([SuffixProposer(), neural], 8, CostTable.flat()),
        }
        work = [work[i] for start in range(20) for i in range(start, len(work), 20)]  # all kinds, early
    end = time.monotonic() + 60 * args.minutes
    plain = SpeculativeDecoder([], target, tokenizer)
    decoders = {n: SpeculativeDecoder(p, target, tokenizer, g, cost=c) for n, (p, g, c) in ways.items()}
    done: dict[str, Any] = {}
    if args.state and args.state.exists():
        done = {r["prompt"]: r for r in map(json.loads, args.state.read_text().splitlines())}
    for prompt in work:
        key = hashlib.sha256(str((prompt, sorted(ways))).encode()).hexdigest()[:16]
        if key in done:
            continue
        if time.monotonic() > end:
            break
        cache = target.new_cache()
        target.forward(prompt[:-1], cache, last_only=True)  # once: what is compared is decoding
        expected = plain.generate(prompt, args.new, temperature=0, cache=cache)
        row: dict[str, Any] = {"prompt": key, "equal": {}, "accepted": {}, "proposed": {}}
        for name, decoder in decoders.items():
            out = decoder.generate(prompt, args.new, temperature=0, cache=cache)
            row["equal"][name] = bool(torch.equal(out, expected))
            row["accepted"][name], row["proposed"][name] = decoder.stats.accepted, decoder.stats.proposed
        if len(done) < args.reference and not args.draft:
            reference = greedy(model, tokenizer, prompt, args.new)
            row["equal"]["(transformers greedy)"] = bool(torch.equal(reference, expected))
        done[key] = row
        if args.state:
            with args.state.open("a") as file:
                file.write(json.dumps(row) + "\n")
    for name in next(iter(done.values()))["equal"]:
        rows = [r for r in done.values() if name in r["equal"]]
        figure = {
            "part": "identity",
            "method": name,
            "equal": sum(r["equal"][name] for r in rows),
            "prompts": len(rows),
            "tokens": args.new,
            "accepted": sum(r["accepted"].get(name, 0) for r in rows),
            "proposed": sum(r["proposed"].get(name, 0) for r in rows),
        }
        print(" ".join(f"{k}={v}" for k, v in figure.items()), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(figure | {"model": args.model, "precision": target.precision}) + "\n")


def open_draft(folder: Path, model: Any, target: TorchTarget, tokenizer: Any = None) -> Any:
    """The trained draft of a folder (`drafting_neural.py train --folder`), as a proposer; with a tokenizer it has the
    knowledge that is stored there."""
    from qmd.draft import Qwen3DraftModel
    from qmd.draft.neural import NeuralProposer
    from qmd.draft.training import load_draft

    best = max(folder.glob("best_draft_model_knowledge_epoch*.pth"), key=lambda p: p.stat().st_mtime_ns)
    config = json.loads((folder / "config.json").read_text())
    shape = (model.config.hidden_size, 8, 512)
    manager = KnowledgeCacheManager(*shape, folder=folder / "knowledge_cache")
    manager.tokenizer = tokenizer
    if tokenizer is not None:
        manager.attach(target)
    return NeuralProposer(load_draft(Qwen3DraftModel(config, model, manager), best), target)


def greedy(model: Any, tokenizer: Any, prompt: list[int], tokens: int, **more: Any) -> torch.Tensor:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            pad_token_id=tokenizer.eos_token_id, **more,
        )  # fmt: skip


def ttft(tokenizer: Any, target: TorchTarget, board: Board, args: Any) -> None:
    text = tokenizer(" ".join(passages(60, 800)), add_special_tokens=False).input_ids
    for length in (400, 1000):
        fixed, asked = text[:length], text[-24:]
        heads = target.config.num_attention_heads
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            manager = KnowledgeCacheManager(target.config.hidden_size, heads, 64 * heads, folder=folder)
            manager.add(target, fixed)
            decoder = SpeculativeDecoder([], target, tokenizer)
            rows: dict[str, list[tuple[float, float]]] = {"plain": [], "stored": []}
            for _ in range(args.repeats):
                a, w, c = timed(lambda d=decoder, p=[*fixed, *asked]: d.generate(p, 1, temperature=0))
                rows["plain"].append((w, c))
                b, w, c = timed(
                    lambda d=decoder, p=[*fixed, *asked], m=manager: d.generate(
                        p, 1, temperature=0, cache=m.start(target, p)
                    )
                )
                rows["stored"].append((w, c))
                assert torch.equal(a, b)
        board.show(f"first token, {length}+24", rows)


def assistant(model: Any, name: str) -> Any:
    """A model by name, or the target with a few of its layers: SmolLM2 has no smaller sibling here."""
    if not name.startswith("layers:"):
        return load_model(name)
    import copy

    from qmd.draft import LayerSampler

    chosen = LayerSampler(model.config.num_hidden_layers, int(name.removeprefix("layers:"))).sample()
    small = copy.deepcopy(model)
    small.model.layers = torch.nn.ModuleList(small.model.layers[i] for i in chosen)
    small.config.num_hidden_layers = len(chosen)
    for at, layer in enumerate(small.model.layers):
        layer.self_attn.layer_idx = at
    return small


def speed(
    model: Any, tokenizer: Any, target: TorchTarget, table: CostTable, board: Board, kind: str, args: Any
) -> None:
    """Decoding alone: the prompt's keys and values are computed before the clock starts, for us; transformers' own time
    for a prompt (one token generated) is taken off its total."""
    work = prompts(tokenizer, kind, args.prompts, 900)
    plain = SpeculativeDecoder([], target, tokenizer)
    fast = SpeculativeDecoder([SuffixProposer()], target, tokenizer, args.gamma, cost=table)
    ours = {"plain": plain, "suffix": fast}
    rows: dict[str, list[tuple[float, float]]] = {}
    theirs: dict[str, dict[str, Any]] = {"transformers": {}}
    theirs |= {f"prompt_lookup_{n}": {"prompt_lookup_num_tokens": n} for n in args.lookups}
    if args.assistant:
        theirs["assistant_model"] = {"assistant_model": assistant(model, args.assistant)}
    answers = [plain.generate(p, args.tokens, temperature=0)[0, len(p) :].tolist() for p in work]
    loops = sum(repeats_from(tokenizer.decode(a)) is not None for a in answers)
    stats: dict[str, str] = {}
    names = [*ours, *theirs]
    for repeat in range(args.repeats):
        for name in names if repeat % 2 == 0 else names[::-1]:
            wall = cpu = 0.0
            accepted = proposed = new = steps = 0
            for prompt in work:
                if name in ours:
                    cache = target.new_cache()
                    target.forward(prompt[:-1], cache, last_only=True)
                    decoder = ours[name]
                    _, w, c = timed(
                        lambda d=decoder, p=prompt, k=cache: d.generate(
                            p, args.tokens, temperature=0, cache=k
                        )
                    )
                    s = decoder.stats
                    accepted, proposed = accepted + s.accepted, proposed + s.proposed
                    new, steps = new + s.new_tokens - 1, steps + s.steps
                else:
                    _, w0, c0 = timed(lambda p=prompt: greedy(model, tokenizer, p, 1))
                    _, w, c = timed(
                        lambda p=prompt, n=name: greedy(model, tokenizer, p, args.tokens, **theirs[n])
                    )
                    w, c = w - w0, c - c0
                wall, cpu = wall + w, cpu + c
            rows.setdefault(name, []).append((wall, cpu))
            stats[name] = (
                f"{new / steps:.2f} tokens/step, {accepted / max(1, proposed):.0%} accepted" if steps else "-"
            )
    board.show(
        f"decode, {kind}", rows, detail=stats, tokens=sum(map(len, answers)), looping=f"{loops}/{len(work)}"
    )


if __name__ == "__main__":
    main()
