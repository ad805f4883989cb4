"""Speculative decoding: proposers offer tokens, the target checks them in one forward, the text stays the target's.

One step: the last token and g offered ones go through the target (g + 1 rows), the offered tokens that stand are kept,
one more is drawn from the row after them, and the cache is cut back to what was kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from qmd.draft.cost import ROWS, CostTable, Ledger, best_length
from qmd.draft.proposers import NOTHING, Proposal, Proposer, Situation, SuffixProposer
from qmd.draft.sampling import Sampling, accept, distribution
from qmd.draft.stats import Stats
from qmd.draft.target import Cache, Target
from qmd.draft.torch_target import as_target


class SpeculativeDecoder:
    """Decode `target_model` with proposals; lossless for greedy and for sampling.

    draft_model: None (suffix proposals alone), a Qwen3DraftModel (suffix first, then the draft), a proposer, or a
    sequence of them, first come first asked; an empty sequence is plain decoding.
    target_model: a `transformers` causal model or a Target. tokenizer: needed for `stop` and the end-of-text token; may
    be None with `eos_token_ids`. gamma: most tokens proposed at a time, 1 to 16.
    cost: None measures c(g) at the first generation (about a second); `CostTable.flat()` always proposes gamma.
    """

    def __init__(
        self,
        draft_model: Any,
        target_model: Any,
        tokenizer: Any = None,
        gamma: int = 5,
        *,
        cost: CostTable | None = None,
        eos_token_ids: Sequence[int] | None = None,
    ) -> None:
        if not 1 <= gamma <= 16:
            raise ValueError(f"gamma is the number of tokens proposed at a time, 1 to 16; got {gamma}.")
        self.target: Target = as_target(target_model)
        self.tokenizer = tokenizer
        self.gamma = gamma
        self.proposers: list[Proposer] = _proposers(draft_model, self.target)
        self._cost = cost
        self.eos = frozenset(
            eos_token_ids if eos_token_ids is not None else eos_tokens(target_model, tokenizer)
        )
        self.stats = Stats()

    @property
    def cost(self) -> CostTable:
        """The table in force; measured on first use."""
        if self._cost is None:
            self._cost = CostTable.measure(
                self.target, rows=sorted({*(r for r in ROWS if r <= self.gamma), self.gamma + 1})
            )
        return self._cost

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor | Sequence[int],
        max_new_tokens: int = 20,
        temperature: float = 1.0,
        top_p: float = 0.9,
        *,
        top_k: int = 0,
        stop: Sequence[str] = (),
        streamer: Any = None,
        seed: int | None = None,
        passages: Sequence[Sequence[int]] = (),
        cache: Cache | None = None,
    ) -> Tensor:
        """Continue `input_ids` ((T,), (1, T) or a list); returns (1, T + new) int64 as `transformers` does.

        Ends at an end-of-text token (kept), at the token that completes one of `stop` (kept), or at max_new_tokens.
        streamer: called with each list of new token ids (True ends the text), or, as `transformers` has them, an object
        with `put` (of the prompt, then of new tokens) and `end`.
        passages: texts known to matter beside the prompt, as token ids. cache: holds a prefix of the prompt's keys and
        values; it is extended in place. Raises ValueError for an empty prompt, more than one row, a token outside the
        vocabulary, or a prompt over the context.
        """
        prompt = _prompt(input_ids, self.target.vocab_size)
        sampling = Sampling(temperature, top_p, top_k)
        if isinstance(stop, str) or not all(stop):
            raise ValueError(f"`stop` is a list of strings, none of them empty; got {stop!r}.")
        if stop and self.tokenizer is None:
            raise ValueError("`stop` strings need a tokenizer; give one to SpeculativeDecoder.")
        if streamer is not None and not callable(streamer):
            streamer.put(torch.tensor([prompt]))
        if max_new_tokens < 1:
            _end(streamer)
            return torch.tensor([prompt])
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        room = self.target.max_context - len(prompt)
        if room < 1:
            raise ValueError(
                f"prompt of {len(prompt)} tokens leaves no room in the context of {self.target.max_context}."
            )
        budget = min(max_new_tokens, room)
        table = self.cost if self.proposers else CostTable.flat()
        run = _Run(self, prompt, sampling, generator, table, passages, stop, streamer)
        run.prefill(cache)
        while not run.done and len(run.new) < budget:
            run.step(budget - len(run.new))
        run.finish()
        self.stats = run.stats
        return torch.tensor([prompt + run.new])


class _Run:
    """The state of one generation."""

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        prompt: list[int],
        sampling: Sampling,
        generator: torch.Generator | None,
        table: CostTable,
        passages: Sequence[Sequence[int]],
        stop: Sequence[str],
        streamer: Any,
    ) -> None:
        self.decoder, self.target = decoder, decoder.target
        self.tokens = list(prompt)
        self.prompt_length = len(prompt)
        self.sampling, self.generator, self.table = sampling, generator, table
        self.stop, self.streamer = tuple(stop), streamer
        self.new: list[int] = []
        self.done = False
        self.stats = Stats(prompt_tokens=len(prompt))
        self.ledgers = {p.name: Ledger() for p in decoder.proposers}
        for proposer in decoder.proposers:
            proposer.start(prompt, passages)
        self.begin = time.perf_counter()

    def prefill(self, cache: Cache | None) -> None:
        cache = self.target.new_cache() if cache is None else cache
        cache.crop(min(cache.length, self.prompt_length - 1))
        self.cache = cache
        self.stats.reused_tokens = cache.length
        logits = self.target.forward(self.tokens[cache.length :], cache, last_only=True)
        _, token = self._choose([], None, logits)
        now = time.perf_counter()
        self.stats.time_s["prefill"] += now - self.begin
        self.stats.first_token_s = now - self.begin
        self._write([token])

    def step(self, room: int) -> None:
        clock = time.perf_counter
        t0 = clock()
        proposer, offer, g = self._offer(min(self.decoder.gamma, room - 1, self._context_room()))
        tokens = list(offer.tokens[:g])
        t1 = clock()
        logits = self.target.forward([self.tokens[-1], *tokens], self.cache)
        t2 = clock()
        q = None if offer.q is None or not g else offer.q[:g]
        accepted, following = self._choose(tokens, q, logits)
        self.cache.crop(len(self.tokens) + accepted)
        stats, times = self.stats, self.stats.time_s
        stats.steps += 1
        if proposer is not None and g:
            stats.proposed += g
            stats.accepted += accepted
            stats.proposed_by[proposer.name] = stats.proposed_by.get(proposer.name, 0) + g
            stats.accepted_by[proposer.name] = stats.accepted_by.get(proposer.name, 0) + accepted
            stats.accepted_by_origin[offer.origin] = stats.accepted_by_origin.get(offer.origin, 0) + accepted
            self.ledgers[proposer.name].add(
                accepted + 1, self.table.cost(g + 1) + len(offer.tokens) * proposer.token_cost
            )
            proposer.observe(offer, g, accepted)
        times["propose"] += t1 - t0
        times["verify"] += t2 - t1
        times["choose"] += clock() - t2
        self._write([*tokens[:accepted], following])

    def _context_room(self) -> int:
        return self.target.max_context - len(self.tokens)

    def _offer(self, limit: int) -> tuple[Proposer | None, Proposal, int]:
        """The first proposer with something worth its verification, and how much of it to verify."""
        if limit < 1:
            return None, NOTHING, 0
        situation = Situation(self.tokens, self.cache, self.sampling, self.generator, self.table)
        for proposer in self.decoder.proposers:
            if not self.ledgers[proposer.name].pays:
                continue
            offer = proposer.propose(situation, limit)
            if not offer.tokens:
                continue
            if offer.q is not None:  # drawn tokens: the length was decided before drawing
                return proposer, offer, len(offer.tokens)
            g, _ = best_length(offer.confidence, self.table)
            if g:
                return proposer, offer, g
        return None, NOTHING, 0

    def _choose(self, tokens: list[int], q: Tensor | None, logits: Tensor) -> tuple[int, int]:
        if self.sampling.greedy:
            best: list[int] = logits.argmax(-1).tolist()
            for i, token in enumerate(tokens):
                if best[i] != token:
                    return i, best[i]
            return len(tokens), best[len(tokens)]
        return accept(tokens, q, distribution(logits, self.sampling).cpu(), self.generator)

    def _write(self, tokens: list[int]) -> None:
        """Take over tokens, up to and including the one that ends the text."""
        kept: list[int] = []
        for token in tokens:
            kept.append(token)
            self.new.append(token)
            if token in self.decoder.eos or (self.stop and self._stopped()):
                self.done = True
                break
        self.tokens.extend(kept)
        for proposer in self.decoder.proposers:
            proposer.extend(kept)
        if callable(self.streamer):
            self.done = self.streamer(kept) is True or self.done
        elif self.streamer is not None:
            self.streamer.put(torch.tensor(kept))

    def _stopped(self) -> bool:
        longest = max(len(s.encode()) for s in self.stop)  # a token may be a single byte
        text = self.decoder.tokenizer.decode(self.new[-(longest + 8) :])
        return any(s in text for s in self.stop)

    def finish(self) -> None:
        # the last token is written but not in the cache; a cache cut to the text can serve the next question
        self.cache.crop(min(self.cache.length, len(self.tokens) - 1))
        self.stats.new_tokens = len(self.new)
        self.stats.gain_by = {n: ledger.gain for n, ledger in self.ledgers.items() if ledger.steps}
        self.stats.switched_off = tuple(n for n, ledger in self.ledgers.items() if not ledger.pays)
        _end(self.streamer)


def _end(streamer: Any) -> None:
    if streamer is not None and hasattr(streamer, "end"):
        streamer.end()


def _proposers(draft: Any, target: Target) -> list[Proposer]:
    if draft is None:
        return [SuffixProposer()]
    if isinstance(draft, torch.nn.Module):
        from qmd.draft.neural import NeuralProposer

        return [SuffixProposer(), NeuralProposer(cast(Any, draft), target)]
    if isinstance(draft, Sequence):
        return list(draft)
    return [draft]


def eos_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text, by the model's own configuration and the tokenizer's."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return found


def _prompt(input_ids: Tensor | Sequence[int], vocab_size: int) -> list[int]:
    ids = torch.as_tensor(input_ids)
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.dim() != 1 or not ids.numel():
        raise ValueError(f"need one prompt of at least one token; got shape {tuple(ids.shape)}.")
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(
            f"tokens are numbers from 0 to {vocab_size - 1}; got {int(ids.min())} to {int(ids.max())}."
        )
    return [int(i) for i in ids.tolist()]
