"""The inputs of one forward pass over whole rows, whatever the graph asks for beside ids and mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    return feeds
