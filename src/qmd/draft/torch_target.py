"""Llama and Qwen (2, 3) decoders as a target: a lean forward over packed weights and a key-value cache in place.

Weights come from a `transformers` model; its own forward is not used. Up to 17 rows go through kernels whose result for
a row does not depend on the other rows (see `linear`), and attention is taken row by row with the shapes of plain
decoding, so a verified token has bit for bit the logits that plain decoding gives it. Longer inputs (prompts) take the
usual fused attention.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qmd.draft.linear import Linear, Precision, packs_int8, prepare
from qmd.errors import ModelError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
EXACT_ROWS = 17  # gamma 16 and the token before it


class KVCache:
    """Keys and values (layers, kv_heads, capacity, head_dim), filled in place, cut back by moving one number."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (layers, kv_heads, head_dim)
        self._dtype, self._device = dtype, device
        self.keys = torch.zeros(layers, kv_heads, 0, head_dim, dtype=self._dtype, device=self._device)
        self.values = torch.zeros(layers, kv_heads, 0, head_dim, dtype=self._dtype, device=self._device)
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def crop(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"cache holds {self._length} tokens, cannot cut it to {length}.")
        self._length = length

    def reserve(self, capacity: int) -> None:
        """Make room; what is held stays."""
        have = self.keys.shape[2]
        if capacity <= have:
            return
        capacity = max(capacity, min(2 * have, have + 1024), 128)
        layers, heads, dim = self._shape
        for name in ("keys", "values"):
            grown = torch.zeros(layers, heads, capacity, dim, dtype=self._dtype, device=self._device)
            grown[:, :, : self._length] = getattr(self, name)[:, :, : self._length]
            setattr(self, name, grown)

    def advance(self, tokens: int) -> None:
        self._length += tokens

    def load(self, keys: Tensor, values: Tensor) -> None:
        """Start from a stored prefix: both (layers, kv_heads, T, head_dim)."""
        tokens = keys.shape[2]
        self.crop(0)
        self.reserve(tokens + 128)
        self.keys[:, :, :tokens] = keys
        self.values[:, :, :tokens] = values
        self._length = tokens

    def view(self) -> tuple[Tensor, Tensor]:
        """Keys and values held, (layers, kv_heads, length, head_dim) each; views, not copies."""
        return self.keys[:, :, : self._length], self.values[:, :, : self._length]


class _Layer:
    """One block's weights, packed: q, k, v in one product, gate and up in another."""

    def __init__(self, block: Any, precision: Precision) -> None:
        attention, mlp = block.self_attn, block.mlp

        def join(*parts: nn.Linear) -> Linear:
            weight = torch.cat([p.weight.detach() for p in parts])
            bias = None if parts[0].bias is None else torch.cat([p.bias.detach() for p in parts])
            return prepare(weight, bias, precision)

        self.qkv = join(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = join(attention.o_proj)
        self.gate_up = join(mlp.gate_proj, mlp.up_proj)
        self.down = join(mlp.down_proj)
        self.norm_in = block.input_layernorm.weight.detach()
        self.norm_mid = block.post_attention_layernorm.weight.detach()
        self.q_norm = attention.q_norm.weight.detach() if hasattr(attention, "q_norm") else None
        self.k_norm = attention.k_norm.weight.detach() if hasattr(attention, "k_norm") else None


class TorchTarget:
    """A target from a `transformers` model of the Llama, Mistral, Qwen2 or Qwen3 family.

    precision: float32 (packed, CPU), int8 (weights per channel, activations per row; x86 CPU), native (the model's
    own type and device; what CUDA and ROCm use). Raises ModelError for another family or an unsupported rotary scheme.
    """

    def __init__(
        self, model: Any, *, precision: Precision | None = None, max_context: int | None = None
    ) -> None:
        config = model.config
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"model family {config.model_type!r} has no fast target; known here: {', '.join(FAMILIES)}. "
                "Use TransformersTarget for it."
            )
        self.max_context: int = max_context or config.max_position_embeddings
        kinds = getattr(config, "layer_types", None)
        window = None if kinds else getattr(config, "sliding_window", None)  # Mistral says it for all layers
        if any(kind != "full_attention" for kind in kinds or ()) or (window and window < self.max_context):
            raise ModelError("sliding-window attention has no fast target. Use TransformersTarget for it.")
        if config.hidden_act != "silu":
            raise ModelError(
                f"activation {config.hidden_act!r} has no fast target. Use TransformersTarget for it."
            )
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type", "default") in ("dynamic", "longrope"):
            raise ModelError(
                "rotary positions that change with the length have no fast target. Use TransformersTarget."
            )
        body = model.model
        self.device = body.embed_tokens.weight.device
        if precision is None:
            cpu_float = self.device.type == "cpu" and body.embed_tokens.weight.dtype == torch.float32
            precision = "float32" if cpu_float else "native"
        if precision == "int8" and not packs_int8():
            raise ModelError("int8 needs a torch with FBGEMM (x86). Use precision='float32'.")
        self.precision: Precision = precision
        self.config = config
        self.generation_config = getattr(model, "generation_config", None)
        self.vocab_size: int = config.vocab_size
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps: float = config.rms_norm_eps
        self.layers = [_Layer(block, precision) for block in body.layers]
        self.embedding: Tensor = body.embed_tokens.weight.detach()
        self.dtype = self.embedding.dtype
        self.norm: Tensor = body.norm.weight.detach()
        head = model.lm_head
        self.head = prepare(
            head.weight.detach(), None if head.bias is None else head.bias.detach(), precision
        )
        self._inverse_frequency: Tensor = body.rotary_emb.inv_freq.detach().float()
        self._rope_scale = float(body.rotary_emb.attention_scaling)
        self._cos = self._sin = torch.zeros(0)
        self.fingerprint = fingerprint_of(model, precision)

    def new_cache(self) -> KVCache:
        return KVCache(len(self.layers), self.kv_heads, self.head_dim, self.dtype, self.device)

    def rope(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions [start, end): (T, 1, head_dim) each; the sine's first half is negated."""
        if self._cos.shape[0] < end:
            size = max(end, 2 * self._cos.shape[0], 512)
            angle = torch.arange(size, device=self.device).float()[:, None] * self._inverse_frequency.to(
                self.device
            )
            cos, sin = angle.cos() * self._rope_scale, angle.sin() * self._rope_scale
            self._cos = torch.cat([cos, cos], 1).to(self.dtype)[:, None]
            self._sin = torch.cat([-sin, sin], 1).to(self.dtype)[:, None]
        return self._cos[start:end], self._sin[start:end]

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], cache: Any, *, last_only: bool = False) -> Tensor:
        count, start = len(tokens), cache.length
        end = start + count
        if end > self.max_context:
            raise ValueError(f"{end} tokens do not fit this model's context of {self.max_context}.")
        cache.reserve(end)
        cos, sin = self.rope(start, end)
        x = F.embedding(torch.tensor(tokens, device=self.device), self.embedding)  # (M, d)
        half, heads, kv = self.head_dim // 2, self.heads, self.kv_heads
        for index, layer in enumerate(self.layers):
            y = layer.qkv(self._rms(x, layer.norm_in)).view(count, heads + 2 * kv, self.head_dim)
            if layer.q_norm is None:
                qk = y[:, : heads + kv]
            else:
                qk = torch.cat(
                    [
                        self._rms(y[:, :heads], layer.q_norm),
                        self._rms(y[:, heads : heads + kv], layer.k_norm),
                    ],
                    1,
                )
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            keys, values = cache.keys[index], cache.values[index]  # (kv, capacity, head_dim)
            keys[:, start:end] = qk[:, heads:].transpose(0, 1)
            values[:, start:end] = y[:, heads + kv :].transpose(0, 1)
            mixed = self._attend(qk[:, :heads], keys, values, start)
            x = x + layer.out(mixed)
            gate, up = layer.gate_up(self._rms(x, layer.norm_mid)).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
        cache.advance(count)
        if last_only:
            x = x[-1:]
        return self.head(self._rms(x, self.norm)).float()

    def _rms(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """q (M, heads, head_dim) over the first start + i + 1 keys for row i -> (M, heads * head_dim)."""
        count = q.shape[0]
        if count > EXACT_ROWS or self.device.type != "cpu":
            end = start + count
            k, v = keys[None, :, :end], values[None, :, :end]
            q = q.transpose(0, 1)[None]
            if start == 0:
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            else:
                at = torch.arange(end, device=self.device)
                mask = at[None, :] <= at[start:, None]
                mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
            return mixed[0].transpose(0, 1).reshape(count, -1)
        # (M, kv, group, hd) . (kv, hd, T): the query heads that share a key head are the rows of one product
        q = q.reshape(count, self.kv_heads, self.heads // self.kv_heads, self.head_dim) * self.head_dim**-0.5
        rows = []
        for i in range(count):
            seen = start + i + 1
            weights = torch.softmax(torch.bmm(q[i], keys[:, :seen].transpose(1, 2)), -1)
            rows.append(torch.bmm(weights, values[:, :seen]))
        return torch.stack(rows).view(count, -1) if count > 1 else rows[0].view(1, -1)


class _CroppedCache:
    """transformers' DynamicCache behind the Cache protocol."""

    def __init__(self) -> None:
        from transformers import DynamicCache

        self.inner = DynamicCache()

    @property
    def length(self) -> int:
        return int(self.inner.get_seq_length())

    def crop(self, length: int) -> None:
        if length > self.length:
            raise ValueError(f"cache holds {self.length} tokens, cannot cut it to {length}.")
        if length < self.length:
            self.inner.crop(length - self.length)  # negative: how many to remove


class TransformersTarget:
    """Any `transformers` causal model with a croppable cache: its own forward, its own speed."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.config = model.config
        self.generation_config = getattr(model, "generation_config", None)
        self.vocab_size: int = model.config.vocab_size
        self.max_context: int = getattr(model.config, "max_position_embeddings", 1 << 20)
        self.fingerprint = fingerprint_of(model, "transformers")

    def new_cache(self) -> _CroppedCache:
        return _CroppedCache()

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], cache: Any, *, last_only: bool = False) -> Tensor:
        ids = torch.tensor([list(tokens)], device=self.model.device)
        keep = 1 if last_only else 0
        out = self.model(input_ids=ids, past_key_values=cache.inner, use_cache=True, logits_to_keep=keep)
        logits: Tensor = out.logits[0].float()
        return logits


def fingerprint_of(model: Any, precision: str) -> str:
    """16 hex digits from the precision, the configuration and every weight (two seconds for 600 million in float32)."""
    said = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version"):  # where it lay and who wrote it changes nothing
        said.pop(key, None)
    digest = hashlib.sha256(f"kv2 {precision} {json.dumps(said, sort_keys=True, default=str)}".encode())
    for name, value in model.named_parameters():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def as_target(model: Any, *, precision: Precision | None = None) -> Any:
    """The fast target where the family is known, else the general one; a target is returned as it is."""
    if not isinstance(model, nn.Module):
        return model
    try:
        return TorchTarget(model, precision=precision)
    except ModelError:
        if precision is not None:
            raise
        return TransformersTarget(model)
