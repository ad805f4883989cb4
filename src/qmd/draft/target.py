"""What the decoder asks of a target: one forward over new tokens, and a cache that can be cut back exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Cache(Protocol):
    """The keys and values of the tokens seen so far."""

    @property
    def length(self) -> int:
        """Tokens held."""
        ...

    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens. Raises ValueError if it holds fewer."""
        ...


@runtime_checkable
class Target(Protocol):
    """A causal model whose distribution is to be kept."""

    vocab_size: int
    max_context: int
    fingerprint: str
    """Changes whenever keys and values would: weights, precision, layout."""

    def new_cache(self) -> Cache: ...

    def forward(self, tokens: Sequence[int], cache: Cache, *, last_only: bool = False) -> Tensor:
        """Append `tokens` to `cache`; logits (T, vocab) float32, or (1, vocab) of the last one.

        Row i is the distribution of the token that follows tokens[i].
        """
        ...
