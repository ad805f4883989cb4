"""Qwen3-VL-Embedding as a sentence-transformers input module, for texts and images, without torchvision.

The prompt, the pooling and the pixel limits are those of the official code (Qwen3-VL-Embedding, 2026): a system
message with the instruction, a user message with the image before the text, "NULL" for an empty input, the
generation prompt at the end; right padding; the last attended position is the vector.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from qmd.vembed.model.images import open_image

DEFAULT_INSTRUCTION = "Represent the user's input."
MAX_TOKENS = 8192
MIN_PIXELS = 4_096
MAX_PIXELS = 1_843_200


class QwenVLBackbone(InputModule):
    """`Qwen3VLModel` with its image processor and tokenizer.

    Inputs are strings (text) or mappings with `text` and/or `image` (a path or a PIL image). The forward pass
    adds `token_embeddings` (B, T, d) and `sentence_embedding` (B, d), not yet normalised.
    """

    config_keys: ClassVar[list[str]] = ["instruction", "max_tokens"]
    config_file_name = "qwen_vl_config.json"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        instruction: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.instruction = instruction or DEFAULT_INSTRUCTION
        self.max_tokens = max_tokens or MAX_TOKENS
        self.tokenizer.padding_side = "right"
        self.image_token = "<|image_pad|>"
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(self.image_token))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        torch_dtype: str = "auto",
        attn_implementation: str | None = None,
        instruction: str | None = None,
        max_tokens: int | None = None,
    ) -> Self:
        """Load weights and tokenizer from a folder or the hub. Runs no code of the repository."""
        from transformers import AutoTokenizer, Qwen3VLModel

        options = {"attn_implementation": attn_implementation} if attn_implementation else {}
        model = Qwen3VLModel.from_pretrained(name_or_path, dtype=torch_dtype, **options)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        return cls(
            model,
            tokenizer,
            image_processor_for(model.config),
            instruction=instruction,
            max_tokens=max_tokens,
        )

    @property
    def modalities(self) -> list[Any]:
        return ["text", "image", ("text", "image"), "message"]

    def get_embedding_dimension(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    def get_word_embedding_dimension(self) -> int:
        return self.get_embedding_dimension()

    @property
    def max_seq_length(self) -> int:
        return self.max_tokens

    def prompt(self, text: str | None, image_tokens: int, instruction: str) -> str:
        """The chat form of one input; `image_tokens` placeholders stand for the image, 0 for none."""
        image = f"<|vision_start|>{self.image_token * image_tokens}<|vision_end|>" if image_tokens else ""
        body = image + (text or "") or "NULL"
        return (
            f"<|im_start|>system\n{instruction}<|im_end|>\n"
            f"<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n"
        )

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Token ids (B, T), attention mask, token types; for images patches (P, c) and grid (n, 3)."""
        texts, images = zip(*(_parts(item) for item in inputs), strict=True)
        given = [image for image in images if image is not None]
        features: dict[str, Tensor] = {}
        counts = [0] * len(texts)
        if given:
            pixels = self.image_processor(images=given, return_tensors="pt")
            grid = pixels["image_grid_thw"]
            per_image = iter((grid.prod(-1) // self.image_processor.merge_size**2).tolist())
            counts = [next(per_image) if image is not None else 0 for image in images]
            features["pixel_values"] = pixels["pixel_values"]
            features["image_grid_thw"] = grid
        instruction = prompt or self.instruction
        prompts = [
            self.prompt(self._fit(self._plain(text), count, instruction), count, instruction)
            for text, count in zip(texts, counts, strict=True)
        ]
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
        features["input_ids"] = tokens["input_ids"]
        features["attention_mask"] = tokens["attention_mask"]
        features["mm_token_type_ids"] = (tokens["input_ids"] == self.image_token_id).int()
        features["num_images_per_sample"] = torch.tensor([int(image is not None) for image in images])
        return features

    def _plain(self, text: str | None) -> str | None:
        """Marks of the chat and of images within a text are words there, and no marks."""
        for mark in self.tokenizer.get_added_vocab() if text else ():
            text = str(text).replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def _fit(self, text: str | None, image_tokens: int, instruction: str) -> str | None:
        """Shorten the text, never the image or the closing prompt, to the token limit."""
        if not text or len(text.encode()) + image_tokens + len(instruction.encode()) + 64 <= self.max_tokens:
            return text
        frame = len(
            self.tokenizer(self.prompt(None, image_tokens, instruction), add_special_tokens=False)[
                "input_ids"
            ]
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = self.max_tokens - frame
        return text if len(ids) <= room else str(self.tokenizer.decode(ids[: max(room, 0)]))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        image = features.get("image_grid_thw")
        visual = (
            {"pixel_values": features["pixel_values"], "image_grid_thw": image}
            if image is not None and len(image)
            else {}
        )
        output = self.model(
            input_ids=features["input_ids"],
            attention_mask=features["attention_mask"],
            mm_token_type_ids=features["mm_token_type_ids"] if visual else None,
            use_cache=False,
            **visual,
        )
        hidden = output.last_hidden_state  # (B, T, d)
        last = features["attention_mask"].sum(dim=1) - 1  # (B,) right padding: the last attended position
        features["token_embeddings"] = hidden
        features["sentence_embedding"] = hidden[torch.arange(len(last), device=hidden.device), last]
        return features

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        self.model.save_pretrained(output_path, safe_serialization=safe_serialization)
        self.tokenizer.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        folder = Path(model_name_or_path) / subfolder
        config: dict[str, Any] = {}
        if (file := folder / cls.config_file_name).exists():
            config = json.loads(file.read_text(encoding="utf-8"))
        model_kwargs = kwargs.get("model_kwargs") or {}
        return cls.from_pretrained(
            str(folder) if folder.exists() else model_name_or_path,
            torch_dtype=str(model_kwargs.get("dtype", model_kwargs.get("torch_dtype", "auto"))),
            **config,
        )


def image_processor_for(config: Any) -> Any:
    """The PIL image processor with the official limits; sides become multiples of patch x merge (32)."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = config.vision_config
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def _parts(item: Any) -> tuple[str | None, Any]:
    """(text, opened image) of one input."""
    if isinstance(item, str):
        return item, None
    if isinstance(item, Mapping):
        image = item.get("image")
        return item.get("text"), None if image is None else open_image(image)
    return None, open_image(item)
