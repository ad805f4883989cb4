"""GGUF files of a hub: which one of many is meant, that one alone downloaded, verified, and run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qmd.errors import ModelError
from qmd.llm import open_embedder, open_generator, open_reranker
from qmd.llm.hub import read_lock
from qmd.llm.hub_gguf import choose_files, find_gguf_on_hub, is_gguf_on_hub, quantisation_of

from .test_hub import COMMIT, Hub
from .test_hub import hub as hub

gguf = pytest.importorskip("gguf")
NAMES = (
    "README.md", "Tiny-F16.gguf", "Tiny-Q8_0.gguf", "Tiny-Q4_K_M.gguf", "mmproj-Tiny-Q4_K_M.gguf", "imatrix.gguf",
    "big/Tiny-Q6_K-00002-of-00002.gguf", "big/Tiny-Q6_K-00001-of-00002.gguf", "tiny-iq4_xs.gguf",
)  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        ("", ("Tiny-Q4_K_M.gguf",)),
        ("q8_0", ("Tiny-Q8_0.gguf",)),
        ("IQ4_XS", ("tiny-iq4_xs.gguf",)),
        ("Q6_K", ("big/Tiny-Q6_K-00001-of-00002.gguf", "big/Tiny-Q6_K-00002-of-00002.gguf")),
        ("tiny-f16.gguf", ("Tiny-F16.gguf",)),
        ("Q2_K", ()),
        ("mmproj-Tiny-Q4_K_M.gguf", ()),
    ],
)
def test_which_file_is_meant(wanted: str, files: tuple[str, ...]) -> None:
    assert choose_files(NAMES, wanted) == files


def test_names_of_hub_files_are_known_from_others() -> None:
    for name in ("Qwen/Qwen3-0.6B-GGUF", "a/b:Q4_K_M", "a/b@main:Q4_K_M", "a/b:model.gguf"):
        assert is_gguf_on_hub(name), name
    for name in (
        "BAAI/bge-m3",
        "./x.gguf",
        "/a/b.gguf",
        "models/b.gguf",
        "smollm2-135m",
        "http://h:80/v1?model=a",
        "http://h/v1",
    ):
        assert not is_gguf_on_hub(name), name
    assert choose_files(["x.gguf", "y.gguf"]) == ("x.gguf",)
    assert quantisation_of("m.Q4_1.gguf") == "Q4_1"


@pytest.fixture
def files(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    from .conftest import tiny

    for seed, kind in enumerate(("Q4_K_M", "Q8_0")):
        tiny.write_gguf(tmp_path / "x", seed=seed)
        hub.files[f"Tiny-{kind}.gguf"] = (tmp_path / "x").read_bytes()
    del hub.files["onnx/model.onnx"]
    return hub.files


def test_that_file_alone_is_downloaded_pinned_and_verified(hub: Hub, files: dict[str, bytes]) -> None:
    path = find_gguf_on_hub("tiny/model:Q8_0")
    assert path.read_bytes() == files["Tiny-Q8_0.gguf"]
    assert {p.rpartition("/")[2] for command, p, _ in hub.asked if command == "GET" and "/resolve/" in p} == {
        "Tiny-Q8_0.gguf"
    }
    assert read_lock()["tiny/model"] == {
        "commit": COMMIT, "files": {"Tiny-Q8_0.gguf": hashlib.sha256(files["Tiny-Q8_0.gguf"]).hexdigest()},
    }  # fmt: skip
    hub.asked.clear()
    assert find_gguf_on_hub("tiny/model:Q8_0", download=False) == find_gguf_on_hub("tiny/model:q8_0") == path
    assert hub.asked == []
    with pytest.raises(ModelError, match="qmd models pull tiny/model:Q4_K_M"):
        find_gguf_on_hub("tiny/model:Q4_K_M", download=False)
    path.resolve().chmod(0o644)
    path.resolve().write_bytes(files["Tiny-Q8_0.gguf"][:-5])
    with pytest.raises(ModelError, match=r"damaged or was changed.*qmd models remove tiny/model"):
        find_gguf_on_hub("tiny/model:Q8_0")
    # another file of the model, fetched after the repository went on, is of the first commit
    hub.history[COMMIT] = (COMMIT, dict(hub.files))
    hub.head, first = "b" * 40, files["Tiny-Q4_K_M.gguf"]
    hub.files["Tiny-Q4_K_M.gguf"] = b"GGUF of another time"
    assert find_gguf_on_hub("tiny/model:Q4_K_M").read_bytes() == first
    assert find_gguf_on_hub("tiny/model:Q4_K_M", revision="main").read_bytes() == b"GGUF of another time"


def test_what_is_not_there_is_said(hub: Hub, files: dict[str, bytes]) -> None:
    with pytest.raises(
        ModelError, match=r"has no Q2_K; it has Q4_K_M, Q8_0. Choose one: `tiny/model:Q4_K_M`"
    ):
        find_gguf_on_hub("tiny/model:Q2_K")
    with pytest.raises(ModelError, match="holds GGUF files and no ONNX graph"):
        open_embedder("tiny/model")
    with pytest.raises(ModelError, match="models that write text"):
        open_embedder("tiny/model:Q8_0")
    hub.lists = False
    with pytest.raises(ModelError, match=r"cannot be listed.*tiny/model:FILE\.gguf"):
        find_gguf_on_hub("tiny/model:Q8_0")
    assert find_gguf_on_hub("tiny/model:Tiny-Q8_0.gguf").read_bytes() == files["Tiny-Q8_0.gguf"]


def test_it_runs_as_the_file_itself_does(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(files["Tiny-Q8_0.gguf"])
    here: Any = open_generator(str(tmp_path / "x.gguf"), precision="fp32", threads=1)
    there: Any = open_generator("tiny/model:Q8_0", precision="fp32", threads=1)
    assert (
        here.card.template
        == there.card.template
        == "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    written = ["".join(model.generate("Hello", max_new_tokens=12)) for model in (here, there)]
    assert written[0] == written[1] != ""
    with pytest.raises(ModelError, match="no tokens 'yes' and 'no'"):
        open_reranker("tiny/model:Q8_0", precision="fp32", threads=1)


def test_a_template_that_is_not_known_is_left_to_llama_cpp(tmp_path: Path) -> None:
    from qmd.llm.fastest import _rewritable

    from .conftest import tiny

    tiny.write_gguf(tmp_path / "a.gguf", chat_template="{{ '<start_of_turn>' }}")
    tiny.write_gguf(tmp_path / "b.gguf")
    assert (_rewritable(tmp_path / "a.gguf"), _rewritable(tmp_path / "b.gguf")) == (False, True)


def test_the_commands_take_such_names(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qmd.serve.cli.app import root

    monkeypatch.setenv("QMD_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("QMD_DATA_DIR", str(tmp_path))

    def qmd(*words: str) -> str:
        result = CliRunner().invoke(root, list(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "tiny/model:Q8_0 is here" in qmd("models", "pull", "tiny/model:Q8_0")
    (row,) = [r for r in json.loads(qmd("models", "list", "--json")) if r["name"] == "tiny/model"]
    assert row["bytes"] >= len(files["Tiny-Q8_0.gguf"])
    (tmp_path / "config.yaml").write_text(
        "models:\n  generation: tiny/model:Q8_0\n  expansion: tiny/model:Q4_K_M\n"
    )
    rows = {r["name"]: r for r in json.loads(CliRunner().invoke(root, ["check", "--json"]).stdout)}
    assert rows["model generation"]["message"] == "tiny/model:Q8_0: here, verified, Tiny-Q8_0.gguf"
    assert rows["model expansion"]["state"] == "warning"
    assert "qmd models pull tiny/model:Q4_K_M" in rows["model expansion"]["remedy"]
    assert "model.onnx is written" in qmd("models", "export", "tiny/model:Q8_0", str(tmp_path / "out"))
    assert "tiny/model was removed" in qmd("models", "remove", "tiny/model:Q8_0")
    assert read_lock() == {}
