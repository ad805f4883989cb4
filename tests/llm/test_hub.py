"""Download against a loopback server that speaks the hub's protocol."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qmd.errors import ModelError, NotFound
from qmd.llm import find_card, open_embedder
from qmd.llm.catalog import CATALOG, CHATML
from qmd.llm.hub import cached_models, find_on_hub, lock_path, read_lock, remove_cached
from qmd.llm.open import find_files
from qmd.llm.variants import find_variants
from qmd.types import ModelCard, ModelVariant

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = ModelCard("tiny/model", "embedding", variants=(ModelVariant("fp32", ("onnx/model.onnx",)),))


class Hub(ThreadingHTTPServer):
    """`files` of every repository at `head`, and at the commits, branches and tags of `history`; `broken_after` cuts
    bodies off after so many bytes, once."""

    daemon_threads = True
    files: dict[str, bytes]
    head: str = COMMIT
    history: dict[str, tuple[str, dict[str, bytes]]]
    asked: list[tuple[str, str, str | None]]
    stalled: threading.Event
    go_on: threading.Event
    broken_after: int | None = None
    stall_after: int | None = None
    lists: bool = True


class Answers(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _missing(self, code: str, commit: str = "") -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, *, body: bool) -> None:
        hub = self.server
        assert isinstance(hub, Hub)
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        known = {"main": (hub.head, hub.files), hub.head: (hub.head, hub.files)} | hub.history
        if self.path.startswith("/api/models/tiny/model") and hub.lists:
            wanted = self.path.partition("/revision/")[2].partition("?")[0] or "main"
            if wanted not in known:
                self._missing("RevisionNotFound")
                return
            commit, files = known[wanted]
            names = [{"rfilename": name} for name in files]
            raw = json.dumps({"id": "tiny/model", "sha": commit, "siblings": names}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
            return
        if self.path.startswith("/api/models/tiny/model"):  # a plain mirror knows files, not lists
            self._missing("")
            return
        wanted, _, name = self.path.partition("/resolve/")[2].partition("/")
        if not self.path.startswith("/tiny/model/"):
            self._missing("RepoNotFound")
            return
        if wanted not in known:
            self._missing("RevisionNotFound")
            return
        commit, files = known[wanted]
        data = files.get(name)
        if data is None:
            self._missing("EntryNotFound", commit)
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            end = len(data)
            if hub.broken_after is not None and name.endswith(".onnx"):
                end, hub.broken_after = start + hub.broken_after, None
            if hub.stall_after is not None and name.endswith(".onnx"):
                self.wfile.write(data[start : start + hub.stall_after])
                self.wfile.flush()
                hub.stall_after = None
                hub.stalled.set()
                hub.go_on.wait(20)
                return
            self.wfile.write(data[start:end])
            self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> Iterator[Hub]:
    from huggingface_hub import constants

    folder, _ = tiny_model("bert")
    server = Hub(("127.0.0.1", 0), Answers)
    server.asked, server.history = [], {}
    server.stalled, server.go_on = threading.Event(), threading.Event()
    server.files = {
        "onnx/model.onnx": (folder / "model.onnx").read_bytes(),
        "tokenizer.json": (folder / "tokenizer.json").read_bytes(),
        "config.json": (folder / "config.json").read_bytes(),
        "pytorch_model.bin": b"not wanted" * 1000,
    }
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("QMD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    yield server
    server.shutdown()
    thread.join()


def test_only_needed_files_at_one_commit_and_locked(hub: Hub) -> None:
    embedder = open_embedder("tiny/model")
    assert embedder.embed_query("bread").shape == (32,)
    gets = {path.rpartition(COMMIT)[2] or path for command, path, _ in hub.asked if command == "GET"}
    assert not any("pytorch_model" in path for path in gets)
    entry = read_lock()["tiny/model"]
    assert entry["commit"] == COMMIT
    assert entry["files"]["onnx/model.onnx"] == hashlib.sha256(hub.files["onnx/model.onnx"]).hexdigest()
    assert cached_models()["tiny/model"] >= len(hub.files["onnx/model.onnx"])


def test_pooling_and_window_are_those_the_repository_declares(hub: Hub) -> None:
    hub.files |= {
        "1_Pooling/config.json": b'{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}',
        "sentence_bert_config.json": b'{"max_seq_length": 64}',
    }
    card = open_embedder("tiny/model").card
    assert (card.pooling, card.max_tokens) == ("cls", 64)
    assert open_embedder("tiny/model", download=False).card == card
    assert "1_Pooling/config.json" in read_lock()["tiny/model"]["files"]


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_generator_writes_in_its_own_form(hub: Hub, place: str, tmp_path: Path, tiny_model: Any) -> None:
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    own = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Q.<|im_end|>\n{% endif %}" + turns
    own += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    data = own if place.endswith("jinja") else json.dumps({"chat_template": own})
    hub.files[place] = data.encode()
    card = find_card("tiny/model", "generation")
    assert find_files(card)[0].card.template == "<|im_start|>system\nYou are Q.<|im_end|>\n" + CHATML
    remove_cached(["tiny/model"])
    del hub.files[place]
    assert find_files(card)[0].card.template == CHATML
    remove_cached(["tiny/model"])
    hub.files[place] = data.replace("im_start", "start").encode()
    with pytest.raises(ModelError, match="ChatML is"):
        find_files(card)
    shutil.copytree(tiny_model("qwen3-causal")[0], tmp_path / "here")
    (tmp_path / "here" / place).write_text(data)
    assert find_card(str(tmp_path / "here"), "generation").template.startswith(
        "<|im_start|>system\nYou are Q."
    )


def test_once_downloaded_no_network_is_needed(hub: Hub) -> None:
    first = find_on_hub(CARD, CARD.variants[0])
    hub.asked.clear()
    again = find_on_hub(CARD, CARD.variants[0], download=False)
    assert again == first
    assert hub.asked == []


def move(hub: Hub, commit: str) -> None:
    """The repository's main branch goes on: another graph under the same name."""
    import onnx

    model = onnx.load_from_string(hub.files["onnx/model.onnx"])
    model.doc_string = commit
    hub.history |= {hub.head: (hub.head, dict(hub.files)), "v1": (hub.head, dict(hub.files))}
    hub.files = hub.files | {"onnx/model.onnx": model.SerializeToString()}
    hub.head = commit


def test_the_first_commit_is_used_ever_after_until_another_is_asked_for(hub: Hub) -> None:
    first = find_files(find_card("tiny/model"))[0]
    move(hub, "b" * 40)
    hub.history["v2"] = (hub.head, hub.files)
    assert find_files(find_card("tiny/model"))[0] == first
    # another file of the model, fetched later, comes from the first commit too
    hub.history[COMMIT][1]["onnx/model_fp16.onnx"] = hub.files["onnx/model.onnx"]
    later = find_on_hub(CARD, ModelVariant("fp16", ("onnx/model_fp16.onnx",)))
    assert COMMIT in str(later.graph)
    assert all("b" * 40 not in path and "/main/" not in path for _, path, _ in hub.asked if "fp16" in path)

    moved = find_files(find_card("tiny/model"), revision="v2")[0]
    assert moved.sha256 != first.sha256
    assert read_lock()["tiny/model"]["commit"] == "b" * 40
    hub.asked.clear()
    assert find_files(find_card("tiny/model"))[0] == moved  # the pin that was asked for stays
    assert find_files(find_card("tiny/model"), revision=COMMIT)[0].sha256 == first.sha256
    with pytest.raises(ModelError, match=r"revision nowhere.*--revision main"):
        find_files(find_card("tiny/model"), revision="nowhere")
    assert read_lock()["tiny/model"]["commit"] == COMMIT


def test_a_name_and_a_card_may_say_the_commit(hub: Hub) -> None:
    move(hub, "b" * 40)
    old = find_files(find_card("tiny/model@v1"))[0]
    new = find_files(find_card("tiny/model"))[0]
    assert (old.sha256 == new.sha256, COMMIT in str(old.graph), "b" * 40 in str(new.graph)) == (
        False,
        True,
        True,
    )
    assert {key: entry["commit"] for key, entry in read_lock().items()} == {
        "tiny/model@v1": COMMIT, "tiny/model": "b" * 40,
    }  # fmt: skip
    assert open_embedder("tiny/model@v1").fingerprint != open_embedder("tiny/model").fingerprint
    assert remove_cached(["tiny/model"]) == ["tiny/model"]
    assert read_lock() == {}
    pinned = replace(CARD, revision=COMMIT)
    assert find_files(pinned)[0].sha256 == old.sha256
    assert read_lock()["tiny/model"]["commit"] == COMMIT
    hub.lists = False  # a mirror without lists keeps to the commit all the same
    remove_cached(["tiny/model"])
    assert find_files(pinned)[0].sha256 == old.sha256
    with pytest.raises(ModelError, match="comes in a package"):
        find_card("all-MiniLM-L6-v2@v1")
    assert find_card("BAAI/bge-m3@main").repo == "Xenova/bge-m3@main"
    commits = [card.revision for card in CATALOG.values() if card.revision]
    assert len(commits) >= 6
    assert all(len(commit) == 40 and int(commit, 16) for commit in commits)


def test_external_weights_load_from_the_cache_and_count_in_the_fingerprint(hub: Hub, tmp_path: Path) -> None:
    import onnx

    model = onnx.load_from_string(hub.files["onnx/model.onnx"])
    onnx.save(
        model,
        str(tmp_path / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=64,
    )
    hub.files |= {f"onnx/{n}": (tmp_path / n).read_bytes() for n in ("model.onnx", "model.onnx_data")}
    hub.files["onnx/model.onnx"] = (tmp_path / "model.onnx").read_bytes()
    embedder: Any = open_embedder("tiny/model")
    first = embedder.embed_query("bread")
    assert embedder.prepare() is None  # weights beside the graph are left where they are
    weights = bytearray(hub.files["onnx/model.onnx_data"])
    weights[:400] = bytes(400)
    move(hub, "c" * 40)
    hub.files |= {
        "onnx/model.onnx": hub.history["v1"][1]["onnx/model.onnx"],
        "onnx/model.onnx_data": bytes(weights),
    }
    other = open_embedder("tiny/model@main")
    assert other.fingerprint.split(":")[-1] != embedder.fingerprint.split(":")[-1]
    assert first.shape == (32,)


def test_a_changed_or_truncated_file_is_refused_and_the_remedy_works(hub: Hub) -> None:
    graph = find_on_hub(CARD, CARD.variants[0]).graph.resolve()
    whole = graph.read_bytes()
    for damaged in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1])):
        graph.chmod(0o644)
        graph.write_bytes(damaged)
        with pytest.raises(ModelError, match="qmd models remove tiny/model"):
            find_on_hub(CARD, CARD.variants[0])
    assert remove_cached(["tiny/model"]) == ["tiny/model"]
    assert find_on_hub(CARD, CARD.variants[0]).graph.read_bytes() == whole


def test_an_interrupted_download_goes_on(hub: Hub) -> None:
    hub.broken_after = 10_000
    with contextlib.suppress(ModelError):  # the library may go on by itself, or give up and go on next time
        find_on_hub(CARD, CARD.variants[0])
    assert find_on_hub(CARD, CARD.variants[0]).graph.read_bytes() == hub.files["onnx/model.onnx"]
    gets = [asked for command, path, asked in hub.asked if command == "GET" and path.endswith(".onnx")]
    assert len(gets) >= 2
    # the second request asks for the rest alone: what reached the disk in whole pieces is kept
    starts = [int(wanted.removeprefix("bytes=").partition("-")[0]) for wanted in gets[1:] if wanted]
    assert any(4096 <= start <= 10_000 for start in starts), gets


def test_ctrl_c_in_a_download_loses_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.stall_after = 20_000
    environment = os.environ | {
        "PYTHONPATH": "src", "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1", "QMD_CACHE_DIR": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    pull = [sys.executable, "-m", "qmd", "models", "pull", "tiny/model"]
    first = subprocess.Popen(pull, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert hub.stalled.wait(60)
    time.sleep(0.3)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=30)
    hub.go_on.set()
    assert first.returncode == 130
    assert "Traceback" not in said
    assert read_lock() == {}
    second = subprocess.run(pull, env=environment, capture_output=True, text=True, timeout=60)
    assert second.returncode == 0, second.stderr
    graph = find_on_hub(CARD, CARD.variants[0], download=False).graph
    assert graph.read_bytes() == hub.files["onnx/model.onnx"]


def test_a_full_disk_and_a_wrong_kind_of_file_are_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.hf_hub_download", full)
        with pytest.raises(ModelError, match="Free disk space"):
            find_on_hub(CARD, CARD.variants[0])
    hub.files["onnx/model.onnx"] = b"<html>not a model</html>"
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        open_embedder("tiny/model")
    remove_cached(["tiny/model"])
    hub.files["tokenizer.json"] = b"{}"
    with pytest.raises(ModelError, match=r"not a readable tokenizer\.json"):
        open_embedder("tiny/model")


def test_variants_come_from_the_repositorys_own_list(hub: Hub) -> None:
    data = hub.files.pop("onnx/model.onnx")
    hub.files |= {
        "onnx/model_int8.onnx": data,
        "onnx/model_fp16.onnx": data,
        "onnx/model_fp16.onnx_data": b"x",
    }
    files, placement = find_files(find_card("tiny/model"))
    assert placement.variant == ModelVariant("int8", ("onnx/model_int8.onnx",))
    assert files.graph.name == "model_int8.onnx"
    assert not any("fp16" in path for command, path, _ in hub.asked if command == "GET")
    hub.asked.clear()
    assert find_files(find_card("tiny/model"), download=False)[0].graph == files.graph
    assert hub.asked == []
    remove_cached(["tiny/model"])
    hub.files = {"model.safetensors": b"x", "config.json": b"{}"}
    with pytest.raises(ModelError, match="holds no ONNX graph"):
        find_files(find_card("tiny/model"))


def test_a_mirror_without_lists_serves_what_the_card_says(hub: Hub) -> None:
    hub.lists = False
    assert open_embedder("tiny/model").embed_query("bread").shape == (32,)


@pytest.mark.parametrize(
    ("names", "repo", "wanted"),
    [
        (["onnx/model.onnx", "onnx/model.onnx_data", "model.onnx"], "",
         {"fp32": ("onnx/model.onnx", "onnx/model.onnx_data")}),
        (["onnx/model_quantized.onnx", "onnx/model_int8.onnx", "onnx/model_uint8.onnx"], "",
         {"int8": ("onnx/model_quantized.onnx",)}),
        (["model.onnx", "model.onnx.data"], "me/x-int8-ONNX", {"int8": ("model.onnx", "model.onnx.data")}),
        (["onnx/model_q4f16.onnx", "onnx/model_q4.onnx", "onnx/model_bnb4.onnx"], "",
         {"q4f16": ("onnx/model_q4f16.onnx",), "q4": ("onnx/model_q4.onnx",)}),
        (["onnx/decoder_model_merged.onnx", "onnx/decoder_with_past_model.onnx"], "",
         {"fp32": ("onnx/decoder_model_merged.onnx",)}),
        (["openvino/model.onnx", "README.md"], "", {}),
    ],
)  # fmt: skip
def test_precisions_by_file_name(names: list[str], repo: str, wanted: dict[str, tuple[str, ...]]) -> None:
    assert {v.precision: v.files for v in find_variants(names, repo)} == wanted


def test_unknown_models_and_missing_files_say_what_to_do(hub: Hub) -> None:
    with pytest.raises(ModelError, match="Check the spelling"):
        open_embedder("nobody/nothing")
    del hub.files["onnx/model.onnx"]
    with pytest.raises(ModelError, match="holds no ONNX graph"):
        open_embedder("tiny/model")
    with pytest.raises(ModelError, match=r"no file onnx/model\.onnx"):
        find_on_hub(CARD, CARD.variants[0])
    with pytest.raises(NotFound, match="Did you mean 'all-MiniLM-L6-v2'"):
        find_card("all-MiniLM-L6-v3")


def test_no_network_says_network_proxy_mirror(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    dead = "http://127.0.0.1:9"
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", dead + "/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(ModelError, match=r"HF_ENDPOINT"):
        find_on_hub(CARD, CARD.variants[0])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        find_on_hub(CARD, CARD.variants[0])


def test_a_damaged_lock_file_is_not_forgotten(hub: Hub) -> None:
    lock_path().parent.mkdir(parents=True)
    for text in ("{half", "[]", '{"format_version": 1}', '{"format_version": 1, "models": []}'):
        lock_path().write_text(text)
        with pytest.raises(ModelError, match="Remove it"):
            read_lock()


def test_every_model_of_the_specification_has_a_row() -> None:
    for name in (
        "BAAI/bge-small-en-v1.5", "cross-encoder/ms-marco-MiniLM-L-6-v2", "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen3-Reranker-0.6B", "Xenova/jina-embeddings-v2-base-zh", "onnx-community/Qwen3-0.6B-ONNX",
        "zhiqing/Qwen3-Reranker-0.6B-seq-cls-ONNX", "thomasht86/Qwen3-Reranker-0.6B-int8-ONNX",
        "Qwen/Qwen3-Embedding-0.6B", "BAAI/bge-m3", "intfloat/multilingual-e5-small", "BAAI/bge-reranker-v2-m3",
        "all-MiniLM-L6-v2", "smollm2-135m", "BAAI/bge-reranker-base",
    ):  # fmt: skip
        assert CATALOG[name].variants
        assert CATALOG[name].license
        assert CATALOG[name].checked
