"""Tiny models of the real architectures, random but fixed."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 96,
    "bos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.12,
}


def build(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    shape = SHAPE | changes
    if family == "qwen3":
        config = transformers.Qwen3Config(head_dim=16, tie_word_embeddings=True, **shape)
        model = transformers.Qwen3ForCausalLM(config)
    else:
        config = transformers.LlamaConfig(tie_word_embeddings=False, **shape)
        model = transformers.LlamaForCausalLM(config)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture(scope="session")
def qwen3() -> Any:
    return build("qwen3")


@pytest.fixture
def llama() -> Any:
    return build("llama")
