"""Teach a (multimodal) embedding model your own material, measure it, and use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmd.vembed.config import TrainConfig as TrainConfig
    from qmd.vembed.config import load_train_config as load_train_config
    from qmd.vembed.data import read_pairs as read_pairs
    from qmd.vembed.evaluation.report import compare_models as compare_models
    from qmd.vembed.export import export_onnx as export_onnx
    from qmd.vembed.export import open_exported as open_exported
    from qmd.vembed.predictor import Predictor as Predictor
    from qmd.vembed.run import TrainReport as TrainReport
    from qmd.vembed.run import train as train
    from qmd.vembed.two_stage import two_stage_search as two_stage_search

_HOMES = {
    "Predictor": "qmd.vembed.predictor",
    "TrainConfig": "qmd.vembed.config",
    "TrainReport": "qmd.vembed.run",
    "compare_models": "qmd.vembed.evaluation.report",
    "train": "qmd.vembed.run",
    "export_onnx": "qmd.vembed.export",
    "load_train_config": "qmd.vembed.config",
    "open_exported": "qmd.vembed.export",
    "read_pairs": "qmd.vembed.data",
    "two_stage_search": "qmd.vembed.two_stage",
}
__all__ = [
    "Predictor",
    "TrainConfig",
    "TrainReport",
    "compare_models",
    "export_onnx",
    "load_train_config",
    "open_exported",
    "read_pairs",
    "train",
    "two_stage_search",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: options and data are read without torch."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'qmd.vembed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
