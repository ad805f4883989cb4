"""Rerank found documents and expand queries with language models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from qmd.errors import UsageError
from qmd.llm import open_generator, open_reranker

if TYPE_CHECKING:
    from qmd.llm.protocols import Generator, Reranker
    from qmd.store.cache import AnswerCache

DEFAULT_RERANKER = "zhiqing/Qwen3-Reranker-0.6B-seq-cls-ONNX"
DEFAULT_EXPANSION = "onnx-community/Qwen3-0.6B-ONNX"
EXPANSION_GRAMMAR = r"""
start: line~1..4
line: ("lex: " | "vec: " | "hyde: ") /[^\n]{2,200}/ "\n"
"""
EXPANSION_GBNF = r"""
root ::= line (line (line line?)?)?
line ::= ("lex: " | "vec: " | "hyde: ") [^\n]{2,200} "\n"
"""
EXPANSION_PROMPT = (
    "Rewrite the search query in other words that documents might use. Write up to four lines, each starting "
    "with 'lex: ' (key words), 'vec: ' (a full question) or 'hyde: ' (a sentence from the "
    "answer).\n"
    "Query: how do vaccines work\nlex: immune response antibodies immunisation\n"
    "vec: how does a vaccine train the immune system\n"
    "hyde: A vaccine shows the body a harmless part of a germ, so that it makes antibodies against it.\n"
    "Query: why is the sky blue\nlex: Rayleigh scattering sunlight atmosphere\n"
    "vec: why does the air scatter blue light more than red\n"
    "hyde: Air scatters short waves of light more than long ones, so blue comes from all sides.\n"
    "Query: {query}"
)
"""With two examples: a model of 135 million parameters repeats the question without them. What it copies from them
drifts from the question and is dropped."""
_LINE = re.compile(r"\s*(?:(?P<kind>lex|vec|hyde)\s*:\s*|[-*\d.)]+\s+)?(?P<text>\S.*?)\s*\Z", re.IGNORECASE)


class LLMReranker:
    """Models load at first use. Give `reranker` or `expansion` to use models that are loaded already."""

    def __init__(
        self,
        model: str = DEFAULT_RERANKER,
        expansion_model: str = DEFAULT_EXPANSION,
        *,
        reranker: Reranker | None = None,
        expansion: Generator | None = None,
        grammar: bool = True,
    ) -> None:
        self.model = model
        self.expansion_model = expansion_model
        self._reranker = reranker
        self._expansion = expansion
        self._grammar = EXPANSION_GRAMMAR if grammar else None

    def rerank(
        self, query: str, documents: Sequence[Mapping[str, Any]], top_k: int = 10
    ) -> list[dict[str, Any]]:
        """Score documents (dicts with `content` and optionally `title`) against the query.

        Returns copies with `score` (a probability), best first, at most `top_k`; equal scores keep their
        order.
        Raises UsageError when a document has no `content`.
        """
        texts = []
        for number, document in enumerate(documents):
            if not isinstance(document.get("content"), str):
                raise UsageError(f"document {number} has no text under 'content'.")
            title = document.get("title")
            texts.append(f"{title}\n{document['content']}" if title else document["content"])
        if not texts:
            return []
        if self._reranker is None:
            self._reranker = open_reranker(self.model)
        scores = self._reranker.score(query, texts)
        order = sorted(range(len(texts)), key=lambda i: -scores[i])[: max(0, top_k)]
        return [{**documents[i], "score": float(scores[i])} for i in order]

    def expand_query(self, query: str) -> list[str]:
        """The query itself, then other wordings of it, without repeats."""
        return list(dict.fromkeys([query, *(text for _, text in self.expand_lines(query))]))

    def expand_lines(
        self, query: str, intent: str | None = None
    ) -> list[tuple[Literal["lex", "vec", "hyde"], str]]:
        """(kind, text) of each line that the model writes under the grammar, without the query and repeats. A line
        without a kind is a question (vec)."""
        if self._expansion is None:
            self._expansion = open_generator(self.expansion_model)
        about = f"{query}\nThe question is about: {intent}" if intent else query
        grammar = self._grammar
        if grammar is not None and getattr(self._expansion, "grammar_form", "lark") == "gbnf":
            grammar = EXPANSION_GBNF
        pieces = self._expansion.generate(
            EXPANSION_PROMPT.format(query=about), max_new_tokens=160, grammar=grammar
        )
        found: list[tuple[Literal["lex", "vec", "hyde"], str]] = []
        seen = {query.casefold()}
        for line in "".join(pieces).splitlines():
            match = _LINE.match(line)
            if match is None or match["text"].casefold() in seen:
                continue
            seen.add(match["text"].casefold())
            kind = (match["kind"] or "vec").lower()
            found.append((cast("Literal['lex', 'vec', 'hyde']", kind), match["text"]))
        return found


def score_cached(
    reranker: Reranker, question: str, texts: Sequence[str], cache: AnswerCache | None
) -> tuple[list[float], int]:
    """(a probability for each text, how many were scored now), in one batched call for all that are not known yet."""
    known: list[float | None] = [None] * len(texts)
    if cache is not None:
        known = cache.scores(reranker.fingerprint, question, texts)
    missing = [number for number, score in enumerate(known) if score is None]
    if missing:
        new = [float(score) for score in reranker.score(question, [texts[i] for i in missing])]
        if cache is not None:
            cache.put_scores(reranker.fingerprint, question, [texts[i] for i in missing], new)
        for number, score in zip(missing, new, strict=True):
            known[number] = score
    return [float(score) for score in known if score is not None], len(missing)
