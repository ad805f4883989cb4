"""Rerank found documents and expand queries with language models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qmd.errors import UsageError
from qmd.llm import open_generator, open_reranker
from qmd.llm.protocols import Generator, Reranker

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
    "answer).\nQuery: {query}"
)


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
        if self._expansion is None:
            self._expansion = open_generator(self.expansion_model)
        grammar = self._grammar
        if grammar is not None and getattr(self._expansion, "grammar_form", "lark") == "gbnf":
            grammar = EXPANSION_GBNF
        pieces = self._expansion.generate(
            EXPANSION_PROMPT.format(query=query), max_new_tokens=160, grammar=grammar
        )
        found = [query]
        for line in "".join(pieces).splitlines():
            text = re.sub(r"^\s*(?:lex|vec|hyde|[-*\d.)]+)\s*:?\s+", "", line).strip()
            if text and text.casefold() not in {f.casefold() for f in found}:
                found.append(text)
        return found
