"""Knowledge-enhanced drafting and lossless speculative decoding. Importing it imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qmd.errors import MissingExtra

if TYPE_CHECKING:
    from qmd.draft.cost import CostTable
    from qmd.draft.decoder import SpeculativeDecoder
    from qmd.draft.engine import EngineDrafter
    from qmd.draft.knowledge import KnowledgeCacheManager
    from qmd.draft.load import Qwen3Loader
    from qmd.draft.model import LayerSampler, Qwen3DraftModel
    from qmd.draft.onnx_target import OnnxTarget
    from qmd.draft.torch_target import TorchTarget, TransformersTarget

_HOMES = {
    "CostTable": "cost",
    "EngineDrafter": "engine",
    "KnowledgeCacheManager": "knowledge",
    "LayerSampler": "model",
    "OnnxTarget": "onnx_target",
    "Qwen3DraftModel": "model",
    "Qwen3Loader": "load",
    "SpeculativeDecoder": "decoder",
    "TorchTarget": "torch_target",
    "TransformersTarget": "torch_target",
}

__all__ = [
    "CostTable",
    "EngineDrafter",
    "KnowledgeCacheManager",
    "LayerSampler",
    "OnnxTarget",
    "Qwen3DraftModel",
    "Qwen3Loader",
    "SpeculativeDecoder",
    "TorchTarget",
    "TransformersTarget",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qmd.draft' has no attribute {name!r}")
    try:
        return getattr(import_module(f"qmd.draft.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name in ("torch", "transformers", "safetensors"):
            raise MissingExtra("drafting", "draft") from error
        raise
