from __future__ import annotations

import numpy as np
import pytest
import torch

from qmd.draft.decoder import SpeculativeDecoder
from qmd.draft.knowledge import KnowledgeCacheManager
from qmd.draft.torch_target import TorchTarget
from qmd.errors import ModelMismatch

PASSAGE = [(5 * i + i * i) % 96 for i in range(50)]


class Words:
    """Vectors from a fixed table: cats and dogs are near, stars are far."""

    table = {"cat": (1.0, 0.1, 0.0), "dog": (0.9, 0.4, 0.0), "star": (0.0, 0.0, 1.0)}  # noqa: RUF012

    def embed_query(self, text: str):
        v = np.array(next((x for w, x in self.table.items() if w in text), (0.5, 0.5, 0.5)), np.float32)
        return v / np.linalg.norm(v)

    def embed_documents(self, texts):
        return np.stack([self.embed_query(t) for t in texts])


@pytest.mark.parametrize("stored", [True, False])
def test_prefix_reuse_gives_the_same_answer(model, tmp_path, stored):
    target = TorchTarget(model)
    folder = tmp_path if stored else None
    manager = KnowledgeCacheManager(64, 4, 512, folder=folder)
    manager.add(target, PASSAGE, "a passage")
    decoder = SpeculativeDecoder([], target, eos_token_ids=[])
    prompt = [*PASSAGE, 3, 14, 15]
    expected = decoder.generate(prompt, 20, temperature=0)
    out = decoder.generate(prompt, 20, temperature=0, cache=manager.start(target, prompt))
    assert decoder.stats.reused_tokens == 50
    assert torch.equal(out, expected)
    # a prompt that leaves the passage half-way keeps the whole blocks they share
    other = [*PASSAGE[:37], 1, 1, 1]
    assert manager.start(target, other).length == 32
    assert manager.start(target, [9, 9, 9]).length == 0


def test_stored_keys_and_values_are_exact_and_survive(model, tmp_path):
    target = TorchTarget(model)
    manager = KnowledgeCacheManager(64, 4, 512, folder=tmp_path)
    entry = manager.add(target, PASSAGE, "a passage")
    cache = target.new_cache()
    target.forward(PASSAGE, cache)
    again = KnowledgeCacheManager(64, 4, 512, folder=tmp_path).attach(target)
    assert [e.text for e in again] == ["a passage"]
    for got, made in zip(again.load(entry), cache.view(), strict=True):
        assert torch.equal(got, made)
    assert list(again.kv_cache) == [entry.name]
    assert torch.equal(again.kv_cache[entry.name][0], cache.view()[0])
    assert "another" not in again.kv_cache


def test_another_model_sees_none_of_it(tmp_path, qwen3):
    a, b = TorchTarget(qwen3), TorchTarget(qwen3, precision="int8")
    manager = KnowledgeCacheManager(64, 4, 512, folder=tmp_path)
    manager.add(a, PASSAGE)
    assert manager.start(b, [*PASSAGE, 1]).length == 0
    with pytest.raises(ModelMismatch):
        manager.add(b, PASSAGE)
    assert len(KnowledgeCacheManager(64, 4, 512, folder=tmp_path).attach(b)) == 0


def test_size_is_bounded_and_the_unused_go_first(model, tmp_path):
    target = TorchTarget(model)
    one = KnowledgeCacheManager(64, 4, 512).add(target, PASSAGE).size_bytes
    manager = KnowledgeCacheManager(64, 4, 512, folder=tmp_path, max_bytes=2 * one)
    first, second = manager.add(target, PASSAGE), manager.add(target, [1, *PASSAGE[1:]])
    manager.start(target, [*PASSAGE, 5])  # used again: the second is now the older one
    third = manager.add(target, [2, *PASSAGE[1:]])
    assert {e.name for e in manager} == {first.name, third.name}
    assert not list(tmp_path.rglob(f"{second.name}*"))
    assert manager.prefix([1, *PASSAGE[1:]]) is None


def test_retrieval_by_meaning(model):
    target = TorchTarget(model)
    manager = KnowledgeCacheManager(64, 4, 512, embedder=Words())
    manager.add(target, PASSAGE[:20], "the cat sat")
    manager.add(target, PASSAGE[20:40], "a star shone")
    found = manager.retrieve("my dog", k=2)
    assert [e.text for e, _ in found] == ["the cat sat", "a star shone"]
    assert found[0][1] > 0.9 > 0.1 > found[1][1]
    keys, values = manager.knowledge_kv("my dog", k=2)
    assert keys.shape == values.shape == (4, 2, 40, 16)


def test_a_damaged_file_is_passed_by(model, tmp_path):
    target = TorchTarget(model)
    KnowledgeCacheManager(64, 4, 512, folder=tmp_path).add(target, PASSAGE)
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    assert len(KnowledgeCacheManager(64, 4, 512, folder=tmp_path).attach(target)) == 0


def test_an_entry_that_another_process_removed_is_forgotten(model, tmp_path):
    target = TorchTarget(model)
    mine, other = (
        KnowledgeCacheManager(64, 4, 512, folder=tmp_path, embedder=Words()).attach(target) for _ in "ab"
    )
    shorter, whole = mine.add(target, PASSAGE[:20], "the cat"), mine.add(target, PASSAGE, "the dog")
    other.attach(target)
    other.remove(whole.name)
    assert mine.start(target, [*PASSAGE, 1]).length == 20
    other.remove(shorter.name)
    assert mine.knowledge_kv("cat") is None
    assert mine.start(target, [*PASSAGE, 1]).length == len(mine) == 0
