"""Score (query, text) pairs in batches: classifiers in one forward, causal models by yes against no."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmd.errors import ModelError
from qmd.llm.batches import pad_rows, plan_batches
from qmd.llm.catalog import QWEN3_RERANK, RERANK_INSTRUCTION
from qmd.llm.decoder import CausalModel
from qmd.llm.files import ModelFiles
from qmd.llm.protocols import Vectors
from qmd.llm.session import open_session
from qmd.llm.signature import check_role, find_form, read_signature
from qmd.llm.tokens import TextTokenizer

if TYPE_CHECKING:
    import onnxruntime

TOKEN_BUDGET = 4096
CACHED_PAIRS = 20_000


class PairReranker:
    """What both forms share: windows of long texts, batches, and a cache of scored pairs."""

    def __init__(self, files: ModelFiles, tokenizer: TextTokenizer, providers: Sequence[str]) -> None:
        self.card = files.card
        self.fingerprint = f"{files.card.name}:{files.sha256[:16]}"
        self.runs_on = f"{providers[0]} {files.variant.precision}"
        self._tokenizer = tokenizer
        self._scored: OrderedDict[bytes, float] = OrderedDict()

    def score(self, query: str, texts: Sequence[str]) -> Vectors:
        """(n,) float32 probabilities. A pair scored before is not run again.

        A text longer than the model reads is cut into windows; its best window counts.
        """
        keys = [hashlib.blake2b(f"{query}\0{text}".encode("utf-8", "replace")).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._scored}
        if missing:
            scores = self._score_new(query, list(missing.values()))
            self._scored.update(zip(missing, map(float, scores), strict=True))
        out = np.array([self._scored[key] for key in keys], dtype=np.float32)
        while len(self._scored) > CACHED_PAIRS:
            self._scored.popitem(last=False)
        return out

    def _score_new(self, query: str, texts: Sequence[str]) -> Vectors:
        head, bodies, tail, room = self._parts(query, texts)
        if room < 8:
            raise ModelError(
                f"the query alone fills the {self.card.max_tokens} tokens {self.card.name} reads."
            )
        rows: list[list[int]] = []
        owners: list[int] = []
        for owner, ids in enumerate(bodies):
            for start in range(0, max(1, len(ids)), room):
                rows.append([*ids[start : start + room], *tail])
                owners.append(owner)
        probabilities = np.empty(len(rows), dtype=np.float32)
        for batch in self._plan(head, rows):
            probabilities[batch] = self._forward(head, [rows[i] for i in batch])
        best = np.zeros(len(texts), dtype=np.float32)
        np.maximum.at(best, owners, probabilities)
        return best

    def _plan(self, head: list[int], rows: list[list[int]]) -> list[list[int]]:
        return list(plan_batches([len(head) + len(r) for r in rows], token_budget=TOKEN_BUDGET))

    def _parts(self, query: str, texts: Sequence[str]) -> tuple[list[int], list[list[int]], list[int], int]:
        """Ids before the text, of each text, after it, and how many of a text fit."""
        raise NotImplementedError

    def _forward(self, head: list[int], rows: list[list[int]]) -> Vectors:
        raise NotImplementedError


class ClassifierReranker(PairReranker):
    """(B, 1) logits -> sigmoid; (B, 2) logits -> softmax, second label."""

    def __init__(
        self, files: ModelFiles, session: onnxruntime.InferenceSession, tokenizer: TextTokenizer
    ) -> None:
        super().__init__(files, tokenizer, session.get_providers())
        self._session = session
        signature = read_signature(session)
        self._inputs = signature.inputs
        self._output = next(iter(signature.outputs))

    def _parts(self, query: str, texts: Sequence[str]) -> tuple[list[int], list[list[int]], list[int], int]:
        if self.card.template:
            head, tail = _template_ids(self._tokenizer, self.card.template, query)
        else:
            head, middle, tail = self._tokenizer.pair_frame(query)
            head = [*head, *middle]
        bodies = self._tokenizer.content_ids(texts)
        return head, bodies, tail, self.card.max_tokens - len(head) - len(tail)

    def _forward(self, head: list[int], rows: list[list[int]]) -> Vectors:
        ids, mask = pad_rows([[*head, *row] for row in rows], self._tokenizer.pad_id)
        feeds: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            types = mask.copy()
            types[:, : len(head)] = 0
            feeds["token_type_ids"] = types
        if "position_ids" in self._inputs:
            feeds["position_ids"] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
        logits = np.asarray(self._session.run([self._output], feeds)[0], dtype=np.float32)
        margin = logits[:, -1] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return _sigmoid(margin)


class CausalReranker(PairReranker):
    """P(yes) against P(no) at the last position. The prompt up to the text runs once and is shared by
    all rows."""

    def __init__(self, files: ModelFiles, model: CausalModel, tokenizer: TextTokenizer) -> None:
        super().__init__(files, tokenizer, model.session.get_providers())
        self._model = model
        yes, no = tokenizer.token_id("yes"), tokenizer.token_id("no")
        if yes is None or no is None:
            raise ModelError(f"{files.card.name} has no tokens 'yes' and 'no'; it cannot judge pairs.")
        self._labels = [no, yes]

    def _parts(self, query: str, texts: Sequence[str]) -> tuple[list[int], list[list[int]], list[int], int]:
        head, tail = _template_ids(self._tokenizer, self.card.template or QWEN3_RERANK, query)
        bodies = self._tokenizer.content_ids(texts)
        return head, bodies, tail, self.card.max_tokens - len(head) - len(tail)

    def _plan(self, head: list[int], rows: list[list[int]]) -> list[list[int]]:
        if not self._model.signature.has_cache:
            return super()._plan(head, rows)
        return list(plan_batches([len(r) for r in rows], token_budget=TOKEN_BUDGET, max_rows=32))

    def _forward(self, head: list[int], rows: list[list[int]]) -> Vectors:
        last = self._model.last_logits(head, rows, pad_id=self._tokenizer.pad_id)
        pair = last[:, self._labels]
        return _sigmoid(pair[:, 1] - pair[:, 0])


def open_onnx_reranker(
    files: ModelFiles, *, threads: int | None = None, providers: tuple[str, ...] = ("CPUExecutionProvider",)
) -> PairReranker:
    """Read the graph's shapes and pick the form; the catalog's word is only a guess."""
    tokenizer = TextTokenizer.from_file(files.tokenizer)
    session = open_session(files.graph, threads=threads, providers=providers)
    form = find_form(read_signature(session))
    check_role(files.card, form)
    if form == "causal":
        return CausalReranker(files, CausalModel(session), tokenizer)
    return ClassifierReranker(files, session, tokenizer)


def _template_ids(tokenizer: TextTokenizer, template: str, query: str) -> tuple[list[int], list[int]]:
    before, after = template.split("{document}")
    filled = before.replace("{instruction}", RERANK_INSTRUCTION).replace("{query}", query)
    head, tail = tokenizer.content_ids([filled, after])
    return head, tail


def _sigmoid(x: Vectors) -> Vectors:
    out: Vectors = (1.0 / (1.0 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    return out
