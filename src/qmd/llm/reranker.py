"""Score (query, text) pairs in batches: classifiers in one forward, causal models by yes against no."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qmd.errors import ModelError
from qmd.llm.batches import MOST_ROWS, pad_rows, plan_batches, token_budget
from qmd.llm.catalog import QWEN3_RERANK, RERANK_INSTRUCTION
from qmd.llm.chat import fill
from qmd.llm.decoder import CausalModel
from qmd.llm.feeds import feed_rows
from qmd.llm.files import ModelFiles
from qmd.llm.protocols import Vectors
from qmd.llm.session import open_session
from qmd.llm.signature import check_role, find_form, read_signature
from qmd.llm.tokens import TextTokenizer

if TYPE_CHECKING:
    import onnxruntime

    from qmd.llm.prepare import Prepared

PREPARE_AFTER_TOKENS = 100_000
"""Tokens scored after which rewriting a cross-encoder for this machine pays for itself."""
CACHED_PAIRS = 20_000
READING = 2
"""Raise when the same file gives a pair another score: scores are kept by the fingerprint."""
LOGITS_BYTES = 512 * 1024 * 1024


class PairReranker:
    """What both forms share: windows of long texts, batches, and a cache of scored pairs."""

    def __init__(
        self, files: ModelFiles, tokenizer: TextTokenizer, session: onnxruntime.InferenceSession
    ) -> None:
        self.card = files.card
        self.fingerprint = f"{files.card.name}:{files.sha256[:16]}:{READING}"
        self.runs_on = f"{session.get_providers()[0]} {files.variant.precision}"
        self._signature = read_signature(session)
        self._budget = token_budget(session.get_providers())
        self._tokenizer = tokenizer
        self._scored: OrderedDict[bytes, float] = OrderedDict()

    def score(self, query: str, texts: Sequence[str]) -> Vectors:
        """(n,) float32 probabilities. A pair scored before is not run again.

        A text longer than the model reads is cut into windows; its best window counts.
        """
        keys = [_pair_key(query, text) for text in texts]
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
        return self._batches([len(head) + len(row) for row in rows])

    def _batches(self, lengths: Sequence[int], most_tokens: int | None = None) -> list[list[int]]:
        budget = min(self._budget, most_tokens or self._budget)
        return list(
            plan_batches(lengths, token_budget=budget, max_rows=self._signature.most_rows or MOST_ROWS)
        )

    def _probabilities(self, margins: Vectors) -> Vectors:
        if not np.isfinite(margins).all():
            raise ModelError(
                f"{self.card.name} gives scores that are no numbers ({self.runs_on}). Choose another precision."
            )
        return _sigmoid(margins)

    def _parts(self, query: str, texts: Sequence[str]) -> tuple[list[int], list[list[int]], list[int], int]:
        """Ids before the text, of each text, after it, and how many of a text fit."""
        raise NotImplementedError

    def _forward(self, head: list[int], rows: list[list[int]]) -> Vectors:
        raise NotImplementedError


class ClassifierReranker(PairReranker):
    """(B, 1) logits -> sigmoid; (B, 2) logits -> softmax, second label."""

    def __init__(
        self,
        files: ModelFiles,
        session: onnxruntime.InferenceSession,
        tokenizer: TextTokenizer,
        *,
        threads: int | None = None,
        prepare: bool = False,
    ) -> None:
        super().__init__(files, tokenizer, session)
        self.session = session
        self.threads = threads
        self._files = files
        self._prepare = prepare
        self._tokens_seen = 0

    def prepare(self) -> Prepared | None:
        """Rewrite the model for this machine now (seconds). None when its architecture has no faster form."""
        from qmd.llm.prepare_reranker import prepare_reranker

        self._prepare = False
        return prepare_reranker(self._files, self)

    def use(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self._signature = read_signature(session)

    def adopt(self, session: onnxruntime.InferenceSession, form: str) -> None:
        """Go on with a prepared graph."""
        self.use(session)
        self._prepare = False
        self.runs_on = f"{session.get_providers()[0]} prepared {form}"

    def frame(self, query: str, text: str) -> tuple[list[int], list[int]]:
        """Ids and token types of one pair, cut to what the model reads."""
        head, bodies, tail, room = self._parts(query, [text])
        rest = [*bodies[0][: max(1, room)], *tail]
        return [*head, *rest], [0] * len(head) + [1] * len(rest)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> Vectors:
        """Probabilities of pairs with queries of their own, (n,); each pair cut to what the model reads."""
        framed = [self.frame(query, text) for query, text in pairs]
        out = np.empty(len(pairs), dtype=np.float32)
        for batch in self._batches([len(ids) for ids, _ in framed]):
            out[batch] = self._run([framed[i][0] for i in batch], [framed[i][1] for i in batch])
        return out

    def _parts(self, query: str, texts: Sequence[str]) -> tuple[list[int], list[list[int]], list[int], int]:
        if self.card.template:
            head, bodies, tail = _template_ids(self._tokenizer, self.card.template, query, texts)
        else:
            head, middle, tail = self._tokenizer.pair_frame(query)
            head = [*head, *middle]
            bodies = self._tokenizer.content_ids(texts)
        return head, bodies, tail, self.card.max_tokens - len(head) - len(tail)

    def _forward(self, head: list[int], rows: list[list[int]]) -> Vectors:
        self._tokens_seen += sum(len(head) + len(row) for row in rows)
        if self._prepare and self._tokens_seen > PREPARE_AFTER_TOKENS:
            self.prepare()
        return self._run([[*head, *row] for row in rows], [[0] * len(head) + [1] * len(row) for row in rows])

    def _run(self, rows: Sequence[Sequence[int]], kinds: Sequence[Sequence[int]]) -> Vectors:
        # a decoder is read at its last token: padded on the left, that is the last column for every export
        left = bool(self.card.template)
        ids, mask = pad_rows(rows, self._tokenizer.pad_id, left=left)
        feeds = feed_rows(self._signature, ids, mask, pad_rows(kinds, 0, left=left)[0])
        output = next(iter(self._signature.outputs))
        logits = np.asarray(self.session.run([output], feeds)[0], dtype=np.float32)
        if logits.shape[1] > 2:
            raise ModelError(
                f"{self.card.name} sorts pairs into {logits.shape[1]} kinds; a reranker has one score, or no and yes."
            )
        return self._probabilities(logits[:, -1] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0])


class CausalReranker(PairReranker):
    """P(yes) against P(no) at the last position. The prompt up to the text runs once and is shared by
    all rows."""

    def __init__(self, files: ModelFiles, model: CausalModel, tokenizer: TextTokenizer) -> None:
        super().__init__(files, tokenizer, model.session)
        self._model = model
        yes, no = tokenizer.token_id("yes"), tokenizer.token_id("no")
        if yes is None or no is None:
            raise ModelError(f"{files.card.name} has no tokens 'yes' and 'no'; it cannot judge pairs.")
        self._labels = [no, yes]

    def _parts(self, query: str, texts: Sequence[str]) -> tuple[list[int], list[list[int]], list[int], int]:
        head, bodies, tail = _template_ids(self._tokenizer, self.card.template or QWEN3_RERANK, query, texts)
        return head, bodies, tail, self.card.max_tokens - len(head) - len(tail)

    def _plan(self, head: list[int], rows: list[list[int]]) -> list[list[int]]:
        """Many exports give the logits of every token of a vocabulary of 150,000: their size bounds a batch."""
        most = None
        width = self._signature.outputs[self._model.logits][-1]
        if self._model.must_give_every_logit and isinstance(width, int):
            most = LOGITS_BYTES // (4 * width)
        shared = 0 if self._model.shares_prefix else len(head)
        return self._batches([shared + len(row) for row in rows], most)

    def _forward(self, head: list[int], rows: list[list[int]]) -> Vectors:
        last = self._model.last_logits(head, rows, pad_id=self._tokenizer.pad_id)
        pair = last[:, self._labels]
        return self._probabilities(pair[:, 1] - pair[:, 0])


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
    if providers[0] != "CPUExecutionProvider":
        return ClassifierReranker(files, session, tokenizer, threads=threads)
    from qmd.llm.prepare import load_prepared

    ready = load_prepared(files)
    reranker = ClassifierReranker(files, session, tokenizer, threads=threads, prepare=ready is None)
    if ready is not None and ready[0]:
        reranker.adopt(open_session(ready[0], threads=threads), ready[1].products)
    return reranker


def _template_ids(
    tokenizer: TextTokenizer, template: str, query: str, texts: Sequence[str]
) -> tuple[list[int], list[list[int]], list[int]]:
    """Ids up to the text, of each text, and after it, as of the filled template read as one: a space before the text is
    read with its first word."""
    before, after = template.replace("{instruction}", RERANK_INSTRUCTION).split("{document}")
    stem = before.rstrip(" ")
    space = before[len(stem) :]
    head = tokenizer.prompt_ids(fill(stem, "{query}", query))
    bodies = tokenizer.said_ids([space + text for text in texts])
    return head, bodies, tokenizer.content_ids([after])[0]


def _pair_key(query: str, text: str) -> bytes:
    return hashlib.blake2b(f"{len(query)} {query}{text}".encode("utf-8", "surrogatepass")).digest()


def _sigmoid(x: Vectors) -> Vectors:
    out: Vectors = (1.0 / (1.0 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    return out
