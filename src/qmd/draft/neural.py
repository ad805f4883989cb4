"""The neural draft as a proposer: one token at a time over packed weights, on top of the target's cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from qmd.draft.cost import CostTable, best_length
from qmd.draft.linear import Precision, packs_int8, prepare
from qmd.draft.model import Block, Qwen3DraftModel
from qmd.draft.proposers import NOTHING, Proposal, Situation
from qmd.draft.sampling import distribution, draw
from qmd.draft.torch_target import KVCache, TorchTarget, _Layer
from qmd.errors import ModelError


class NeuralProposer:
    """Drafts with a Qwen3DraftModel. Its weights are packed in int8 by default: only the acceptance can suffer.

    query_text: chooses the knowledge for the next generation; None leaves knowledge out.
    """

    name = "draft"

    def __init__(self, draft: Qwen3DraftModel, target: Any, *, precision: Precision | None = None) -> None:
        if not isinstance(target, TorchTarget):
            raise ModelError("the neural draft reads the target's keys and values; it needs a TorchTarget.")
        if precision is None:
            precision = "native" if target.device.type != "cpu" else "int8" if packs_int8() else "float32"
        self.draft, self.target = draft, target
        self.query_text: str | None = None
        self.token_cost = 0.0
        self.acceptance = 0.6
        self._knowledge: list[tuple[Tensor, Tensor]] | None = None
        self._hot: Tensor | None = draft.hot_ids
        blocks = [cast(Block, b) for b in draft.blocks]
        self._layers = [_Layer(b.layer, precision) for b in blocks]
        self._bridges = [
            (b.transition.norm.weight.detach(), prepare(b.transition.down.weight.detach(), None, precision),
             prepare(b.transition.up.weight.detach(), None, precision))
            for b in blocks
        ]  # fmt: skip
        self._head = prepare(draft.head_weight(), None, precision)

    def start(self, prompt: Sequence[int], passages: Sequence[Sequence[int]] = ()) -> None:
        known = self.draft.find_knowledge(self.query_text)
        self._knowledge = None
        if known is not None:
            self._knowledge = [
                cast(Block, b).knowledge.project(known[0][i], known[1][i])  # type: ignore[union-attr]
                for b, i in zip(self.draft.blocks, self.draft.sampled_layers, strict=True)
            ]

    def propose(self, situation: Situation, limit: int) -> Proposal:
        table = cast(CostTable, situation.cost)
        g, _ = best_length([self.acceptance] * limit, table, token_cost=self.token_cost)
        if g < 1:
            return NOTHING
        begin = time.perf_counter()
        cache = cast(KVCache, situation.cache)
        own: list[tuple[Tensor, Tensor] | None] = [None] * len(self._layers)
        tokens: list[int] = []
        rows: list[Tensor] = []
        token = situation.tokens[-1]
        for step in range(g):
            logits = self.step(token, cache, own, step)
            if situation.sampling.greedy:
                token = int(logits.argmax())
            else:
                rows.append(distribution(logits, situation.sampling)[0])
                token = draw(rows[-1], situation.generator)
            tokens.append(token)
        spent = (time.perf_counter() - begin) / g / max(table.step_s, 1e-9)
        if table.step_s < 1.0:  # a measured table; the flat one has no time
            self.token_cost = spent if not self.token_cost else 0.9 * self.token_cost + 0.1 * spent
        q = torch.stack(rows) if rows else torch.zeros(g, 1)  # greedy compares tokens only
        return Proposal(tuple(tokens), (self.acceptance,) * g, q, "draft")

    def step(
        self, token: int, cache: KVCache, own: list[tuple[Tensor, Tensor] | None], drafted: int
    ) -> Tensor:
        """Logits (1, vocab) after `token`, which stands `drafted` places behind the target's cache."""
        t = self.target
        position, seen = cache.length + drafted, cache.length
        cos, sin = t.rope(position, position + 1)
        x = F.embedding(torch.tensor([token], device=t.device), t.embedding).float()
        heads, kv, dim = t.heads, t.kv_heads, t.head_dim
        for i, layer in enumerate(self._layers):
            y = layer.qkv(t._rms(x, layer.norm_in)).view(1, heads + 2 * kv, dim)
            q, k, v = y[:, :heads], y[:, heads : heads + kv], y[:, heads + kv :]
            if layer.q_norm is not None:
                q, k = t._rms(q, layer.q_norm), t._rms(k, layer.k_norm)
            q, k = (z * cos + z.roll(dim // 2, -1) * sin for z in (q, k))
            k, v = k.transpose(0, 1), v.transpose(0, 1)  # (kv, 1, dim)
            before = own[i]
            if before is not None:
                k, v = torch.cat([before[0], k], 1), torch.cat([before[1], v], 1)
            own[i] = (k, v)
            where = self.draft.sampled_layers[i]
            keys = torch.cat([cache.keys[where, :, :seen].float(), k], 1)[None]
            values = torch.cat([cache.values[where, :, :seen].float(), v], 1)[None]
            mixed = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, enable_gqa=True)
            x = x + layer.out(mixed.reshape(1, -1))
            gate, up = layer.gate_up(t._rms(x, layer.norm_mid)).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
            if self._knowledge is not None:
                attend = cast(Block, self.draft.blocks[i]).knowledge
                assert attend is not None
                x = attend(x[None], *self._knowledge[i])[0]
            norm, down, lift = self._bridges[i]
            x = x + lift(F.silu(down(F.rms_norm(x, (x.shape[-1],), norm))))
        logits = self._head(t._rms(x, t.norm)).float()
        if self._hot is None:
            return logits
        return logits.new_full((1, t.vocab_size), -torch.inf).index_copy_(1, self._hot, logits)

    def observe(self, proposal: Proposal, verified: int, accepted: int) -> None:
        tried = min(verified, accepted + 1)
        for i in range(tried):
            self.acceptance = 0.95 * self.acceptance + 0.05 * (i < accepted)

    def extend(self, tokens: Sequence[int]) -> None:
        """Nothing is kept: what the draft computed for itself is dropped after each verification."""
