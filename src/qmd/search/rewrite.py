"""Let a language model write other wordings of a question, keep those that do not drift, remember them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, cast

from qmd.search.rerank import EXPANSION_PROMPT, LLMReranker
from qmd.search.snippet import fold
from qmd.store.cjk import has_cjk, index_text

if TYPE_CHECKING:
    from qmd.llm.protocols import Embedder, Generator
    from qmd.search.request import Door
    from qmd.store.cache import AnswerCache

Line = tuple[Literal["lex", "vec", "hyde"], str]
NEAR = 0.45
"""Cosine with the question from which a line without a common word is no drift."""
MOST_LINES = 4
_STEM = 5
"""Letters that two words must share at their beginning to count as one."""


class Rewriter:
    """Lines of one expansion model."""

    def __init__(self, door: Door[Generator], cache: AnswerCache | None = None) -> None:
        self._door = door
        self._cache = cache
        self._kind = f"expand:{door.name}:{sha256(EXPANSION_PROMPT.encode()).hexdigest()[:8]}"

    def recall(self, question: str, intent: str | None = None) -> list[Line] | None:
        """The lines written for this question before."""
        if self._cache is None:
            return None
        said = self._cache.text(self._kind, f"{question}\0{intent or ''}")
        return None if said is None else [cast("Line", tuple(line)) for line in json.loads(said)]

    def write(self, question: str, intent: str | None = None) -> list[Line]:
        """At most MOST_LINES new lines, and remember them. Raises ModelError, NotFound."""
        model = LLMReranker(expansion_model=self._door.name, expansion=self._door.open())
        lines = model.expand_lines(question, intent)[:MOST_LINES]
        if self._cache is not None:
            self._cache.put_text(
                self._kind,
                f"{question}\0{intent or ''}",
                json.dumps(lines, ensure_ascii=False),
            )
        return lines

    def check(
        self, question: str, lines: Sequence[Line], embedder: Embedder | None
    ) -> tuple[list[Line], list[str]]:
        """(lines that keep to the question, texts of those that drift away from it).

        A line keeps to it if it shares a word of three letters or more (CJK: a pair of characters), or is near to it
        in meaning.
        """
        asked = _pieces(question)
        meant = None
        kept: list[Line] = []
        dropped: list[str] = []
        for kind, text in lines:
            if text.casefold() == question.casefold():
                continue
            near = bool(asked & _pieces(text))
            if not near and embedder is not None:
                meant = embedder.embed_query(question) if meant is None else meant
                near = float(meant @ embedder.embed_query(text)) >= NEAR
            if near:
                kept.append((kind, text))
            else:
                dropped.append(text)
        return kept, dropped


_COMMON = frozenset(
    {"the", "and", "for", "are", "was", "with", "how", "what", "why", "who", "when", "where", "does", "this"}
    | {"that", "from", "can", "you"}
)


def _pieces(text: str) -> set[str]:
    pieces: set[str] = set()
    for word in "".join(c if c.isalnum() else " " for c in text).split():
        if has_cjk(word):
            pieces.update(token for token in index_text(word).split() if len(token) > 1)
        elif len(word) > 2 and (folded := fold(word)) not in _COMMON:
            pieces.add(folded[:_STEM])
    return pieces
