"""The inputs of one forward pass over whole rows, whatever the graph asks for beside ids and mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmd.errors import ModelError
from qmd.llm.batches import Ids
from qmd.llm.signature import Signature

Feeds = dict[str, NDArray[Any]]
CACHE_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def feed_rows(signature: Signature, ids: Ids, mask: Ids, kinds: Ids | None = None) -> Feeds:
    """ids, mask (B, T), padded on either side; kinds (B, T): token types, zeros where not given.

    Positions count real tokens from 0. A decoder that keeps keys and values begins with none.
    """
    feeds: Feeds = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in signature.inputs:
        feeds["token_type_ids"] = np.zeros_like(ids) if kinds is None else kinds
    if "position_ids" in signature.inputs:
        feeds["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
    for name, shape in signature.inputs.items():
        if name.startswith("past_key_values."):
            fixed = [size if isinstance(size, int) else 1 for size in shape]
            feeds[name] = np.zeros((len(ids), fixed[1], 0, fixed[3]), CACHE_TYPES[signature.types[name]])
    asked = {name: signature.types[name] for name in feeds if name in signature.inputs}
    return {
        name: feeds[name].astype(np.int32) if type == "tensor(int32)" else feeds[name]
        for name, type in asked.items()
    }


def check_inputs(signature: Signature) -> None:
    """Raises ModelError where the graph asks for something that `feed_rows` does not have."""
    known = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
    other = [
        name for name in signature.inputs if name not in known and not name.startswith("past_key_values.")
    ]
    if other or "input_ids" not in signature.inputs:
        raise ModelError(
            f"the graph takes {', '.join(signature.inputs)}; what can be given is input_ids, and attention_mask, "
            "token_type_ids and position_ids where it wants them. Export the model with these names."
        )
