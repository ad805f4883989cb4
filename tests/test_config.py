"""Configuration: defaults, unknown keys refused by name, places found in the documented order."""

from pathlib import Path

import pytest

from qmd.config import Config, Places, find_places, load_config, parse_config, set_model
from qmd.errors import ConfigError
from qmd.trust import load_config_of


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
        ({"search": {"half_life_days": 0}}, "half_life_days"),
        ({"search": {"rrf_k": -1}}, "rrf_k"),
        ({"search": {"keyword_weight": -1}}, "keyword_weight"),
        ({"search": {"vector_weight": float("nan")}}, "vector_weight"),
        ({"search": {"rerank_weight": 7}}, "rerank_weight"),
        ({"search": {"limit": 0}}, "limit"),
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
    path.write_text("[" * 3000)
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


@pytest.mark.parametrize(
    ("written", "meant"), [("off", "off"), ("on", "on"), ("auto", "auto"), ("'off'", "off")]
)
def test_a_bare_off_is_off(tmp_path: Path, written: str, meant: str) -> None:
    (tmp_path / "config.yaml").write_text(f"memory:\n  citations: {written}\n")
    assert load_config(tmp_path / "config.yaml").memory.citations == meant


def test_a_model_is_set_and_nothing_else_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("\ufeffmodels:\n  embedding: a/b\n  dim: 64\n".encode())
    set_model(path, "reranker", "c/d")
    models = load_config(path).models
    assert (models.embedding, models.dim, models.reranker) == ("a/b", 64, "c/d")
    path.write_text("? models\n: {embedding: a/b}\n")
    with pytest.raises(ConfigError, match="by hand"):
        set_model(path, "reranker", "c/d")
    assert load_config(path).models.embedding == "a/b"


def test_a_linked_configuration_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "config.yaml"
    real.write_text("models:\n  embedding: a/b\n")
    link.symlink_to("real.yaml")
    set_model(link, "reranker", "c/d")
    assert link.is_symlink()
    assert load_config(real).models.reranker == "c/d"


# ---- a project's own
@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("QMD_CONFIG_DIR", "QMD_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QMD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work" / ".qmd").mkdir(parents=True)
    return tmp_path / "work" / ".qmd"


@pytest.mark.parametrize(
    "name", ["./model", "http://127.0.0.1:9/v1", "stranger/model", "stranger/model-GGUF:Q4_K_M", "a/b@main"]
)
def test_a_project_s_own_configuration_reaches_and_downloads_nothing(project: Path, name: str) -> None:
    (project / "config.yaml").write_text(f"models:\n  reranker: {name}\n")
    with pytest.raises(ConfigError, match=r"models\.reranker .*--config-dir"):
        load_config_of(find_places(cwd=project.parent))


def test_a_project_s_own_configuration_may_name_known_models(project: Path) -> None:
    from qmd.llm.catalog import CATALOG

    for card in CATALOG.values():
        if card.role == "embedding":
            (project / "config.yaml").write_text(f"models:\n  embedding: {card.name}\n")
            assert load_config_of(find_places(cwd=project.parent)).models.embedding == card.name


def test_a_model_that_the_user_fetched_is_known(project: Path) -> None:
    from qmd.llm import hub

    with hub._lock_held():
        hub._write_lock({"stranger/model": {"commit": "0" * 40, "files": {}}})
    (project / "config.yaml").write_text("models:\n  reranker: stranger/model\n")
    assert load_config_of(find_places(cwd=project.parent)).models.reranker == "stranger/model"


def test_a_project_s_configuration_that_the_user_names_is_trusted(project: Path) -> None:
    """As the refusal says."""
    (project / "config.yaml").write_text("models:\n  embedding: ./model\n")
    places = find_places(project, cwd=project.parent)
    assert load_config_of(places).models.embedding == "./model"
    assert places.project == project  # whose index still reads the project's folder alone
    with pytest.raises(ConfigError):
        load_config_of(Places(project, project, project))


def test_a_home_folder_that_there_is_not_is_named(monkeypatch):
    with pytest.raises(ConfigError, match="home folder"):
        find_places(config_dir="~nosuch/x")
    monkeypatch.setenv("QMD_DATA_DIR", "~nosuch/x")
    with pytest.raises(ConfigError, match="~nosuch/x"):
        find_places()
