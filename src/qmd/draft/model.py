"""The knowledge-enhanced draft: a few of the target's layers, bridged, reading the target's keys and values.

A block is: self-attention and MLP of the sampled layer -> gated cross-attention to the knowledge -> transition. What is
new starts as the identity (gates closed, transitions zero), so training starts from the sampled layers.

Self-attention of row t sees the target's own keys and values of this layer up to t - w, and the draft's own for the
last w rows and itself: while drafting, the target has not seen the drafted tokens yet.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qmd.draft.knowledge import KnowledgeCacheManager
from qmd.draft.settings import DraftConfig, read_config


class LayerSampler:
    """Which of `num_layers` layers a draft of `num_sampled` takes; first and last always."""

    def __init__(self, num_layers: int, num_sampled: int = 6, strategy: str = "uniform") -> None:
        if strategy != "uniform":
            raise ValueError(f"sampling_strategy {strategy!r} is not known; use 'uniform'.")
        if not 1 <= num_sampled <= num_layers:
            raise ValueError(f"num_sampled_layers must be 1 to {num_layers}, got {num_sampled}.")
        self.num_layers, self.num_sampled = num_layers, num_sampled

    def sample(self) -> list[int]:
        """round(i * (L - 1) / (k - 1)), halves to even: 28 layers, 6 sampled -> [0, 5, 11, 16, 22, 27]."""
        if self.num_sampled == 1:
            return [self.num_layers - 1]
        return [round(i * (self.num_layers - 1) / (self.num_sampled - 1)) for i in range(self.num_sampled)]


class KnowledgeAttention(nn.Module):
    """x + tanh(gate) * attention(x, knowledge); the gate starts at 0. Knowledge is the target's KV of this layer."""

    def __init__(self, hidden_size: int, kv_width: int, cache_dim: int, num_heads: int) -> None:
        super().__init__()
        self.heads = num_heads
        self.query = nn.Linear(hidden_size, cache_dim, bias=False)
        self.key = nn.Linear(kv_width, cache_dim, bias=False)
        self.value = nn.Linear(kv_width, cache_dim, bias=False)
        self.out = nn.Linear(cache_dim, hidden_size, bias=False)
        self.gate = nn.Parameter(torch.zeros(hidden_size))

    def project(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(kv_heads, S, head_dim) twice -> (heads, S, cache_dim / heads) twice."""
        k, v = (x.transpose(0, 1).flatten(1).float() for x in (keys, values))
        return self._split(self.key(k)), self._split(self.value(v))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.heads, -1).transpose(0, 1)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x (B, T, d); keys, values as `project` gives them."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (y.expand(x.shape[0], *y.shape) for y in (keys, values))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        enhanced: Tensor = self.out(mixed)
        return x + torch.tanh(self.gate) * enhanced


class Transition(nn.Module):
    """x + up(silu(down(x))): bridges the layers that are missing. Starts as the identity."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size)
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.silu(self.down(self.norm(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One sampled layer (a copy of the target's), its knowledge and its transition."""

    def __init__(self, layer: nn.Module, config: Any, draft: DraftConfig, num_heads: int) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).float().requires_grad_(True)
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        hidden = config.hidden_size
        self.knowledge: KnowledgeAttention | None = None
        if draft.knowledge_enhancement.enabled:
            cache_dim = draft.knowledge_enhancement.cache_dim
            self.knowledge = KnowledgeAttention(hidden, self.kv_heads * self.head_dim, cache_dim, num_heads)
        self.transition = Transition(hidden, draft.draft_model.transition_rank or hidden // 4)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        target_kv: tuple[Tensor, Tensor],
        mask: Tensor,
        knowledge: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """x (B, T, d); rope cos, sin (T, head_dim); target_kv (B, kv_heads, S, head_dim) twice; mask (T, S + T)."""
        a: Any = self.layer.self_attn
        y = self.layer.input_layernorm(x)  # type: ignore[operator]
        q, k, v = (p(y).unflatten(-1, (-1, self.head_dim)) for p in (a.q_proj, a.k_proj, a.v_proj))
        if hasattr(a, "q_norm"):
            q, k = a.q_norm(q), a.k_norm(k)
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        q, k = rotate(q, *rope), rotate(k, *rope)
        k, v = torch.cat([target_kv[0].to(k), k], 2), torch.cat([target_kv[1].to(v), v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        x = x + a.o_proj(mixed.transpose(1, 2).flatten(2))
        x = x + self.layer.mlp(self.layer.post_attention_layernorm(x))  # type: ignore[operator]
        if self.knowledge is not None and knowledge is not None:
            x = self.knowledge(x, *self.knowledge.project(*knowledge))
        return self.transition(x)  # type: ignore[no-any-return]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (..., T, head_dim), cos and sin (T, head_dim)."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def window_mask(length: int, window: int, device: torch.device | None = None, start: int = 0) -> Tensor:
    """(T - start, T + T - start) bool: row t may see the target's rows s < t - window and the draft's rows
    t - window <= s <= t."""
    t = torch.arange(start, length, device=device)[:, None]
    s = torch.arange(length, device=device)[None, :]
    own = s[:, start:]
    return torch.cat([s < t - window, (own >= t - window) & (own <= t)], 1)


class Qwen3DraftModel(nn.Module):
    """A draft for `target_model` (Qwen3 or Llama family), with its own copies of the sampled layers.

    config: the specification's mapping, a YAML path, or a DraftConfig. Embedding, final norm and LM head are the
    target's and never trained. A reduced head (`hot_vocabulary`) has the lowest ids, which in byte-pair vocabularies
    are the most frequent.
    """

    def __init__(
        self,
        config: DraftConfig | Mapping[str, Any] | str | None,
        target_model: Any,
        knowledge_cache_manager: KnowledgeCacheManager | None = None,
    ) -> None:
        super().__init__()
        self.config = read_config(config)
        shape = target_model.config
        d = self.config.draft_model
        self.sampled_layers = LayerSampler(
            shape.num_hidden_layers, d.num_sampled_layers, d.sampling_strategy
        ).sample()
        heads = knowledge_cache_manager.num_heads if knowledge_cache_manager else shape.num_attention_heads
        cache_dim = self.config.knowledge_enhancement.cache_dim
        if cache_dim % heads:
            heads = next(h for h in range(heads, 0, -1) if cache_dim % h == 0)
        self.manager = knowledge_cache_manager
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.training.seed)
            self.blocks = nn.ModuleList(
                Block(target_model.model.layers[i], shape, self.config, heads) for i in self.sampled_layers
            )
        self._shared = (
            target_model,
        )  # in a tuple: not a submodule, so nothing of the target is trained or saved
        self.vocab_size: int = shape.vocab_size
        self.hot_ids: Tensor | None
        reduced = 0 < d.hot_vocabulary < shape.vocab_size
        self.register_buffer("hot_ids", torch.arange(d.hot_vocabulary) if reduced else None)

    @property
    def target_model(self) -> Any:
        return self._shared[0]

    def new_parameters(self) -> int:
        """Parameters that the target has no counterpart of: cross-attention, gates, transitions."""
        return sum(p.numel() for n, p in self.named_parameters() if ".layer." not in n)

    def head_weight(self) -> Tensor:
        """(rows, d): the target's LM head, or its hot rows."""
        weight: Tensor = self.target_model.lm_head.weight.detach()
        return weight if self.hot_ids is None else weight[self.hot_ids]

    def forward(
        self,
        input_ids: Tensor,
        retrieve_knowledge: bool = True,
        query_text: str | None = None,
        *,
        target_kv: Sequence[tuple[Tensor, Tensor]] | None = None,
        window: int = 0,
        start: int = 0,
    ) -> dict[str, Tensor]:
        """input_ids (B, T) -> {"logits": (B, T - start, vocab)}; tokens outside a hot head have -inf.

        target_kv: the target's keys and values at each sampled layer, (B, kv_heads, T, head_dim) twice; computed when
        not given. query_text: chooses the knowledge, when the manager has any and `retrieve_knowledge` is set.
        start: rows before it are left out; a row needs its last `window` rows to be there.
        """
        target = self.target_model
        if target_kv is None:
            target_kv = target_rows(target, input_ids, self.sampled_layers)[1]
        knowledge = self.find_knowledge(query_text) if retrieve_knowledge else None
        x = F.embedding(input_ids[:, start:], target.model.embed_tokens.weight.detach()).float()
        length = input_ids.shape[1]
        cos, sin = target.model.rotary_emb(x, torch.arange(start, length, device=x.device)[None])
        mask = window_mask(length, window, x.device, start)
        for i, block in enumerate(self.blocks):
            known = (
                None
                if knowledge is None
                else (knowledge[0][self.sampled_layers[i]], knowledge[1][self.sampled_layers[i]])
            )
            x = block(x, (cos[0].float(), sin[0].float()), target_kv[i], mask, known)
        norm = target.model.norm
        x = F.rms_norm(x, (x.shape[-1],), norm.weight.detach().float(), target.config.rms_norm_eps)
        logits = F.linear(x, self.head_weight().float())
        if self.hot_ids is not None:
            full = logits.new_full((*logits.shape[:-1], self.vocab_size), -torch.inf)
            logits = full.index_copy(-1, self.hot_ids, logits)
        return {"logits": logits}

    def find_knowledge(self, query_text: str | None) -> tuple[Tensor, Tensor] | None:
        if self.manager is None or query_text is None or not self.config.knowledge_enhancement.enabled:
            return None
        return self.manager.knowledge_kv(query_text)


@torch.no_grad()
def target_rows(
    target: Any, ids: Tensor, layers: Sequence[int]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The target's logits (B, T, vocab) and its keys and values at `layers`, with one forward of `transformers`."""
    out = target(input_ids=ids, use_cache=True)
    held = out.past_key_values.layers
    return out.logits.float(), [(held[i].keys, held[i].values) for i in layers]
