"""A causal ONNX graph as the target: the same logits, exact rollback, the text of plain decoding."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from qmd.draft.cost import CostTable
from qmd.draft.decoder import SpeculativeDecoder
from qmd.draft.onnx_target import OnnxTarget
from qmd.draft.proposers import SuffixProposer
from qmd.draft.target import Target
from qmd.draft.writer import LocalWriter
from qmd.errors import ModelError

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "llm" / "tiny.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

PROMPT = [8 + i % 7 for i in range(21)] + [31, 32, 33, 34, 8, 9, 10]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    return folder, tiny.export("qwen3-causal", folder)


@pytest.fixture(scope="module")
def target(exported):
    return OnnxTarget.open(exported[0], threads=1)


def test_same_logits_as_transformers(exported, target):
    assert isinstance(target, Target)
    expected = exported[1](torch.tensor([PROMPT])).logits[0]
    cache = target.new_cache()
    got = torch.cat([target.forward(PROMPT[:9], cache), target.forward(PROMPT[9:], cache)])
    torch.testing.assert_close(got, expected.detach(), atol=1e-4, rtol=1e-3)
    assert target.vocab_size == expected.shape[-1]


def test_rollback_leaves_no_trace(target):
    cache = target.new_cache()
    target.forward(PROMPT[:10], cache)
    clean = target.forward(PROMPT[10:14], cache)
    cache.crop(10)
    target.forward([1, 2, 3, 4, 5], cache)
    cache.crop(12)
    cache.crop(10)
    assert cache.length == 10
    assert torch.equal(target.forward(PROMPT[10:14], cache), clean)
    with pytest.raises(ValueError, match="cannot cut"):
        cache.crop(99)


def test_suffix_drafting_writes_what_transformers_writes(exported, target):
    model = exported[1]
    expected = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    decoder = SpeculativeDecoder(SuffixProposer(), target, gamma=5, cost=CostTable.flat(), eos_token_ids=[])
    written = decoder.generate(PROMPT, 60, temperature=0.0)
    assert written.tolist() == expected.tolist()
    assert decoder.stats.accepted > 0


def test_a_context_that_is_too_small_is_said(target):
    with pytest.raises(ValueError, match="do not fit"):
        target.forward([1] * (target.max_context + 1), target.new_cache())


def test_a_graph_without_a_cache_is_refused(tmp_path):
    tiny.export("qwen3-no-cache", tmp_path)
    with pytest.raises(ModelError, match="Export the model with its cache"):
        OnnxTarget.open(tmp_path)


def test_a_folder_of_an_onnx_model_writes(exported):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(exported[0] / "tokenizer.json")), eos_token="<|im_end|>"
    )
    writer = LocalWriter(str(exported[0]), tokenizer=tokenizer)
    assert isinstance(writer.target, OnnxTarget)
    pieces: list[str] = []
    text = writer.write([("user", "change file permissions")], max_new_tokens=12, stream=pieces.append)
    assert text == "".join(pieces)
    assert writer.stats.new_tokens > 0
