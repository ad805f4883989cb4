from __future__ import annotations

import copy
import json

import pytest
import torch

from qmd.draft.cost import CostTable
from qmd.draft.decoder import SpeculativeDecoder
from qmd.draft.knowledge import KnowledgeCacheManager
from qmd.draft.model import LayerSampler, Qwen3DraftModel, target_rows
from qmd.draft.neural import NeuralProposer
from qmd.draft.proposers import SuffixProposer
from qmd.draft.settings import read_config
from qmd.draft.torch_target import TorchTarget
from qmd.draft.training import Sample, acceptance, load_draft, loss_of, train
from qmd.errors import ConfigError

CONFIG = {
    "draft_model": {"num_sampled_layers": 2, "sampling_strategy": "uniform", "transition_rank": 8},
    "knowledge_enhancement": {"enabled": True, "cache_dim": 32},
    "training": {"num_epochs": 3, "batch_size": 4, "learning_rate": 3e-3},
}


class Constant:
    def embed_query(self, text):
        return torch.ones(2) / 2**0.5

    def embed_documents(self, texts):
        return torch.ones(len(texts), 2) / 2**0.5


@pytest.fixture
def knowledge(model):
    manager = KnowledgeCacheManager(64, 4, 32, embedder=Constant())
    manager.add(TorchTarget(model), list(range(20)), "numbers")
    return manager


@pytest.fixture
def samples(model):
    decoder = SpeculativeDecoder([], model, eos_token_ids=[])
    g = torch.Generator().manual_seed(3)
    found = []
    for _ in range(12):
        prompt = torch.randint(0, 20, (8,), generator=g).tolist()
        out = decoder.generate(prompt, 16, temperature=0)[0].tolist()
        found.append(Sample(tuple(prompt), tuple(out[8:]), "numbers"))
    return found


def test_layers_of_the_specification():
    assert LayerSampler(28, 6).sample() == [0, 5, 11, 16, 22, 27]
    assert LayerSampler(30, 6).sample() == [0, 6, 12, 17, 23, 29]
    with pytest.raises(ValueError, match="1 to 4"):
        LayerSampler(4, 6)


def test_defaults_of_the_specification_and_unknown_keys():
    c = read_config(None)
    assert (c.draft_model.num_sampled_layers, c.knowledge_enhancement.cache_dim) == (6, 512)
    t = c.training
    assert (t.num_epochs, t.batch_size, t.learning_rate) == (5, 8, 3e-5)
    assert (t.kl_divergence_weight, t.acceptance_loss_weight) == (0.8, 0.3)
    with pytest.raises(ConfigError, match="lr"):
        read_config({"training": {"lr": 1}})


def test_all_layers_and_closed_gates_are_the_target(model, knowledge):
    """With every layer sampled, what is new must be the identity: the draft's logits are the target's."""
    draft = Qwen3DraftModel(CONFIG | {"draft_model": {"num_sampled_layers": 4}}, model, knowledge)
    ids = torch.tensor([[4, 8, 15, 16, 23, 42, 4, 8]])
    out = draft(ids, retrieve_knowledge=True, query_text="numbers")["logits"]
    torch.testing.assert_close(out, target_rows(model, ids, [])[0], atol=2e-4, rtol=1e-3)
    draft.blocks[0].knowledge.gate.data.fill_(1.0)
    opened = draft(ids, retrieve_knowledge=True, query_text="numbers")["logits"]
    assert not torch.allclose(opened, out, atol=1e-3)
    assert torch.equal(draft(ids, retrieve_knowledge=False)["logits"], draft(ids, query_text=None)["logits"])


@pytest.mark.parametrize("window", [0, 1, 3])
def test_rows_of_the_answer_alone_are_those_of_the_whole_text(model, knowledge, window):
    draft = Qwen3DraftModel(CONFIG, model, knowledge)
    for block in draft.blocks:
        torch.nn.init.normal_(block.transition.up.weight, std=0.2)
        block.knowledge.gate.data.fill_(0.5)
    ids = torch.tensor([[4, 8, 15, 16, 23, 42, 4, 8, 15]])
    whole = draft(ids, query_text="numbers", window=window)["logits"]
    # two layers: a row sees 2 * window rows of the draft's own before it
    tail = draft(ids, query_text="numbers", window=window, start=6 - 2 * window)["logits"]
    assert tail.shape[1] == 3 + 2 * window
    torch.testing.assert_close(tail[:, -3:], whole[:, -3:], atol=1e-4, rtol=1e-3)


def test_nothing_of_the_target_is_a_parameter(model, knowledge):
    draft = Qwen3DraftModel(CONFIG, model, knowledge)
    theirs = {p.data_ptr() for p in model.parameters()}
    assert not theirs & {p.data_ptr() for p in draft.parameters()}
    assert not any("embed" in n or "lm_head" in n for n in draft.state_dict())


def test_new_parameters_at_the_real_shape():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        target = Qwen3ForCausalLM(shape)
        draft = Qwen3DraftModel(None, target)
    total = sum(p.numel() for p in target.parameters())
    assert draft.sampled_layers == [0, 5, 11, 16, 22, 27]
    assert draft.new_parameters() <= 0.15 * total
    assert sum(p.numel() for p in draft.parameters()) <= 0.25 * total


def test_training_lowers_the_loss_resumes_and_leaves_the_target(model, knowledge, samples, tmp_path):
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    draft = Qwen3DraftModel(CONFIG, model, knowledge)
    untrained = acceptance(draft, samples)
    two = Qwen3DraftModel(CONFIG | {"training": CONFIG["training"] | {"num_epochs": 2}}, model, knowledge)
    two.load_state_dict(draft.state_dict())
    whole = train(draft, samples, tmp_path / "whole")
    train(two, samples, tmp_path / "parts")
    three = Qwen3DraftModel(CONFIG, model, knowledge)
    resumed = train(three, samples, tmp_path / "parts")
    assert resumed.resumed_at == 2
    assert resumed.epochs == 3
    for a, b in zip(draft.state_dict().values(), three.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert whole.loss[-1] < whole.loss[0]
    assert acceptance(draft, samples) > untrained
    assert json.loads((tmp_path / "whole" / "curves.json").read_text())["loss"] == whole.loss
    best = torch.load(tmp_path / "whole" / whole.best, weights_only=True)
    assert whole.best == f"best_draft_model_knowledge_epoch{whole.best_epoch}.pth"
    assert "model_state_dict" in best
    load_draft(three, tmp_path / "whole" / whole.best)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_loss_is_the_formula():
    p = torch.tensor([[0.5, 0.3, 0.2]])
    q = torch.tensor([[0.2, 0.3, 0.5]])
    loss, overlap = loss_of(p, q.log(), kl_divergence_weight=0.8, acceptance_loss_weight=0.3)
    kl = float((p * (p / q).log()).sum())
    assert float(overlap) == pytest.approx(0.7)
    assert float(loss) == pytest.approx(0.8 * kl - 0.3 * float(torch.tensor(0.7).log()))


def test_packed_drafting_is_the_model(model, knowledge):
    """Drafting one token at a time over the target's cache gives the logits of forward with a growing window."""
    torch.manual_seed(2)
    draft = Qwen3DraftModel(CONFIG, model, knowledge)
    for name, value in draft.named_parameters():
        if "up" in name or "gate" in name:
            value.data += 0.05 * torch.randn_like(value)
    target = TorchTarget(model)
    proposer = NeuralProposer(draft, target, precision="float32")
    proposer.query_text = "numbers"
    proposer.start([])
    ids = [4, 8, 15, 16, 23, 42]
    cache = target.new_cache()
    target.forward(ids[:5], cache)
    own = [None] * 2
    with torch.inference_mode():
        got = proposer.step(ids[5], cache, own, 0)
    expected = draft(torch.tensor([ids]), query_text="numbers", window=0)["logits"][0, -1:]
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("hot", [0, 40])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_speculation_with_the_draft_is_lossless(model, knowledge, hot, precision):
    config = CONFIG | {"draft_model": CONFIG["draft_model"] | {"hot_vocabulary": hot}}
    draft = Qwen3DraftModel(config, model, knowledge).eval()
    target = TorchTarget(model)
    proposer = NeuralProposer(draft, target, precision=precision)
    proposer.query_text = "numbers"
    plain = SpeculativeDecoder([], target, eos_token_ids=[96])
    fast = SpeculativeDecoder([proposer], target, gamma=4, cost=CostTable.flat(), eos_token_ids=[96])
    both = SpeculativeDecoder(
        [SuffixProposer(), proposer], target, gamma=4, cost=CostTable.flat(), eos_token_ids=[96]
    )
    for start in range(5):
        prompt = [start, 7, start, 7, 11]
        expected = plain.generate(prompt, 30, temperature=0)
        assert torch.equal(fast.generate(prompt, 30, temperature=0), expected)
        assert fast.stats.proposed > 0
        assert torch.equal(both.generate(prompt, 30, temperature=0), expected)
    sampled = fast.generate([1, 2, 3], 10, temperature=0.8, seed=1)
    assert sampled.shape == (1, 13)


def test_the_seed_makes_the_weights_and_leaves_the_callers_random_numbers(model):
    states = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        states.append(Qwen3DraftModel(CONFIG, model).state_dict())
        drawn = torch.rand(3)
        torch.manual_seed(outside)
        assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    seeded = CONFIG | {"training": CONFIG["training"] | {"seed": 9}}
    other = Qwen3DraftModel(seeded, model).state_dict()
    assert any(not torch.equal(states[0][key], other[key]) for key in other)


@pytest.mark.parametrize("key", ["batch_size", "num_epochs", "learning_rate", "max_new_tokens"])
def test_sizes_of_a_training_are_above_zero(key):
    with pytest.raises(ConfigError, match=key):
        read_config({"training": {key: 0}})


def test_a_configuration_of_other_bytes_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"target_model: caf\xe9")
    with pytest.raises(ConfigError, match="cannot read"):
        read_config(tmp_path / "c.yaml")
