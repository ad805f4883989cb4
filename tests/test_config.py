"""Configuration: defaults, unknown keys refused by name, places found in the documented order."""

from pathlib import Path

import pytest

from qmd.config import Config, find_places, load_config, parse_config
from qmd.errors import ConfigError


def test_a_missing_or_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "config.yaml") == Config()
    (tmp_path / "config.yaml").write_text("# nothing yet\n")
    assert load_config(tmp_path / "config.yaml") == Config()


def test_the_specification_s_example_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        'memory:\n  backend: "builtin"\n  citations: "auto"\n'
        'models:\n  embedding: "BAAI/bge-small-en-v1.5"\n'
        '  reranker: "cross-encoder/ms-marco-MiniLM-L-6-v2"\n  expansion: "Qwen/Qwen2.5-0.5B-Instruct"\n'
    )
    config = load_config(tmp_path / "config.yaml")
    assert config.models.embedding == "BAAI/bge-small-en-v1.5"
    assert config.models.reranker == "cross-encoder/ms-marco-MiniLM-L-6-v2"
    assert config.memory.citations == "auto"


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"modles": {}}, "models"),
        ({"models": {"embeding": "x"}}, "models.embedding"),
        ({"models": {"embedding": 3}}, "models.embedding"),
        ({"memory": {"citations": "sometimes"}}, "citations"),
        ({"search": []}, "search"),
        ({"ingest": {"chunk_tokens": 4}}, "chunk_tokens"),
        ({"ingest": {"chunk_overlap": 0.9}}, "chunk_overlap"),
        (["models"], "mapping"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(tree: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(tree)


def test_broken_yaml_and_bytes_are_clear_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("models: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(path)


def test_places_prefer_argument_then_environment_then_project_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work" / "deep"
    home.mkdir()
    work.mkdir(parents=True)
    for name in ("QMD_CONFIG_DIR", "QMD_DATA_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    assert find_places(cwd=work).config_dir == home / ".config" / "qmd"
    assert find_places(cwd=work).data_dir == home / ".local" / "share" / "qmd"

    (tmp_path / "work" / ".qmd").mkdir()
    assert find_places(cwd=work).data_dir == tmp_path / "work" / ".qmd"
    assert find_places(cwd=work).project == tmp_path / "work" / ".qmd"

    monkeypatch.setenv("QMD_DATA_DIR", str(tmp_path / "env"))
    assert find_places(cwd=work).data_dir == tmp_path / "env"
    assert find_places(data_dir=tmp_path / "flag", cwd=work).data_dir == tmp_path / "flag"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\0b"])
def test_an_index_name_stays_inside_the_data_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain name"):
        find_places(data_dir=tmp_path).database(name)
