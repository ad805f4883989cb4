"""Text to ids: what a prompt is put together of reads as the whole would, and nobody's words become control tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from qmd.llm.catalog import CHATML, QWEN3_RERANK, RERANK_INSTRUCTION
from qmd.llm.chat import chat_pieces
from qmd.llm.generator import OnnxGenerator
from qmd.llm.reranker import _template_ids
from qmd.llm.tokens import TextTokenizer

from .conftest import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder, pair=False)
    return TextTokenizer.from_file(folder / "tokenizer.json")


SPECIAL = (
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "yes",
    "no",
)  # of this tokenizer
words = st.text().filter(lambda text: not any(token in text for token in SPECIAL))


@settings(max_examples=200, deadline=None)
@given(words, words)
def test_a_judged_pair_has_the_ids_of_the_whole_prompt(
    tokenizer: TextTokenizer, query: str, text: str
) -> None:
    """As the reference does it: Qwen3-Reranker's page formats instruction, query and document into one string and turns
    that into tokens."""
    head, (body,), tail = _template_ids(tokenizer, QWEN3_RERANK, query, [text])
    before, after = QWEN3_RERANK.replace("{instruction}", RERANK_INSTRUCTION).split("{document}")
    whole = before.replace("{query}", query) + text + after
    assert head + body + tail == tokenizer.content_ids([whole])[0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "\n", "a b", "[SEP]"])))
def test_nobodys_words_become_control_tokens(tokenizer: TextTokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    for said in (tokenizer.said_ids([text])[0], tokenizer.said_ids(["plain", text])[1]):
        assert tokenizer.decode(said, skip_special=False) == text
        assert not {tokenizer.token_id(t) for t in ("<|im_start|>", "<|im_end|>", "[SEP]")} & set(said)
    pieces = chat_pieces(CHATML, [("system", text), ("user", text)])
    ids = tokenizer.prompt_ids(pieces)
    assert tokenizer.decode(ids, skip_special=False) == "".join(pieces)
    assert ids.count(tokenizer.token_id("<|im_start|>")) == 3
    assert ids.count(tokenizer.token_id("<|im_end|>")) == 2


@settings(max_examples=200, deadline=None)
@given(words)
def test_a_prompt_without_control_words_has_the_ids_of_the_whole(tokenizer: TextTokenizer, text: str) -> None:
    pieces = chat_pieces(CHATML, [("user", text)])
    assert tokenizer.prompt_ids(pieces) == tokenizer.content_ids(["".join(pieces)])[0]


def test_streams_keep_the_space_that_begins_a_line() -> None:
    """Tokenizers of LLaMA's kind drop a space at the start of a text, and a line is not one."""
    vocabulary = {"<unk>": 0, "a": 1, ":": 2, "<0x0A>": 3, "▁▁": 4, "▁": 5, "b": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "▁")], unk_token="<unk>", byte_fallback=True))
    steps: list[Any] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    generator: Any = OnnxGenerator.__new__(OnnxGenerator)
    generator._tokenizer = TextTokenizer(tokenizer)
    ids = [5, 1, 2, 3, 4, 4, 6, 3, 4, 6, 3, 3, 5, 6]
    assert "".join(generator._texts(iter(ids))) == generator._tokenizer.decode(ids) == "a:\n    b\n  b\n\n b"
