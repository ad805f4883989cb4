"""Embedding on ONNX Runtime: tokens -> windows -> batches -> pooled unit vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qmd.errors import ModelError
from qmd.llm.batches import (
    MOST_ROWS,
    SMALL_TOKEN_BUDGET,
    pad_rows,
    plan_batches,
    run_batches,
    token_budget,
)
from qmd.llm.feeds import check_inputs, feed_rows
from qmd.llm.files import ModelFiles
from qmd.llm.protocols import Vectors
from qmd.llm.session import default_threads, open_session
from qmd.llm.signature import Signature, check_role, find_form, read_signature
from qmd.llm.tokens import TextTokenizer
from qmd.types import ModelCard

if TYPE_CHECKING:
    import onnxruntime

    from qmd.llm.prepare import Prepared

SLAB_CHARACTERS = 1 << 20
"""Texts are tokenised and embedded in slabs of about this many characters: bounds memory for any number of
texts."""
SMALL_DIM = 384
"""Width up to which one processor does a short text in milliseconds: each batch then has a processor to itself, several
run at once, and no operator waits for another thread (1.3 times the tokens a second of one batch on all of them)."""
POOLED = "sentence_embedding"
PREPARE_AFTER_TOKENS = 100_000
"""Documents' tokens after which preparing the model pays for itself."""


def space_fingerprint(card: ModelCard, dim: int, sha256: str) -> str:
    """Name the vector space: equal for every prepared form of one source file, different for anything
    else."""
    identity = {
        "format": 1,
        "source": sha256,
        "pooling": card.pooling,
        "query_prefix": card.query_prefix,
        "doc_prefix": card.doc_prefix,
        "max_tokens": card.max_tokens,
        "dim": dim,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{card.name}:{dim}:{digest[:16]}"


class OnnxEmbedder:
    """An encoder whose graph gives token vectors (B, T, d) or pooled vectors (B, d)."""

    def __init__(
        self,
        files: ModelFiles,
        load: Callable[[], onnxruntime.InferenceSession],
        tokenizer: TextTokenizer,
        *,
        threads: int | None = None,
        prepare: bool = False,
    ) -> None:
        self.card = files.card
        self.dim = files.card.dim
        self.max_tokens = files.card.max_tokens
        self.fingerprint = space_fingerprint(files.card, self.dim, files.sha256)
        self.threads = threads
        self.workers = (threads or default_threads()) if self.dim <= SMALL_DIM else 1
        self._files = files
        self._tokenizer = tokenizer
        self._prepare = prepare
        self._tokens_seen = 0
        self._form: str = files.variant.precision
        self._load = load
        self._loaded: tuple[onnxruntime.InferenceSession, Signature, str] | None = None

    def _session(self) -> tuple[onnxruntime.InferenceSession, Signature, str]:
        """The session with its signature and the output that is read, loaded by the first text: a run that finds
        nothing to embed, or leaves the vectors out, does not pay for the model."""
        if self._loaded is None:
            session = self._load()
            signature = read_signature(session)
            outputs = list(signature.outputs)
            # sentence-transformers' exports pool (and project) in the graph, beside the token vectors
            output = POOLED if POOLED in outputs else outputs[0]
            width = signature.outputs[output][-1]
            if self.dim != (width if isinstance(width, int) else self.dim or -1):
                raise ModelError(
                    f"the graph of {self.card.name} gives vectors of {width}, its JSON files say {self.dim}. Write the "
                    'right "hidden_size" into its config.json, or `card.json`.'
                )
            self._loaded = (session, signature, output)
        return self._loaded

    @property
    def session_threads(self) -> int | None:
        """Threads of one forward pass; `workers` of them run at once. None: all processors."""
        return 1 if self.workers > 1 else self.threads

    @property
    def runs_on(self) -> str:
        """Provider, and the precision of the file; prepared graphs say how their products are computed."""
        return f"{self._session()[0].get_providers()[0]} {self._form}"

    @classmethod
    def open(
        cls,
        files: ModelFiles,
        *,
        threads: int | None = None,
        prepare: bool = True,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> OnnxEmbedder:
        """Use the prepared graph if this machine has one; otherwise the source, until much is to be
        embedded."""
        from qmd.llm.prepare import load_prepared

        tokenizer = TextTokenizer.from_file(files.tokenizer)
        prepare = prepare and providers[0] == "CPUExecutionProvider"
        ready = load_prepared(files) if prepare else None
        graph = ready[0] if ready is not None and ready[0] else files.graph

        def load() -> onnxruntime.InferenceSession:
            alone = 1 if embedder.workers > 1 and providers[0] == "CPUExecutionProvider" else threads
            session = open_session(graph, threads=alone, providers=providers)
            signature = read_signature(session)
            check_role(files.card, find_form(signature))
            check_inputs(signature)
            return session

        embedder = cls(files, load, tokenizer, threads=threads, prepare=prepare and ready is None)
        if ready is not None and ready[0]:
            embedder._form = f"prepared {ready[1].products}"
        if not any(variant.sha256 for variant in files.card.variants):
            embedder._session()  # a model nobody has checked shows its form at the door
        return embedder

    def adopt(self, session: onnxruntime.InferenceSession | None, form: str = "") -> None:
        """Go on with a prepared graph; None keeps the one in use."""
        self._prepare = False
        if session is not None:
            self._form = f"prepared {form}".strip()
            self._load, self._loaded = (lambda: session), None

    def prepare(self) -> Prepared | None:
        """Prepare the model for this machine now (a few seconds). None when its architecture has no faster
        form."""
        from qmd.llm.prepare import prepare_model

        self._prepare = False
        return prepare_model(self._files, self, self._tokenizer)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """texts: n strings. Returns (n, d) float32, rows L2-normalised; n = 0 gives (0, d)."""
        if isinstance(texts, str):
            raise TypeError("embed_documents takes a sequence of texts, not one string.")
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        done = 0
        for slab in _slabs(texts):
            prefixed = [self.card.doc_prefix + text for text in slab] if self.card.doc_prefix else slab
            out[done : done + len(slab)] = self._embed(prefixed)
            done += len(slab)
        return out

    def embed_query(self, text: str) -> Vectors:
        """Returns (d,) float32, L2-normalised."""
        vector: Vectors = self._embed([self.card.query_prefix + text])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._tokenizer.counts(texts)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        rows: list[list[int]] = []
        owners: list[int] = []
        for owner, ids in enumerate(self._tokenizer.content_ids(texts)):
            for window in self._tokenizer.windows(ids, self.max_tokens):
                rows.append(window)
                owners.append(owner)
        lengths = [len(row) for row in rows]
        self._tokens_seen += sum(lengths)
        if self._prepare and self._tokens_seen > PREPARE_AFTER_TOKENS:
            self.prepare()
        pooled = np.empty((len(rows), self.dim), dtype=np.float32)
        session, signature, _ = self._session()
        budget, workers = token_budget(session.get_providers()), 1
        if self.workers > 1 and session.get_providers()[0] == "CPUExecutionProvider":
            budget, workers = SMALL_TOKEN_BUDGET, self.workers

        def forward(batch: list[int]) -> None:
            pooled[batch] = self._forward([rows[i] for i in batch])

        batches = plan_batches(lengths, token_budget=budget, max_rows=signature.most_rows or MOST_ROWS)
        run_batches(list(batches), forward, workers)
        if len(rows) > len(texts):
            pooled = _average_windows(_unit_rows(pooled), np.array(owners), np.array(lengths), len(texts))
        return _unit_rows(pooled)

    def _forward(self, rows: Sequence[Sequence[int]]) -> Vectors:
        ids, mask = pad_rows(rows, self._tokenizer.pad_id)
        session, signature, output = self._session()
        hidden = session.run([output], feed_rows(signature, ids, mask))[0]
        if hidden.ndim == 2:
            return np.asarray(hidden, dtype=np.float32)
        return pool(np.asarray(hidden, dtype=np.float32), mask, self.card)


def pool(hidden: Vectors, mask: NDArray[np.int64], card: ModelCard) -> Vectors:
    """hidden (B, T, d), right-padded mask (B, T) -> (B, d)."""
    if card.pooling == "cls":
        first: Vectors = hidden[:, 0]
        return first
    if card.pooling == "last_token":
        last: Vectors = hidden[np.arange(len(hidden)), mask.sum(axis=1) - 1]
        return last
    weights = mask.astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    mean: Vectors = np.matmul(weights[:, None, :], hidden)[:, 0]
    return mean


def _average_windows(
    vectors: Vectors, owners: NDArray[np.int64], lengths: NDArray[np.int64], count: int
) -> Vectors:
    """Mean of each text's window vectors, weighted by tokens. vectors (w, d) -> (count, d)."""
    out = np.zeros((count, vectors.shape[1]), dtype=np.float32)
    np.add.at(out, owners, vectors * lengths[:, None].astype(np.float32))
    return out


def _unit_rows(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise ModelError(
            "the model gave vectors that are not finite; pull it again or choose another precision."
        )
    unit: Vectors = vectors / np.maximum(norms, 1e-12)
    return unit


def _slabs(texts: Sequence[str]) -> Iterator[list[str]]:
    slab: list[str] = []
    size = 0
    for text in texts:
        if slab and size + len(text) > SLAB_CHARACTERS:
            yield slab
            slab, size = [], 0
        slab.append(text)
        size += len(text)
    if slab:
        yield slab
