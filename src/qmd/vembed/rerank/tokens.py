"""An encoder that reads query and text together and compares their tokens: late interaction (ColBERT, Khattab & Zaharia
2020) over a joint reading (a cross-encoder).

A fresh score head over the first token knows nothing at the start; the tokens of a sentence encoder already lie near
those of like meaning. The score is a sum: for each token of the query, weighed, the best cosine among the text's;
the cosine of both means; and a linear reading of the first token, zero at the start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn
from torch.nn import functional

from qmd.errors import ModelError

HEAD_RATE = 20.0
"""The head's learning rate, in units of the model's."""
BEST, MEAN = 10.0, 3.0
"""Weights of the best cosines and of the cosine of the means before training; log-odds near zero in the middle."""
HEAD = "token_head.safetensors"
_FAR = 1e4


class TokenHead(nn.Module):
    """Hidden vectors (B, T, d), masks of query and text (B, T) -> log-odds (B, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh, self.first = nn.Linear(width, 1), nn.Linear(width, 1)
        for part in (self.weigh, self.first):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        nn.init.constant_(self.first.bias, -(BEST + MEAN) / 2)
        self.shares = nn.Parameter(torch.tensor([BEST, MEAN]))

    def forward(self, hidden: Tensor, query: Tensor, text: Tensor) -> Tensor:
        query, text = query.to(hidden.dtype), text.to(hidden.dtype)
        unit = functional.normalize(hidden, dim=-1)
        best = (unit @ unit.transpose(1, 2) + 4 * (text - 1)[:, None, :]).amax(2)
        weight = (self.weigh(hidden).squeeze(-1) + _FAR * (query - 1)).softmax(1)
        means = [
            functional.normalize((side[:, None, :] @ hidden).squeeze(1), dim=-1) for side in (query, text)
        ]
        whole = (means[0] * means[1]).sum(1)
        compared = self.shares[0] * (best * weight).sum(1) + self.shares[1] * whole
        score: Tensor = compared.unsqueeze(1) + self.first(hidden[:, 0])
        return score


class TokenPairs(InputModule):
    """(query, text) pairs -> `scores` (B, 1)."""

    config_keys: ClassVar[list[str]] = ["max_tokens"]
    config_file_name = "token_pairs_config.json"

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.head = TokenHead(int(model.config.hidden_size))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        max_tokens: int,
        dtype: str = "auto",
        attn_implementation: str | None = None,
    ) -> Self:
        """Load weights and tokenizer from a folder or the hub. Runs no code of the repository."""
        from transformers import AutoModel, AutoTokenizer

        chosen = {"attn_implementation": attn_implementation} if attn_implementation else {}
        model = AutoModel.from_pretrained(name_or_path, dtype=dtype, trust_remote_code=False, **chosen)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        if 1 not in tokenizer("a", "b", return_token_type_ids=True)["token_type_ids"]:
            raise ModelError(
                f"the tokenizer of {name_or_path} does not tell a query from a text: leave score_head out."
            )
        return cls(model, tokenizer, max_tokens=max_tokens)

    @property
    def max_seq_length(self) -> int:
        return self.max_tokens

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Token ids (B, T), their mask, and which are of the text (`token_type_ids`: 1, the model itself sees 0)."""
        found: dict[str, Tensor] = dict(
            self.tokenizer(
                [query for query, _ in inputs],
                [text for _, text in inputs],
                padding=True,
                truncation="longest_first",
                max_length=self.max_tokens,
                return_token_type_ids=True,
                return_tensors="pt",
            )
        )
        return found

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        mask, kind = features["attention_mask"], features["token_type_ids"]
        hidden = self.model(input_ids=features["input_ids"], attention_mask=mask).last_hidden_state
        features["scores"] = self.head(hidden, mask * (1 - kind), mask * kind)
        return features

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        self.model.save_pretrained(output_path, safe_serialization=safe_serialization)
        self.tokenizer.save_pretrained(output_path)
        self.save_config(output_path)
        head = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        save_file(head, Path(output_path) / HEAD)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> Self:
        folder = Path(model_name_or_path) / subfolder
        config = json.loads((folder / cls.config_file_name).read_text(encoding="utf-8"))
        pairs = cls.from_pretrained(str(folder), **config)
        pairs.head.load_state_dict(load_file(folder / HEAD))
        return pairs
