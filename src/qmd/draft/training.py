"""Train a draft on text the target wrote about the user's passages. The target is read, never changed."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmd.draft.decoder import SpeculativeDecoder, eos_tokens
from qmd.draft.model import Qwen3DraftModel
from qmd.draft.torch_target import as_target

LAST = "last.pth"
"""The checkpoint to go on from: weights, optimiser, curves."""
WINDOWS = 4  # rows of its own the draft sees in training: 0 to 3, as while drafting
TEACHER_BYTES = (
    1 << 30
)  # what the target made of the samples is kept up to this size, so that it reads each once


@dataclass(frozen=True, slots=True)
class Sample:
    """One text of the target: prompt tokens, then the answer's. Only the answer is learnt."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    question: str = ""


@dataclass(slots=True)
class Report:
    """Curves, one value an epoch. Acceptance is the mean of sum(min(p, q)) over held-out answer tokens."""

    epochs: int = 0
    steps: int = 0
    loss: list[float] = field(default_factory=list)
    held_out_acceptance: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best: str = ""
    resumed_at: int = 0


def write_samples(
    target: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[str, str]],
    *,
    max_new_tokens: int = 64,
    path: Path | None = None,
    batch: int = 1,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> list[Sample]:
    """Let the target answer each (question, passage) greedily. Written to `path` (JSON lines) as it goes; what is
    there already, of the same length, is not written again.

    batch: answers written side by side, with a `transformers` model as target: the text of its own greedy decoding
    to rounding. 1 drafts one answer after the other, token for token.
    """
    asked = [(q, tuple(render(tokenizer, q, passage))) for q, passage in prompts]
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    if path is not None and path.exists():
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last line of a run that was cut short
                row = json.loads(line)
                if row.get("max_new_tokens") == max_new_tokens:
                    known[tuple(row["prompt"])] = tuple(row["answer"])
        if text and not text.endswith("\n"):
            path.write_text(text + "\n", encoding="utf-8")
    missing = [(q, prompt) for q, prompt in asked if prompt not in known]
    answer = _writer(target, tokenizer, max_new_tokens, batch)
    for at in range(0, len(missing), batch):
        rows_now = missing[at : at + batch]
        texts = answer([list(prompt) for _, prompt in rows_now])
        made = [Sample(prompt, tuple(text), q) for (q, prompt), text in zip(rows_now, texts, strict=True)]
        known |= {s.prompt: s.answer for s in made}
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                for s in made:
                    file.write(json.dumps(asdict(s) | {"max_new_tokens": max_new_tokens}) + "\n")
        if progress is not None:
            progress("answers", at + len(made), len(missing))
    return [Sample(prompt, known[prompt], q) for q, prompt in asked]


def _writer(
    target: Any, tokenizer: Any, max_new_tokens: int, batch: int
) -> Callable[[list[list[int]]], list[list[int]]]:
    """Prompts to answers, as token ids, up to and with the end of the text."""
    if batch == 1:
        decoder = SpeculativeDecoder(None, as_target(target), tokenizer, gamma=8)

        def one_by_one(prompts: list[list[int]]) -> list[list[int]]:
            written = [decoder.generate(p, max_new_tokens, temperature=0)[0].tolist() for p in prompts]
            return [text[len(p) :] for text, p in zip(written, prompts, strict=True)]

        return one_by_one
    ends = eos_tokens(target, tokenizer)
    pad = min(ends, default=0)

    def side_by_side(prompts: list[list[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=target.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=target.device)
        out = target.generate(
            ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
        )[:, width:].tolist()
        return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in out]

    return side_by_side


def render(tokenizer: Any, question: str, passage: str = "") -> list[int]:
    """A chat prompt where the tokenizer has a template, plain text otherwise; token ids."""
    text = f"{passage}\n\n{question}" if passage else question
    if getattr(tokenizer, "chat_template", None):
        chat = [{"role": "user", "content": text}]
        written = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(written, add_special_tokens=False).input_ids)
    return list(tokenizer(text + "\n").input_ids)


def loss_of(
    p: Tensor, logits: Tensor, *, kl_divergence_weight: float, acceptance_loss_weight: float
) -> tuple[Tensor, Tensor]:
    """p (N, V): the target's probabilities; logits (N, V): the draft's. Returns loss and mean acceptance.

    0.8 KL(target || draft) + 0.3 * -log sum min(p, q), by the default weights. Tokens outside a hot head (-inf) add
    nothing to the divergence; what they take from acceptance is counted.
    """
    log_q = torch.log_softmax(logits, -1)
    inside = torch.isfinite(log_q)
    kl = torch.where(inside, p * (p.clamp_min(1e-12).log() - log_q.masked_fill(~inside, 0.0)), 0.0).sum(-1)
    overlap = torch.minimum(p, log_q.exp()).sum(-1)
    loss = kl_divergence_weight * kl.mean() + acceptance_loss_weight * -overlap.clamp_min(1e-6).log().mean()
    return loss, overlap.detach().mean()


def train(
    draft: Qwen3DraftModel,
    samples: Sequence[Sample],
    folder: Path | str,
    *,
    progress: Callable[[str, int, int | None], None] | None = None,
    knowledge: bool = True,
) -> Report:
    """Train by the draft's own configuration; resumes from `folder/last.pth`.

    Writes `last.pth` (weights, optimiser, curves) after each epoch and `best_draft_model_knowledge_epoch<N>.pth`
    (key `model_state_dict`) for the best held-out acceptance, and `curves.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    t = draft.config.training
    held = max(1, round(len(samples) * t.held_out)) if len(samples) > 1 else 0
    fit, test = list(samples[held:]), list(samples[:held])
    optimiser = torch.optim.AdamW(draft.parameters(), lr=t.learning_rate, weight_decay=0.01)
    teacher = Teacher(draft)
    report = Report()
    last = folder / LAST
    if last.exists():
        state = torch.load(last, weights_only=True)
        draft.load_state_dict(state["model_state_dict"])
        optimiser.load_state_dict(state["optimizer_state_dict"])
        for group in optimiser.param_groups:  # the configuration's, which may have changed since
            group["lr"] = t.learning_rate
        report = Report(**json.loads(state["report"]))
        report.resumed_at = report.epochs
    for epoch in range(report.epochs, t.num_epochs):
        if t.max_steps and report.steps >= t.max_steps:
            break
        shuffle = random.Random(t.seed + epoch)
        order = shuffle.sample(fit, len(fit))
        draft.train()
        total, count = 0.0, 0
        batches = list(_batches(order, t.batch_size))
        for done, batch in enumerate(batches):
            optimiser.zero_grad()
            window, tokens, spent = shuffle.randrange(WINDOWS), sum(len(s.answer) for s in batch), 0.0
            for sample in batch:  # one at a time: each has its own length and its own knowledge
                loss, _ = _forward(draft, sample, window, knowledge, teacher)
                loss = loss * (len(sample.answer) / max(1, tokens))
                loss.backward()  # type: ignore[no-untyped-call]
                spent += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
            optimiser.step()
            total, count = total + spent, count + 1
            report.steps += 1
            if progress is not None:
                progress(f"epoch {epoch + 1} of {t.num_epochs}", done + 1, len(batches))
            if t.max_steps and report.steps >= t.max_steps:
                break
        report.epochs = epoch + 1
        report.loss.append(total / max(1, count))
        score = acceptance(draft, test or fit, knowledge=knowledge, teacher=teacher)
        report.held_out_acceptance.append(score)
        if score >= max(report.held_out_acceptance):
            name = f"best_draft_model_knowledge_epoch{epoch + 1}.pth"
            _save(
                folder / name,
                {"model_state_dict": draft.state_dict(), "epoch": epoch + 1, "acceptance": score},
            )
            if report.best and report.best != name:
                (folder / report.best).unlink(missing_ok=True)
            report.best, report.best_epoch = name, epoch + 1
        state = {"model_state_dict": draft.state_dict(), "optimizer_state_dict": optimiser.state_dict()}
        _save(last, state | {"report": json.dumps(asdict(report))})
        (folder / "curves.json").write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    draft.eval()
    return report


@torch.no_grad()
def acceptance(
    draft: Qwen3DraftModel,
    samples: Sequence[Sample],
    *,
    knowledge: bool = True,
    window: int = 1,
    teacher: Teacher | None = None,
) -> float:
    """Mean of sum(min(p, q)) over the answers' tokens."""
    draft.eval()
    teacher = teacher or Teacher(draft)
    total, count = 0.0, 0
    for sample in samples:
        overlap = _forward(draft, sample, window, knowledge, teacher)[1]
        total, count = total + float(overlap) * len(sample.answer), count + len(sample.answer)
    return total / max(1, count)


class Teacher:
    """What the target says about a sample, read once: its last hidden states at the answer's rows, and its keys and
    values at the draft's layers."""

    def __init__(self, draft: Qwen3DraftModel) -> None:
        self._draft = draft
        self._kept: dict[Sample, tuple[Tensor, list[tuple[Tensor, Tensor]]]] = {}
        self._bytes = 0

    @torch.no_grad()
    def read(self, sample: Sample) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Probabilities (answer, vocab) at each answer token; keys and values (1, kv_heads, T, head_dim) by layer."""
        target = self._draft.target_model
        found = self._kept.get(sample)
        if found is None:
            out = target.model(input_ids=torch.tensor([[*sample.prompt, *sample.answer]]), use_cache=True)
            held = out.past_key_values.layers
            first = len(sample.prompt) - 1
            hidden = out.last_hidden_state[0, first : first + len(sample.answer)].clone()
            found = hidden, [(held[i].keys, held[i].values) for i in self._draft.sampled_layers]
            size = sum(
                x.numel() * x.element_size() for x in (hidden, *(y for pair in found[1] for y in pair))
            )
            if self._bytes + size <= TEACHER_BYTES:
                self._kept[sample] = found
                self._bytes += size
        return torch.softmax(target.lm_head(found[0]).float(), -1), found[1]


def load_draft(draft: Qwen3DraftModel, path: Path | str) -> Qwen3DraftModel:
    """Read a checkpoint's `model_state_dict` into `draft`."""
    state: Mapping[str, Any] = torch.load(path, weights_only=True)
    draft.load_state_dict(state["model_state_dict"])
    return draft.eval()


def _forward(
    draft: Qwen3DraftModel, sample: Sample, window: int, knowledge: bool, teacher: Teacher
) -> tuple[Tensor, Tensor]:
    """Loss and acceptance over the answer's rows; the rows of the prompt are the target's alone."""
    p, kv = teacher.read(sample)
    first = len(sample.prompt) - 1
    start = max(0, first - window)
    ids = torch.tensor([[*sample.prompt, *sample.answer]])
    question = sample.question if knowledge else None
    out = draft(ids, knowledge, question, target_kv=kv, window=window, start=start)["logits"][0]
    t = draft.config.training
    return loss_of(
        p,
        out[first - start : first - start + len(sample.answer)],
        kl_divergence_weight=t.kl_divergence_weight,
        acceptance_loss_weight=t.acceptance_loss_weight,
    )


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def _save(path: Path, state: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    torch.save(dict(state), temporary)
    os.replace(temporary, path)


__all__ = ["Report", "Sample", "acceptance", "load_draft", "loss_of", "render", "train", "write_samples"]
