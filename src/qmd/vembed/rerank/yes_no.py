"""A causal model asked for yes or no, as Qwen3-Reranker is: the score is logit(yes) - logit(no) at the last position.

Token ids are put together as `qmd.llm.reranker` does it: the prompt up to the text, the text with the space before it,
and the rest are each turned into tokens on their own, which gives the ids of the whole. Training and serving then see
the same ids, and give the same score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from qmd.errors import ModelError
from qmd.llm.catalog import QWEN3_RERANK, RERANK_INSTRUCTION


class YesNoPairs(InputModule):
    """(query, text) pairs -> `scores` (B, 1): log-odds of "yes"."""

    config_keys: ClassVar[list[str]] = ["max_tokens", "template", "instruction"]
    config_file_name = "yes_no_config.json"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_tokens: int | None = None,
        template: str | None = None,
        instruction: str | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens = min(max_tokens or 1024, int(model.config.max_position_embeddings))
        self.template, self.instruction = template or QWEN3_RERANK, instruction or RERANK_INSTRUCTION
        self.yes, self.no = (self._token(word) for word in ("yes", "no"))

    def _token(self, word: str) -> int:
        ids = self._ids([word])[0]
        if len(ids) != 1:
            raise ModelError(f"the tokenizer has no single token {word!r}; this model cannot judge pairs.")
        return ids[0]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, *, dtype: str = "auto", attn_implementation: str | None = None, **options: Any
    ) -> Self:
        """Load weights and tokenizer from a folder or the hub. Runs no code of the repository."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        chosen = {"attn_implementation": attn_implementation} if attn_implementation else {}
        model = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=dtype, trust_remote_code=False, **chosen
        )
        return cls(model, AutoTokenizer.from_pretrained(name_or_path), **options)

    @property
    def max_seq_length(self) -> int:
        return self.max_tokens

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Token ids (B, T), padded on the right, and their mask. Too long a text is cut, never the prompt."""
        before, after = self.template.split("{document}")
        stem = before.rstrip(" ")
        space = before[len(stem) :]
        queries = [
            stem.replace("{instruction}", prompt or self.instruction).replace("{query}", query)
            for query, _ in inputs
        ]
        tail = self._ids([after])[0]
        rows = []
        for head, body in zip(
            self._ids(queries), self._ids([space + text for _, text in inputs]), strict=True
        ):
            room = self.max_tokens - len(head) - len(tail)
            if room < 1:
                raise ModelError(f"the query alone fills the {self.max_tokens} tokens of max_length.")
            rows.append([*head, *body[:room], *tail])
        length = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        return {
            "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        }

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        # The whole vocabulary's logits only at the last position: (B, V), not (B, T, V).
        hidden = self.model.get_decoder()(
            input_ids=features["input_ids"], attention_mask=features["attention_mask"], use_cache=False
        ).last_hidden_state
        features["scores"] = self.score(hidden, features["attention_mask"])
        return features

    def score(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden (B, T, d), right-padded mask (B, T) -> (B, 1)."""
        place = (mask.sum(dim=1) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        last = hidden.gather(1, place)[:, 0]
        logits = self.model.get_output_embeddings()(last)
        margin: Tensor = logits[:, self.yes] - logits[:, self.no]
        return margin.unsqueeze(1)

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        self.model.save_pretrained(output_path, safe_serialization=safe_serialization)
        self.tokenizer.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> Self:
        folder = Path(model_name_or_path) / subfolder
        config = json.loads((folder / cls.config_file_name).read_text(encoding="utf-8"))
        return cls.from_pretrained(str(folder), **config)
