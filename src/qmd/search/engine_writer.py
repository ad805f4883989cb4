"""Answers written by the model engine: a Generator behind the Writer that `qmd.search.answer` asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qmd.draft.engine import attach_drafter
from qmd.draft.stats import Stats
from qmd.llm import open_generator
from qmd.llm.protocols import ChatGenerator
from qmd.llm.repetition import repeats_from

PACKAGED = "smollm2-135m"


class EngineWriter:
    """A model of the engine: ONNX Runtime or llama.cpp, no torch. What one prompt shares with the last from its start
    is not read again, so sources put first are read once. On ONNX Runtime the answer is drafted by copying from the
    sources and from earlier answers, which changes its speed and not its words."""

    def __init__(self, name: str = PACKAGED, *, generator: ChatGenerator | None = None) -> None:
        self.name = name
        self.generator = generator or open_generator(name)
        self.drafter = attach_drafter(self.generator)
        self.cut = False
        """Whether the last answer ended because it was as long as allowed."""

    @property
    def languages(self) -> tuple[str, ...]:
        """What the model writes, by its card; empty for any."""
        return self.generator.card.languages

    @property
    def stats(self) -> Stats | None:
        """What drafting did for the last answer; None where the generator does not draft."""
        return None if self.drafter is None else self.drafter.stats

    def write(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        keep: str = "",
        max_new_tokens: int = 160,
        stream: Callable[[str], None] | None = None,
    ) -> str:
        """Answer the conversation, up to where the model begins to repeat itself.

        Raises UsageError for a prompt that is too long, ModelError.
        """
        text, pieces, self.cut = "", 0, False
        for piece in self.generator.generate_chat(messages, max_new_tokens=max_new_tokens):
            end = repeats_from(text + piece)
            if end is not None:
                return text[:end]
            text, pieces = text + piece, pieces + 1
            if stream is not None:
                stream(piece)
        self.cut = (pieces if self.stats is None else self.stats.new_tokens) >= max_new_tokens
        return text
