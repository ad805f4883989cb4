"""What a generation did: steps, offered and accepted tokens by where they came from, time by part. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

PARTS = ("prefill", "propose", "verify", "choose")


@dataclass(slots=True)
class Stats:
    """What one generation did. `tokens_per_step` counts forwards of the target after the prompt."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    proposed: int = 0
    accepted: int = 0
    accepted_by_origin: dict[str, int] = field(default_factory=dict)
    proposed_by: dict[str, int] = field(default_factory=dict)
    accepted_by: dict[str, int] = field(default_factory=dict)
    gain_by: dict[str, float] = field(default_factory=dict)
    switched_off: tuple[str, ...] = ()
    time_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    first_token_s: float = 0.0

    @property
    def tokens_per_step(self) -> float:
        return (self.new_tokens - 1) / self.steps if self.steps else 0.0

    @property
    def acceptance(self) -> float:
        return self.accepted / self.proposed if self.proposed else 0.0
