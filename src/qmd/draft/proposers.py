"""Where proposals come from: one small protocol, and the suffix index over known text. The neural draft is `neural`.

Needs no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qmd.draft.sampling import Sampling
    from qmd.draft.target import Cache

Origin = Literal["passage", "answer", "self", "draft", "other"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens that may come next. `confidence[i]`: chance that token i stands if all before it do.

    `q`: (g, vocab) the tokens were drawn from; None when they were not drawn (each is certain).
    """

    tokens: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()
    q: Tensor | None = None
    origin: Origin = "other"
    match: int = 0


NOTHING = Proposal()


@dataclass(frozen=True, slots=True)
class Situation:
    """What a proposer may look at: the tokens so far, the target's cache (without the last token), the sampling."""

    tokens: Sequence[int]
    cache: Cache
    sampling: Sampling
    generator: torch.Generator | None = None
    cost: object = field(default=None)


class Proposer(Protocol):
    """Offers up to `limit` tokens. Must decide on what was seen before, never on a random number drawn for a token
    it then drops: that would change the distribution."""

    name: str
    token_cost: float
    """Time to draft one token, in steps of the target."""

    def start(self, prompt: Sequence[int], passages: Sequence[Sequence[int]] = ()) -> None: ...

    def propose(self, situation: Situation, limit: int) -> Proposal: ...

    def observe(self, proposal: Proposal, verified: int, accepted: int) -> None:
        """`verified` of the offered tokens were checked, `accepted` stood."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens were written."""
        ...


class SuffixProposer:
    """Copies what followed the longest earlier occurrence of the last tokens: in passages, earlier answers, this text.

    Confidence is learnt: the share of copied tokens that stood, by length of the match and by origin, starting from
    what quoting answers showed. Costs some microseconds a step.
    """

    name = "suffix"
    token_cost = 0.0

    def __init__(self, *, longest: int = 12, candidates: int = 24, memory_tokens: int = 65536) -> None:
        self.longest = longest
        self.candidates = candidates
        self.memory_tokens = memory_tokens
        self._answers: list[tuple[int, ...]] = []
        # (stood, tried) by match length: a prior of weight 4, then what is seen
        self._seen = {n: [4.0 * _prior(n), 4.0] for n in range(1, longest + 1)}
        self._text: list[int] = []
        self._where: dict[tuple[int, int], list[int]] = {}
        self._single: dict[int, list[int]] = {}
        self._origins: list[tuple[int, Origin]] = []

    def remember(self, answer: Sequence[int]) -> None:
        """Keep an answer for later questions; the oldest go when there are more than `memory_tokens`."""
        self._answers.append(tuple(answer))
        while sum(map(len, self._answers)) > self.memory_tokens:
            del self._answers[0]

    def start(self, prompt: Sequence[int], passages: Sequence[Sequence[int]] = ()) -> None:
        self._text, self._origins = [], []
        self._where, self._single = defaultdict(list), defaultdict(list)
        for answer in self._answers:
            self._append(answer, "answer")
            self._break()
        for passage in passages:
            self._append(passage, "passage")
            self._break()
        self._append(prompt, "passage")
        self._origins.append((len(self._text), "self"))

    def _break(self) -> None:
        self._text.append(-1)  # no match runs across two texts

    def _append(self, tokens: Sequence[int], origin: Origin) -> None:
        self._origins.append((len(self._text), origin))
        self._extend(tokens)

    def _extend(self, tokens: Sequence[int]) -> None:
        text = self._text
        for token in tokens:
            at = len(text)
            if at:
                # position of what follows; filled one token late, so the last token never finds itself
                self._single[text[-1]].append(at)
                if at > 1:
                    self._where[text[-2], text[-1]].append(at)
            text.append(token)

    def extend(self, tokens: Sequence[int]) -> None:
        self._extend(tokens)

    def propose(self, situation: Situation, limit: int) -> Proposal:
        return self.copy(limit)

    def copy(self, limit: int) -> Proposal:
        """Up to `limit` tokens, as they followed before."""
        text = self._text
        if limit < 1 or len(text) < 2:
            return NOTHING
        places = self._where.get((text[-2], text[-1])) or self._single.get(text[-1])
        if not places:
            return NOTHING
        best, length = -1, 0
        for place in reversed(places[-self.candidates :]):
            n = 1
            while n < self.longest and place - 1 - n >= 0 and text[place - 1 - n] == text[-1 - n]:
                n += 1
            if n > length:
                best, length = place, n
                if n == self.longest:
                    break
        copied: list[int] = []
        for token in text[best : best + limit]:
            if token < 0:
                break
            copied.append(token)
        # a copy that reaches the end of the text goes round: the text repeats with this period
        if copied and best + len(copied) == len(text):
            copied = (copied * limit)[:limit]
        if not copied:
            return NOTHING
        chances = []
        for i in range(len(copied)):
            stood, tried = self._seen[min(length + i, self.longest)]
            chances.append(stood / tried)
        return Proposal(tuple(copied), tuple(chances), None, self._origin(best), length)

    def _origin(self, place: int) -> Origin:
        found: Origin = "other"
        for start, origin in self._origins:
            if start > place:
                break
            found = origin
        return found

    def observe(self, proposal: Proposal, verified: int, accepted: int) -> None:
        for i in range(min(verified, accepted + 1)):
            seen = self._seen[min(proposal.match + i, self.longest)]
            seen[0] = 0.97 * seen[0] + (i < accepted)
            seen[1] = 0.97 * seen[1] + 1


def _prior(match: int) -> float:
    return (0.15, 0.35, 0.5, 0.6, 0.68, 0.74, 0.78, 0.82, 0.85, 0.87, 0.88, 0.9)[min(match, 12) - 1]
