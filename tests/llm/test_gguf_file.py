"""GGUF files: what cannot be written as ONNX without loss is said, and left to llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmd.errors import ModelError
from qmd.llm import open_generator
from qmd.llm.catalog import CHATML
from qmd.llm.fastest import _rewritable, rewritten
from qmd.types import ModelCard

from .conftest import tiny

pytest.importorskip("gguf")


def tensor(name: str, *shape: int) -> Callable[[Any], None]:
    return lambda writer: writer.add_tensor(name, np.ones(shape, np.float32))


def field(name: str, value: Any, kind: str) -> Callable[[Any], None]:
    return lambda writer: getattr(writer, f"add_{kind}")(name, value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"more": tensor("rope_freqs.weight", 8)}, "rope_freqs"),
        ({"more": tensor("blk.0.attn_output.bias", 64)}, r"attn_output\.bias"),
        ({"more": tensor("blk.0.attn_q.bias", 64)}, r"attn_q\.bias"),  # without those of key and value
        ({"more": field("llama.rope.scaling.type", "yarn", "string")}, "scaled"),
        ({"more": field("llama.rope.scaling.factor", 4.0, "float32")}, "scaled"),
        ({"more": field("llama.rope.dimension_count", 8, "uint32")}, "a part of each head"),
        ({"more": field("llama.attention.key_length", [16, 16], "array")}, "key_length"),
        ({"more": field("llama.attention.key_length", 0, "uint32")}, "key_length"),
        ({"more": field("llama.attention.key_length", 32, "uint32")}, r"attn_k\.weight"),
        ({"without": "token_embd"}, "lacks the weights token_embd"),
        ({"without": "blk.1.ffn_up"}, r"lacks the weights blk\.1\.ffn_up"),
    ],
)
def test_what_the_graph_would_leave_out_is_refused(changed: Any, said: str, tmp_path: Path) -> None:
    from qmd.llm.gguf_file import read_gguf

    path = tmp_path / "x.gguf"
    tiny.write_gguf(path, **changed)
    with pytest.raises(ModelError, match=said):
        read_gguf(path)
    assert not _rewritable(path)
    with pytest.raises(ModelError, match=said):
        open_generator(str(path), precision="int8")


def test_rotation_that_is_not_scaled_is_no_hindrance(tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "x.gguf", more=field("llama.rope.scaling.type", "none", "string"))
    assert _rewritable(tmp_path / "x.gguf")


def test_no_way_is_tried_for_a_file_that_would_end_the_process(tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "x.gguf", twice=True)
    with pytest.raises(ModelError, match="a token twice"):
        open_generator(str(tmp_path / "x.gguf"))


def test_a_prompt_is_the_same_in_every_way(tmp_path: Path) -> None:
    from qmd.llm.gguf_file import read_gguf

    path = tmp_path / "x.gguf"
    tiny.write_gguf(path, chat_template="")
    assert read_gguf(path).template == CHATML  # as llama.cpp does
    tiny.write_gguf(path, more=field("tokenizer.ggml.add_bos_token", True, "bool"))
    assert read_gguf(path).template == ""
    with pytest.raises(ModelError, match=r"llama\.cpp alone"):
        open_generator(str(path), precision="fp32")


def test_a_rewritten_model_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    tiny.write_gguf(path)
    files = rewritten(path, "fp32", card=ModelCard("mine", "generation", max_tokens=4096))
    assert (files.card.name, files.card.max_tokens) == ("mine", 512)  # what the file reads
    for name in ("tokenizer.json", "config.json", "card.json", "model.onnx"):
        damaged = files.graph.with_name(name)
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[: len(whole) // 2])
        assert rewritten(path, "fp32").sha256 == files.sha256
        assert damaged.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_gguf(tmp_path / "x.gguf")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QMD_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="QMD_CACHE_DIR"):
        rewritten(tmp_path / "x.gguf", "fp32")


@pytest.mark.parametrize("change", [{"tokenizer.ggml.merges": None}, {"tokenizer.ggml.token_type": [1]}])
def test_half_a_tokenizer_is_no_tokenizer(change: dict[str, Any], tmp_path: Path) -> None:
    from dataclasses import replace

    from qmd.llm.gguf_file import read_gguf, write_tokenizer

    tiny.write_gguf(tmp_path / "x.gguf")
    model = read_gguf(tmp_path / "x.gguf")
    fields = {name: value for name, value in (dict(model.fields) | change).items() if value is not None}
    with pytest.raises(ModelError, match="Download it again"):
        write_tokenizer(replace(model, fields=fields), tmp_path / "tokenizer.json")
