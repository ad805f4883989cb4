"""Suffix drafting for the text generators of `qmd.llm`: what their loop asks for. Needs no torch."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from qmd.draft.cost import CostTable, Ledger, best_length
from qmd.draft.onnx_target import OnnxCache, check_target
from qmd.draft.proposers import NOTHING, Proposal, SuffixProposer
from qmd.draft.stats import Stats
from qmd.draft.target import Target
from qmd.llm.decoder import CausalModel
from qmd.llm.files import cache_root, write_atomically
from qmd.llm.generator import OnnxGenerator
from qmd.llm.prepare import machine_name
from qmd.llm.session import default_threads

GAMMA = 8
ROWS = (1, 2, 3, 4, 6, 9)
CONTEXT = 256
REPEATS = 6
FORMAT_VERSION = 2


class EngineDrafter:
    """Copies from the prompt, the text itself and earlier answers, as far as the cost table says it pays.

    cost: c(g) of the generator's graph (`measured_cost`). gamma: most tokens offered at a time.
    """

    def __init__(self, cost: CostTable, *, gamma: int = GAMMA) -> None:
        self.cost, self.gamma = cost, gamma
        self.suffix = SuffixProposer()
        self.stats = Stats()
        self._ledger = Ledger()
        self._offer: Proposal = NOTHING
        self._written: list[int] = []

    def start(self, prompt: Sequence[int]) -> None:
        if self._written:
            self.suffix.remember(self._written)
        self._written, self._offer = [], NOTHING
        self._ledger = Ledger()
        self.stats = Stats(prompt_tokens=len(prompt))
        self.suffix.start(prompt)

    def offer(self, limit: int) -> Sequence[int]:
        self._offer = NOTHING
        if not self._ledger.pays:
            return ()
        self._offer = self.suffix.copy(min(limit, self.gamma))
        return self._offer.tokens[: best_length(self._offer.confidence, self.cost)[0]]

    def wrote(self, tokens: Sequence[int], offered: Sequence[int], stood: int) -> None:
        stats = self.stats
        stats.steps += stats.new_tokens > 0  # the first token comes from the prompt
        stats.new_tokens += len(tokens)
        self._written += tokens
        self.suffix.extend(tokens)
        if offered:
            origin = self._offer.origin
            stats.proposed += len(offered)
            stats.accepted += stood
            stats.accepted_by_origin[origin] = stats.accepted_by_origin.get(origin, 0) + stood
            self._ledger.add(len(tokens), self.cost.cost(len(offered) + 1))
            self.suffix.observe(self._offer, len(offered), stood)
            stats.gain_by["suffix"] = self._ledger.gain
            stats.switched_off = () if self._ledger.pays else ("suffix",)


def attach_drafter(generator: Any) -> EngineDrafter | None:
    """Give a generator its drafter, or None for one that does not check several tokens at once (llama.cpp)."""
    if not isinstance(generator, OnnxGenerator) or not generator.model.has_cache:
        return None
    if not generator.model.gives_every_logit:
        return None
    drafter = EngineDrafter(measured_cost(generator))
    generator.drafter = drafter
    return drafter


def measured_cost(generator: OnnxGenerator) -> CostTable:
    """c(g) of a graph on this machine: measured once (two seconds for SmolLM2), then kept beside the prepared graphs.

    Raises ModelError for a graph that cannot be a target.
    """
    model = generator.model
    check_target(model)
    name = re.sub(r"[^\w.-]+", "_", f"{generator.fingerprint}-{machine_name()}-{default_threads()}")
    path = cache_root() / "drafting" / f"{name}.json"
    kept = _read(path)
    if kept is None:
        kept = CostTable.measure(
            cast(Target, _Clocked(model, generator.card.max_tokens)),
            context=CONTEXT,
            repeats=REPEATS,
            rows=ROWS,
        )
        with contextlib.suppress(OSError):
            write_atomically(path, json.dumps({"format_version": FORMAT_VERSION, **asdict(kept)}).encode())
    return kept


def _read(path: Path) -> CostTable | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        tree = json.loads(path.read_text())
        if tree["format_version"] == FORMAT_VERSION:
            return CostTable(float(tree["step_s"]), tuple(map(float, tree["relative"])))
    return None


class _Clocked:
    """A graph as `CostTable.measure` asks for it."""

    def __init__(self, model: CausalModel, max_context: int) -> None:
        self.model, self.vocab_size, self.max_context = model, model.vocab_size, max_context

    def new_cache(self) -> OnnxCache:
        return OnnxCache(self.model)

    def forward(self, tokens: Sequence[int], cache: OnnxCache, *, last_only: bool = False) -> Any:
        return cache.extend(tokens, last_only=last_only)
