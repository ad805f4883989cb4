"""Tiny models with random weights of real architectures, exported to ONNX folders as a hub would hold
them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (
    "how to change file permissions bread recipe weather river bridge the a of and yes no is query document"
)


def write_tokenizer(folder: Path, *, pair: bool) -> int:
    """A byte-level BPE; with `pair`, [CLS] a [SEP] b [SEP] around texts. Returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["[PAD]", "[CLS]", "[SEP]", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "yes", "no"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([WORDS] * 5, trainer)
    if pair:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return int(tokenizer.get_vocab_size())


def build_model(kind: str, vocab: int) -> Any:
    import torch
    import transformers as t

    torch.manual_seed(7)
    small = {"vocab_size": vocab, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind in ("bert", "bert-one-row", "bert-pooled"):
        model = t.BertModel(t.BertConfig(**small, intermediate_size=64), add_pooling_layer=False)
    elif kind == "xlm-r":
        config = t.XLMRobertaConfig(
            **small, intermediate_size=64, max_position_embeddings=130, pad_token_id=0
        )
        model = t.XLMRobertaModel(config, add_pooling_layer=False)
    elif kind == "modernbert":
        config = t.ModernBertConfig(
            **small, intermediate_size=64, pad_token_id=0, max_position_embeddings=256
        )
        model = t.ModernBertModel(config)
    elif kind == "jina-bert":
        model = jina_bert(vocab)
    elif kind == "bert-seq-cls":
        model = t.BertForSequenceClassification(t.BertConfig(**small, intermediate_size=64, num_labels=1))
    else:
        config = t.Qwen3Config(
            **small, intermediate_size=64, num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=4,
            bos_token_id=None, num_labels=1, use_cache=True,
        )  # fmt: skip
        if kind.startswith("qwen3-seq-cls"):
            model = t.Qwen3ForSequenceClassification(config)
        else:
            model = t.Qwen3Model(config) if kind == "qwen3-embedding" else t.Qwen3ForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    return model.eval()


def jina_bert(vocab: int) -> Any:
    """The network of jina-embeddings-v2 (Guenther et al. 2023) from the paper: BERT after-norm, no positions but a
    linear penalty on distance in both directions (ALiBi), gated feed-forward GELU(x W) * (x V) without bias."""
    import torch
    from torch import nn
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
            self.gated, self.wo = nn.Linear(32, 128, bias=False), nn.Linear(64, 32)
            self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)

        def forward(self, x: Any, bias: Any) -> Any:
            b, length, _ = x.shape
            q, k, v = (
                f(x).view(b, length, 2, 16).transpose(1, 2) for f in (self.query, self.key, self.value)
            )
            weights = (q @ k.transpose(2, 3) / 4.0 + bias).softmax(-1)
            x = self.norm1(x + self.out((weights @ v).transpose(1, 2).reshape(b, length, 32)))
            up, gate = self.gated(x).split(64, dim=-1)
            return self.norm2(x + self.wo(nn.functional.gelu(gate) * up))

    class JinaBert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.types, self.norm = nn.Embedding(vocab, 32), nn.Embedding(2, 32), nn.LayerNorm(32)
            self.layers = nn.ModuleList(Layer() for _ in range(2))
            self.config = config

        def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> tuple[Any]:
            x = self.norm(self.words(input_ids) + self.types.weight[0])
            at = torch.arange(input_ids.shape[1])
            slopes = torch.tensor([2.0**-4, 2.0**-8])[:, None, None]  # two heads: 2^(-8/n), squared
            bias = -slopes * (at[None] - at[:, None]).abs() + (1 - attention_mask[:, None, None]) * -1e4
            for layer in self.layers:
                x = layer(x, bias)
            return (x,)

    return JinaBert()


def export(kind: str, folder: Path) -> Any:
    """Write `model.onnx`, `tokenizer.json`, `config.json`; returns the transformers model for comparison."""
    import torch

    pair = not kind.startswith("qwen3")
    vocab = write_tokenizer(folder, pair=pair)
    model = build_model(kind, vocab)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    ids = torch.randint(6, vocab, (2, 5))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0  # with nothing masked, transformers leaves the mask out of the traced graph
    if kind == "bert-one-row":
        ids, mask = ids[1:], mask[1:]
    axes: dict[str, dict[int, str]] = {"input_ids": {0: "B", 1: "T"}, "attention_mask": {0: "B", 1: "S"}}
    first = "last_hidden_state"
    if kind.endswith(("seq-cls", "last-column", "causal", "no-cache")):
        first = "logits"
    if kind in ("qwen3-causal", "qwen3-embedding"):
        wrapper: Any = _WithCache(model)
        past = [torch.randn(2, 1, 3, 16) for _ in range(4)]
        mask = torch.ones(2, 8, dtype=torch.long)
        positions = torch.arange(3, 8).expand(2, 5)
        args: tuple[Any, ...] = (ids, mask, positions, *past)
        names = [f"{n}.{p}" for n in range(2) for p in ("key", "value")]
        inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}" for n in names)]
        outputs = [first, *(f"present.{n}" for n in names)]
        axes |= {"position_ids": {0: "B", 1: "T"}, first: {0: "B", 1: "T"}}
        axes |= {f"past_key_values.{n}": {0: "B", 2: "P"} for n in names}
        axes |= {f"present.{n}": {0: "B", 2: "S"} for n in names}
        if kind == "qwen3-embedding":
            (folder / "1_Pooling").mkdir()
            (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    else:
        wrapper, args = _Plain(model, kind), (ids, mask)
        inputs = ["input_ids", "attention_mask"]
        if kind == "bert-seq-cls":
            inputs, args = [*inputs, "token_type_ids"], (ids, mask, torch.zeros_like(ids))
            axes["token_type_ids"] = {0: "B", 1: "T"}
        outputs = [first, "sentence_embedding"] if kind == "bert-pooled" else [first]
        axes[first] = {0: "B"} if kind.endswith(("seq-cls", "last-column")) else {0: "B", 1: "T"}
        axes |= {"attention_mask": {0: "B", 1: "T"}, "sentence_embedding": {0: "B"}}
        if kind == "bert-one-row":
            axes = {name: {1: "T"} for name in axes}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapper.eval(), args, str(folder / "model.onnx"), input_names=inputs, output_names=outputs,
            dynamic_axes=axes, dynamo=False, opset_version=18,
        )  # fmt: skip
    return model


def export_causal(model: Any, folder: Path, *, keep: bool = False) -> None:
    """Write any transformers causal model with its cache as `model.onnx`, with the names the hub's exports have, and
    with `keep` the newer ones' `num_logits_to_keep`."""
    import torch

    config = model.config
    layers, heads, width = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    names = [f"{n}.{p}" for n in range(layers) for p in ("key", "value")]
    past = [torch.randn(2, heads, 3, width) for _ in names]
    args = (
        torch.ones(2, 5, dtype=torch.long),
        torch.ones(2, 8, dtype=torch.long),
        torch.arange(3, 8).expand(2, 5),
    )
    axes: dict[str, dict[int, str]] = {
        "input_ids": {0: "B", 1: "T"}, "attention_mask": {0: "B", 1: "S"}, "position_ids": {0: "B", 1: "T"},
        "logits": {0: "B", 1: "T"},
    }  # fmt: skip
    axes |= {f"past_key_values.{n}": {0: "B", 2: "P"} for n in names}
    axes |= {f"present.{n}": {0: "B", 2: "S"} for n in names}
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}" for n in names)]
    if keep:
        inputs, past = [*inputs, "num_logits_to_keep"], [*past, torch.tensor(2)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _WithCache(model, keep).eval(), (*args, *past), str(folder / "model.onnx"), input_names=inputs,
            output_names=["logits", *(f"present.{n}" for n in names)], dynamic_axes=axes, dynamo=False,
            opset_version=18,
        )  # fmt: skip


def kind_of(model: Any) -> str:
    return type(model).__name__


def _Plain(model: Any, kind: str) -> Any:
    """ids and mask to the first output; `last-column`: a classifier's head on the last column, wherever the text ends;
    `bert-pooled`: hidden states, and a vector that no pooling of them gives."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            if hasattr(model.config, "use_cache") and kind_of(model) != "JinaBert":
                extra["use_cache"] = False
            if kind.endswith("last-column"):
                hidden = self.model.model(input_ids=input_ids, attention_mask=attention_mask, **extra)[0]
                return self.model.score(hidden[:, -1])
            found = self.model(input_ids=input_ids, attention_mask=attention_mask, **extra)[0]
            return (found, 3 - found[:, 0].flip(-1)) if kind == "bert-pooled" else found

    return Plain()


def _WithCache(model: Any, keep: bool = False) -> Any:
    import torch
    from transformers import DynamicCache

    class WithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
            cache = DynamicCache()
            extra = {}
            if keep:  # how many of the last tokens, as a range that the trace keeps
                extra["logits_to_keep"] = torch.arange(-1, -1 - past[-1], -1).flip(0) + input_ids.shape[1]
                past = past[:-1]
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            out = self.model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=cache, use_cache=True, **extra,
            )  # fmt: skip
            held = out.past_key_values
            flat = [part for layer in held.layers for part in (layer.keys, layer.values)]
            return (out[0], *flat)

    return WithCache()


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(
    path: Path,
    *,
    seed: int = 0,
    chat_template: str = CHAT_TEMPLATE,
    without: str = "",
    twice: bool = False,
    more: Callable[[Any], None] = lambda writer: None,
) -> None:
    """A LLaMA network of two layers with random weights and a tokenizer of single bytes, as GGUF. `without`: a tensor
    that is left out; `twice`: one token stands for two; `more` adds what else the file shall hold."""
    import gguf
    import numpy as np
    from tokenizers import pre_tokenizers

    random = np.random.default_rng(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, alphabet[0] + alphabet[1], "<|im_start|>", "<|im_end|>"]
    if twice:
        tokens[1] = tokens[0]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(alphabet) + 1) + [3, 3])
    writer.add_token_merges([f"{alphabet[0]} {alphabet[1]}"])
    writer.add_eos_token_id(len(tokens) - 1)
    if chat_template:
        writer.add_chat_template(chat_template)
    more(writer)
    shapes = {"token_embd": (len(tokens), 64)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_q": (64, 64), f"blk.{layer}.attn_k": (32, 64), f"blk.{layer}.attn_v": (32, 64),
            f"blk.{layer}.attn_output": (64, 64), f"blk.{layer}.ffn_gate": (128, 64),
            f"blk.{layer}.ffn_up": (128, 64), f"blk.{layer}.ffn_down": (64, 128),
        }  # fmt: skip
    shapes.pop(without, None)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.2, shape).astype(np.float32))
    for name in ("output_norm", *(f"blk.{n}.{part}_norm" for n in range(2) for part in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
