"""`qmd models use` and `qmd check --models`: with the model that comes with the install and stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import qmd.index
from qmd.config import load_config, set_model
from qmd.errors import ConfigError, ModelError, ModelMismatch, NotFound, UsageError
from qmd.serve.cli.app import root
from qmd.types import ModelCard


class Letters:
    """Vectors of letter counts: another embedding model, of another width."""

    card = ModelCard("letters", "embedding", 26, 512)
    dim, max_tokens, fingerprint, runs_on = 26, 512, "letters:26", "paper"

    def embed_documents(self, texts: Any) -> Any:
        rows = np.array([[t.lower().count(chr(97 + i)) + 1e-3 for i in range(26)] for t in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_query(self, text: str) -> Any:
        return self.embed_documents([text])[0]

    def count_tokens(self, texts: Any) -> list[int]:
        return [len(t) // 4 + 1 for t in texts]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("QMD_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("QMD_DATA_DIR", str(tmp_path))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.md").write_text("# Bread\n\nKnead the dough.\n")
    (tmp_path / "notes" / "two.md").write_text("# Passport\n\nRenew it at the town hall.\n")
    with qmd.index.open() as index:
        index.add(tmp_path / "notes")
    return tmp_path


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    import qmd.llm
    import qmd.llm.open
    import qmd.llm.verify

    real = qmd.llm.open.open_embedder

    def opened(name: str, **options: Any) -> Any:
        return Letters() if name.endswith("letters/v1?model=l") else real(name, **options)

    for module in (qmd.llm, qmd.llm.open, qmd.llm.verify):
        monkeypatch.setattr(module, "open_embedder", opened)


def run(*words: str) -> Any:
    return CliRunner().invoke(root, list(words))


def test_use_changes_the_configuration_and_makes_the_vectors_anew(place: Path, letters: None) -> None:
    (place / "config.yaml").write_text(
        "# mine\nsearch:\n  limit: 7  # few\nmodels:\n  # which\n  reranker: null\n"
    )
    result = run("models", "use", "http://letters/v1?model=l")
    assert result.exit_code == 0, result.output
    text = (place / "config.yaml").read_text()
    assert "# mine" in text
    assert "limit: 7  # few" in text
    assert load_config(place / "config.yaml").models.embedding == "http://letters/v1?model=l"
    with qmd.index.open() as index:
        models = [(v.name, v.done, v.total) for v in index.status().vectors]
        assert models == [("letters", 2, 2)]
        assert index.vsearch("dough")[0].title == "Bread"
    back = run("models", "use", "all-MiniLM-L6-v2", "--no-embed")
    assert back.exit_code == 0, back.output
    assert "--model-changed" in back.output
    with qmd.index.open() as index, pytest.raises(ModelMismatch):
        index.embed()


def test_dim_cuts_the_vectors_and_the_index_knows(place: Path) -> None:
    with qmd.index.open() as index:
        whole = index.embedder
        texts = ["Knead the dough.", "Renew it at the town hall."]
        wanted = whole.embed_documents(texts)[:, :64]
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)

    shorter = run("models", "use", "all-MiniLM-L6-v2", "--dim", "64")
    assert shorter.exit_code == 0, shorter.output
    assert "models.dim is now 64" in shorter.output
    assert "was not trained for vectors of 64 numbers" in shorter.output
    assert load_config(place / "config.yaml").models.dim == 64
    with qmd.index.open() as index:
        np.testing.assert_allclose(index.embedder.embed_documents(texts), wanted, atol=1e-6)
        assert index.embedder.fingerprint != whole.fingerprint
        assert [(v.dim, v.done, v.configured) for v in index.status().vectors] == [(64, 2, True)]
        assert index.vsearch("dough")[0].title == "Bread"
    rows = {row["name"]: row for row in json.loads(run("check", "--json").stdout)}
    assert rows["embedding model"]["state"] == "warning"
    assert "64 of 384 dimensions" in rows["embedding model"]["message"]
    assert rows["vectors"]["message"] == "all 2 passages have one"
    assert "all-MiniLM-L6-v2, cut to 64 dimensions: complete" in run("status").output
    assert json.loads(run("status", "--json").stdout)["dim"] == 64

    set_model(place / "config.yaml", "dim", 32)  # by hand: nothing is mixed, and what to do is said
    with qmd.index.open() as index:
        assert index.status().pending == 2
        with pytest.raises(ModelMismatch, match=r"64d.*32d.*--model-changed"):
            index.embed()
        with pytest.raises(ModelMismatch):
            index.vsearch("dough")
    again = run("embed", "--model-changed")
    assert again.exit_code == 0, again.output
    with qmd.index.open() as index:
        assert [(v.dim, v.done) for v in index.status().vectors] == [(32, 2)]
    back = run("models", "use", "all-MiniLM-L6-v2")
    assert "vectors stay whole" in back.output
    with qmd.index.open() as index:
        assert [(v.dim, v.done, v.configured) for v in index.status().vectors] == [(384, 2, True)]


def test_a_shorter_dim_reads_no_text_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_model(place / "config.yaml", "dim", 128)
    with qmd.index.open() as index:
        monkeypatch.setattr(index.embedder.base, "embed_documents", None)  # type: ignore[attr-defined]
        assert index.embed(model_changed=True).embedded == 2
        assert [(v.dim, v.done) for v in index.status().vectors] == [(128, 2)]


def test_a_dim_that_cannot_be_is_refused(place: Path) -> None:
    too_long = run("models", "use", "all-MiniLM-L6-v2", "--dim", "500")
    assert "gives vectors of 384 numbers, 500 were asked for" in str(too_long.exception)
    other_role = run("models", "use", "BAAI/bge-reranker-base", "--role", "reranker", "--dim", "64")
    assert isinstance(other_role.exception, UsageError)
    assert not (place / "config.yaml").exists()
    (place / "config.yaml").write_text("models:\n  dim: 0\n")
    with pytest.raises(ConfigError, match=r"models\.dim|>= 1"):
        load_config(place / "config.yaml")


def test_a_model_that_fails_changes_nothing(place: Path) -> None:
    for name in ("no-such-model", str(place / "notes"), "cross-encoder/ms-marco-MiniLM-L-6-v2"):
        result = run("models", "use", name)
        assert result.exit_code != 0
        assert not (place / "config.yaml").exists()
    assert "is a model for reranker" in str(result.exception)


def test_a_reranker_that_cannot_judge_is_refused_as_what_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Contrary:
        def score(self, query: str, texts: Any) -> Any:
            return np.linspace(1, 0, len(texts), dtype=np.float32)

    monkeypatch.setattr("qmd.llm.verify.open_reranker", lambda name: Contrary())
    result = run("models", "use", "smollm2-135m", "--role", "reranker")
    assert isinstance(result.exception, ModelError)
    assert "It was not trained to judge, or its files" in str(result.exception)
    assert result.exception.exit_code == 1
    assert not (place / "config.yaml").exists()


@pytest.mark.parametrize("role", ["embedding", "reranker", "generation", "image"])
def test_a_path_of_an_unknown_user_names_no_model(place: Path, role: str) -> None:
    result = run("models", "use", "~nosuch/x", "--role", role)
    assert isinstance(result.exception, NotFound)
    assert "model is named '~nosuch/x'" in str(result.exception)
    (place / "config.yaml").write_text(f"models:\n  {role}: ~nosuch/x\n")
    assert "model is named '~nosuch/x'" in run("check", "--json").output


@pytest.mark.parametrize("name", ["http://letters/v1?model=l", "./notes"])
def test_a_projects_own_configuration_is_not_given_what_it_may_not_say(
    place: Path, letters: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("QMD_CONFIG_DIR")
    monkeypatch.chdir(place)
    (place / ".qmd").mkdir()
    refused = run("models", "use", name)
    assert isinstance(refused.exception, ConfigError)
    assert not (place / ".qmd" / "config.yaml").exists()


def test_check_models_loads_and_times_them(place: Path) -> None:
    result = run("check", "--models", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert {"python", "sqlite", "providers", "memory", "model embedding", "embedding works"} <= set(rows)
    assert "verified" in rows["model embedding"]["message"]
    figures = rows["embedding works"]["figures"]
    assert figures["runs_on"].startswith("CPUExecutionProvider")
    assert figures["speed"] > 0
    assert figures["load_s"] > 0
    assert rows["memory"]["figures"]["total_bytes"] > rows["memory"]["figures"]["process_bytes"] > 0


def test_a_password_in_the_address_of_a_server_is_never_printed(place: Path, letters: None) -> None:
    address = "http://me:hush@letters/v1?model=l"
    said = [run("models", "use", address)]
    set_model(place / "config.yaml", "reranker", "https://me:hush@host/rerank")
    asked = ("check", "check --models", "check --models --json", "status", "status --json", "query bread")
    said += [run(*words.split()) for words in asked]
    assert load_config(place / "config.yaml").models.embedding == address
    for result in said:
        assert "letters" in result.output or "host/rerank" in result.output, result.output
        assert "hush" not in result.output + result.stderr
    assert "hush" not in str(ModelError(f"no answer from {address}"))


def test_check_names_a_missing_model_and_its_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_model(place / "config.yaml", "reranker", "BAAI/bge-reranker-base")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    result = run("check")
    assert "warning" in result.output
    assert "qmd models pull BAAI/bge-reranker-base" in result.output


@pytest.mark.parametrize(
    "text", ["", "models:\n    embedding: old # x\n    reranker: r\n", "search: {limit: 3}", "# only words"]
)
def test_a_configuration_is_changed_line_by_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    before = load_config(path)
    set_model(path, "embedding", 'a "quoted": name')
    after = load_config(path)
    assert after.models.embedding == 'a "quoted": name'
    assert after.search == before.search
    assert after.models.reranker == before.models.reranker


def test_a_configuration_in_another_style_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("models: {embedding: old}\n")
    with pytest.raises(ConfigError, match="by hand"):
        set_model(path, "embedding", "new")
    assert path.read_text() == "models: {embedding: old}\n"


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qmd.llm.memory import gpus

    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase $1 in *compute-apps*) echo "GPU-1, $PPID, 321";; '
        "*) echo 'GPU-1, GTX 1660 Ti, 6144, 900';; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (gpu,) = gpus()
    assert (gpu.name, gpu.total_bytes, gpu.used_bytes) == ("GTX 1660 Ti", 6144 << 20, 900 << 20)
    assert gpu.own_bytes == 321 << 20
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpus() == ()


def test_an_adapted_model_is_taken_into_use_without_reading_a_text(place: Path) -> None:
    from qmd.llm import open_embedder
    from qmd.llm.adapted import write_adapter

    base = open_embedder("all-MiniLM-L6-v2")
    matrix = np.eye(base.dim, dtype=np.float32)
    matrix[0, 0] = 3.0
    write_adapter(place / "adapted", matrix, base="all-MiniLM-L6-v2", base_fingerprint=base.fingerprint)
    with qmd.index.open() as index:
        [before] = index.store.vectors.models()
    result = CliRunner().invoke(root, ["models", "use", str(place / "adapted")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert ", adapted" in result.output
    assert load_config(place / "config.yaml").models.embedding == str((place / "adapted").absolute())
    with qmd.index.open() as index:
        [after] = index.store.vectors.models()
        assert after.fingerprint == index.embedder.fingerprint != before.fingerprint
        assert index.status().pending == 0
        assert index.vsearch("a new passport")[0].path == "two.md"


def test_an_adapter_needs_no_export(tmp_path: Path) -> None:
    from qmd.llm.adapted import write_adapter

    write_adapter(tmp_path / "adapted", np.eye(4, dtype=np.float32), base="x", base_fingerprint="y")
    result = CliRunner().invoke(root, ["models", "export", str(tmp_path / "adapted"), str(tmp_path / "out")])
    assert isinstance(result.exception, UsageError)
    assert "qmd models use" in str(result.exception)


def test_a_trained_model_is_exported_by_command_and_used(place: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from qmd.vembed.model.tiny import make_tiny_model

    make_tiny_model("text", place / "tiny")
    words = ["models", "export", str(place / "tiny"), str(place / "onnx")]
    result = CliRunner().invoke(root, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (place / "onnx" / "model_int8.onnx").is_file()
    assert f"qmd models use {place / 'onnx'}" in result.output
    q4 = CliRunner().invoke(root, [*words, "--precision", "q4"])
    assert isinstance(q4.exception, UsageError)
