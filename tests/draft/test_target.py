from __future__ import annotations

import pytest
import torch

from qmd.draft.load import locate
from qmd.draft.torch_target import TorchTarget, TransformersTarget, as_target, fingerprint_of
from qmd.errors import ModelError

from .conftest import SHAPE

IDS = [(7 * i * i + 3 * i) % 96 for i in range(60)]


def test_same_logits_as_transformers(model):
    expected = model(torch.tensor([IDS])).logits[0]
    target = TorchTarget(model)
    cache = target.new_cache()
    got = torch.cat(
        [target.forward(IDS[:40], cache), target.forward(IDS[40:45], cache), target.forward(IDS[45:], cache)]
    )
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_verified_row_has_the_bits_of_plain_decoding(model, precision):
    target = TorchTarget(model, precision=precision)
    cache = target.new_cache()
    target.forward(IDS[:30], cache)
    single = torch.cat([target.forward([t], cache) for t in IDS[30:47]])
    for rows in (2, 3, 5, 8, 17):
        cache.crop(30)
        assert torch.equal(target.forward(IDS[30 : 30 + rows], cache), single[:rows])


def test_a_path_of_an_unknown_user_names_no_model():
    assert locate("~nosuch/x") == ("~nosuch/x", None)
    with pytest.raises(ModelError, match="does not exist"):
        locate("~nosuch/x.gguf")


def test_rollback_leaves_no_trace(model):
    for target in (TorchTarget(model), TransformersTarget(model)):
        cache = target.new_cache()
        target.forward(IDS[:20], cache)
        clean = target.forward(IDS[20:24], cache)
        cache.crop(20)
        target.forward([1, 2, 3, 4, 5, 6], cache)
        cache.crop(20)
        assert cache.length == 20
        assert torch.equal(target.forward(IDS[20:24], cache), clean)
        with pytest.raises(ValueError, match="cannot cut"):
            cache.crop(99)


def test_cache_grows_and_keeps_what_it_holds(model):
    target = TorchTarget(model)
    cache = target.new_cache()
    long = (IDS * 5)[:280]
    for start in range(0, 280, 40):
        last = target.forward(long[start : start + 40], cache, last_only=True)
    whole = target.forward(long, target.new_cache(), last_only=True)
    assert last.shape == (1, 97)
    torch.testing.assert_close(last, whole, atol=2e-4, rtol=1e-3)


def test_context_is_bounded(model):
    target = TorchTarget(model, max_context=16)
    with pytest.raises(ValueError, match="context of 16"):
        target.forward(IDS[:17], target.new_cache())


def test_unknown_family_takes_the_general_target():
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    assert isinstance(as_target(gpt2), TransformersTarget)
    with pytest.raises(ModelError, match="no fast target"):
        TorchTarget(gpt2)


@pytest.mark.parametrize(
    "changes", [{"sliding_window": 8}, {"hidden_act": "gelu"}], ids=lambda c: next(iter(c))
)
def test_what_the_fast_forward_leaves_out_takes_the_general_target(changes):
    from transformers import MistralConfig, MistralForCausalLM

    mistral = MistralForCausalLM(MistralConfig(**SHAPE | {"sliding_window": None} | changes)).eval()
    with pytest.raises(ModelError, match="no fast target"):
        TorchTarget(mistral)
    assert isinstance(as_target(mistral), TransformersTarget)


def test_a_window_that_holds_the_whole_context_is_none():
    from transformers import MistralConfig, MistralForCausalLM

    mistral = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=512)).eval()
    got = TorchTarget(mistral).forward(IDS, TorchTarget(mistral).new_cache())
    torch.testing.assert_close(got, mistral(torch.tensor([IDS])).logits[0], atol=2e-4, rtol=1e-3)


def test_fingerprint_follows_the_configuration(llama):
    before = fingerprint_of(llama, "float32")
    for key, value in (
        ("num_attention_heads", 8),
        ("rope_parameters", {"rope_type": "linear", "factor": 4.0}),
    ):
        had = getattr(llama.config, key)
        setattr(llama.config, key, value)
        assert fingerprint_of(llama, "float32") != before
        setattr(llama.config, key, had)
    llama.config._name_or_path = "moved"
    assert fingerprint_of(llama, "float32") == before


def test_fingerprint_follows_every_weight(qwen3):
    before, weight = fingerprint_of(qwen3, "float32"), qwen3.model.embed_tokens.weight
    weight[5, 3] += 1
    changed = fingerprint_of(qwen3, "float32")
    weight[5, 3] -= 1
    assert changed != before


def test_fingerprint_follows_the_weights(qwen3):
    before = fingerprint_of(qwen3, "float32")
    assert before == fingerprint_of(qwen3, "float32") != fingerprint_of(qwen3, "int8")
    weight = qwen3.model.norm.weight
    weight[0] += 1
    changed = fingerprint_of(qwen3, "float32")
    weight[0] -= 1
    assert changed != before
