"""The door to the model families (the specification imports `QwenVLBackbone` from here)."""

from qmd.vembed.model.qwen_vl import QwenVLBackbone

__all__ = ["QwenVLBackbone"]
