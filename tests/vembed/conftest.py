"""Tiny random models of the real architectures, made once a session."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qmd.vembed.config import TrainConfig, load_train_config


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are slower on several threads, many times so on a busy machine."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`tiny(family)`: the folder of a tiny model."""
    pytest.importorskip("sentence_transformers")
    from qmd.vembed.model.tiny import make_tiny_model

    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in made:
            made[family] = make_tiny_model(family, root / family)  # type: ignore[arg-type]
        return made[family]

    return get


@pytest.fixture(scope="session")
def pairs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`pairs_of(mode)`: sixteen pairs in a JSONL file, images beside it."""
    from qmd.vembed.model.tiny import make_tiny_pairs

    root = tmp_path_factory.mktemp("pairs")
    return lambda mode: make_tiny_pairs(root, mode)


@pytest.fixture
def configure(
    tiny: Callable[[str], str], pairs_of: Callable[[str], Path], tmp_path: Path
) -> Callable[..., TrainConfig]:
    """`configure(family, mode, key=value...)`: the options of a run on sixteen pairs."""

    def get(family: str, mode: str, **options: object) -> TrainConfig:
        name = "text" if family == "composed" else family
        base: dict[str, object] = {
            "model_name_or_path": tiny(name),
            "encoder_mode": family,
            "image_model_name_or_path": tiny("image") if family == "composed" else "null",
            "data_path": pairs_of(mode),
            "retrieval_mode": mode,
            "output_dir": tmp_path / "out",
            "batch_size": 16,
            "learning_rate": "1e-2",
            "logging_steps": 1,
            "epochs": 2,
            "torch_dtype": "float32",
            "eval_strategy": "no",
        }
        given = [f"{key}={value}" for key, value in (base | options).items()]
        return load_train_config(overrides=given)

    return get
