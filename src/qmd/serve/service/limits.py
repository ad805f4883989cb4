"""What the service allows, and what it says when that is exceeded."""

from __future__ import annotations

from dataclasses import dataclass

from qmd.errors import QmdError


class Busy(QmdError):
    """The queue is full. `retry_after_s` is a fair guess of when it will not be."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests are waiting already. Try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class TooLate(QmdError):
    """The answer was not ready before the deadline."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(
            f"no answer within {deadline_s:g} s. Ask for less, or start `qmd serve` with a longer --deadline."
        )


class Abandoned(QmdError):
    """Whoever asked has gone; nobody reads this."""

    def __init__(self) -> None:
        super().__init__("the client left before the answer was ready.")


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds.

    workers: searches that run at once; waiting: requests that may wait for them. batch_tokens: texts of concurrent
    requests that one call of a model takes together; batch_wait_s: how long the first of them waits for others, when
    others are on their way. idle_s: a model that nobody used for so long is let go.
    """

    workers: int = 4
    waiting: int = 128
    deadline_s: float = 30.0
    ask_deadline_s: float = 300.0
    ask_waiting: int = 8
    batch_tokens: int = 16_384
    background_tokens: int = 2_048
    batch_wait_s: float = 0.002
    idle_s: float = 900.0
    body_bytes: int = 1 << 20
    body_wait_s: float = 10.0
    query_bytes: int = 8192
    most_hits: int = 1000
    most_texts: int = 2048
