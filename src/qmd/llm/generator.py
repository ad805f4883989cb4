"""Text generation on a causal ONNX graph: greedy or sampled, streamed, stopped by strings, held to a
grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmd.errors import MissingExtra, ModelError, UsageError
from qmd.llm.chat import Message, chat_pieces, fill
from qmd.llm.decoder import CausalModel, Decoding
from qmd.llm.files import ModelFiles
from qmd.llm.protocols import Drafter, Vectors
from qmd.llm.sampling import check_sampling
from qmd.llm.session import open_session
from qmd.llm.signature import check_role, find_form, read_signature
from qmd.llm.tokens import TextTokenizer

if TYPE_CHECKING:
    import onnxruntime

PREFILL_TOKENS = 128
"""The prompt is read in pieces of this many tokens, so that logits of a long prompt never fill the memory."""
TEXTS = 3
"""Texts whose keys and values are kept: questions about the same sources read these once, even with others between."""
ENOUGH_SHARED = 96
"""Tokens of a common start from which a kept text is taken up; standing instructions alone are shorter."""
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>")


class OnnxGenerator:
    """A Generator over one causal graph. Not for two threads at once."""

    def __init__(
        self,
        files: ModelFiles,
        session: onnxruntime.InferenceSession,
        tokenizer: TextTokenizer,
        *,
        device: str = "cpu",
    ) -> None:
        self.card = files.card
        self.fingerprint = f"{files.card.name}:{files.sha256[:16]}"
        self.model = CausalModel(session, device)
        self.runs_on = f"{session.get_providers()[0]} {files.variant.precision}"
        self.drafter: Drafter | None = None
        """Asked before each step; only where the graph gives logits for every token (`model.gives_every_logit`)."""
        self._kept: list[
            tuple[Decoding, list[int]]
        ] = []  # texts and what was computed for them, last used last
        self._decoding: Decoding
        self._seen: list[int]
        self._turn = object()
        self._tokenizer = tokenizer
        self._tokenizer_path = files.tokenizer
        self._ends = _end_ids(files, tokenizer)

    @classmethod
    def open(
        cls,
        files: ModelFiles,
        *,
        threads: int | None = None,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> OnnxGenerator:
        tokenizer = TextTokenizer.from_file(files.tokenizer)
        session = open_session(files.graph, threads=threads, providers=providers, spin=True)
        check_role(files.card, find_form(read_signature(session)))
        device = "cuda" if providers[0] == "CUDAExecutionProvider" else "cpu"
        return cls(files, session, tokenizer, device=device)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        grammar: str | None = None,
    ) -> Iterator[str]:
        """Yield text as it is decoded; `prompt` is put into the model's chat template, if the card has one.

        temperature 0 is greedy. The text ends before the first of `stop`. Raises UsageError for a prompt
        longer
        than the model reads, a bad grammar, or options out of range.
        """
        return self._write(
            fill(self.card.template, "{prompt}", prompt) if self.card.template else [prompt],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            seed=seed,
            grammar=grammar,
        )

    def generate_chat(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        grammar: str | None = None,
    ) -> Iterator[str]:
        """As `generate`, after a conversation of (role, text) instead of one prompt. What a conversation shares from
        its start with the one before is not computed again."""
        return self._write(
            chat_pieces(self.card.template, messages),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            seed=seed,
            grammar=grammar,
        )

    def _write(
        self,
        pieces: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        stop: Sequence[str],
        seed: int | None,
        grammar: str | None,
    ) -> Iterator[str]:
        check_sampling(temperature=temperature, top_p=top_p, seed=seed)
        ids = self._tokenizer.prompt_ids(pieces)
        if not ids:
            raise UsageError(
                f"the prompt is empty, and {self.card.name} has no template around it. Write a prompt."
            )
        if len(ids) + max_new_tokens > self.card.max_tokens:
            raise UsageError(
                f"the prompt has {len(ids)} tokens; {self.card.name} reads {self.card.max_tokens} with "
                f"{max_new_tokens} to write. Shorten the prompt."
            )
        tokens = self.generate_ids(
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            grammar=grammar,
        )
        return _cut_at(self._texts(tokens), tuple(s for s in stop if s))

    def generate_ids(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        grammar: str | None = None,
    ) -> Iterator[int]:
        """Yield token ids after `ids` (at least one), without the end token. Drafted or not, the same ones: each is
        picked from the graph's own logits, in order, with the same random numbers."""
        if max_new_tokens < 1:
            return
        mask = _GrammarMask(str(self._tokenizer_path), grammar, self._ends) if grammar else None
        random = np.random.default_rng(seed)
        drafter = self.drafter
        if drafter is not None:
            drafter.start(ids)
        rows, offered = self._read(ids)[None], list[int]()
        left = max_new_tokens
        turn = self._turn = object()
        while True:
            # rows[i]: logits after what is written and offered[:i]
            written: list[int] = []
            ended = False
            for row in rows:
                ended = mask is not None and not mask.apply(row)
                token = -1 if ended else _pick(row, temperature, top_p, random)
                ended = ended or token in self._ends
                if ended:
                    break
                if mask is not None:
                    mask.accept(token)
                written.append(token)
                yield token
                if self._turn is not turn:
                    raise UsageError(
                        "this text was left when the model began another. Read one to its end, or open the model twice."
                    )
                if len(written) > len(offered) or offered[len(written) - 1] != token:
                    break
            stood = len(written) if ended else len(written) - 1
            left -= len(written)
            if drafter is not None:
                drafter.wrote(written, offered, stood)
            if ended or left == 0:
                return
            self._forget(len(offered) - stood)
            if drafter is None:
                rows = self._feed(written[-1:])[None]
            else:
                offered = list(drafter.offer(left - 1))
                rows = self._feed_each([written[-1], *offered])

    def _read(self, ids: Sequence[int]) -> Vectors:
        """Logits after `ids`, from what a kept text shares with them."""
        same = self._take_up(ids)
        self._decoding.rewind(same)
        del self._seen[same:]
        step = PREFILL_TOKENS if self.model.past else len(ids)
        row = np.empty(0, np.float32)
        for start in range(same, len(ids), step):
            row = self._feed(ids[start : start + step])
        return row

    def _take_up(self, ids: Sequence[int]) -> int:
        """Go on with the kept text that shares most with `ids` from its start, or with a new one where none shares
        enough. Returns how many tokens are shared."""
        shared = [_shared(seen, ids) for _, seen in self._kept]
        most = max(shared, default=-1)
        if most >= min(ENOUGH_SHARED, len(ids) - 1):
            self._kept.append(self._kept.pop(shared.index(most)))
        elif len(self._kept) < TEXTS:
            self._kept.append((self.model.decoding(), []))
        else:
            self._kept.append(self._kept.pop(0))
        self._decoding, self._seen = self._kept[-1]
        return _shared(self._seen, ids)

    def _feed(self, tokens: Sequence[int]) -> Vectors:
        row = self._decoding.feed(tokens)
        self._seen += tokens
        return row

    def _feed_each(self, tokens: Sequence[int]) -> Vectors:
        rows = self._decoding.feed_each(tokens)
        self._seen += tokens
        return rows

    def _forget(self, count: int) -> None:
        if count:
            del self._seen[-count:]
            self._decoding.rewind(len(self._seen))

    def _texts(self, tokens: Iterator[int]) -> Iterator[str]:
        """Decode as whole characters: a piece that ends inside one waits for the next token."""
        ids: list[int] = []
        shown = 0
        for token in tokens:
            ids.append(token)
            text = self._tokenizer.decode(ids)
            if len(text) > shown and not text.endswith("\ufffd"):
                yield text[shown:]
                shown = len(text)
                if text.endswith("\n"):
                    # one token stays: some tokenizers drop a space at the start of a text
                    ids = ids[-1:]
                    shown = len(self._tokenizer.decode(ids))
        text = self._tokenizer.decode(ids)
        if len(text) > shown:
            yield text[shown:]


class _GrammarMask:
    """Which tokens a Lark grammar allows next, by llguidance."""

    def __init__(self, tokenizer_path: str, grammar: str, ends: frozenset[int]) -> None:
        try:
            import llguidance
            import llguidance.numpy as bits
        except ImportError as error:
            raise MissingExtra("writing under a grammar", "grammar") from error
        tokenizer = llguidance.LLTokenizer(tokenizer_path, eos_token=sorted(ends))
        self._bits = bits
        self._matcher = llguidance.LLMatcher(tokenizer, grammar)
        self._raise_on_error()
        self._mask = bits.allocate_token_bitmask(1, tokenizer.vocab_size)

    def apply(self, logits: NDArray[np.float32]) -> bool:
        """Forbid tokens in place; False when the text is complete."""
        if self._matcher.is_stopped():
            return False
        self._bits.fill_next_token_bitmask(self._matcher, self._mask)
        self._bits.apply_token_bitmask_inplace(logits, self._mask)
        return bool(np.isfinite(logits).any())

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._raise_on_error()

    def _raise_on_error(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the grammar is not usable: {self._matcher.get_error()}")


def _pick(logits: NDArray[np.float32], temperature: float, top_p: float, random: np.random.Generator) -> int:
    """Greedy, or nucleus sampling: the likeliest tokens that together hold top_p of the probability."""
    if temperature == 0.0:
        return int(logits.argmax())
    scaled = (logits - logits.max()).astype(np.float64) / temperature
    p = np.exp(scaled)
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
    return int(random.choice(kept, p=p[kept] / p[kept].sum()))


def _shared(seen: Sequence[int], ids: Sequence[int]) -> int:
    """Tokens that both begin with; the last of `ids` is left to be read."""
    same = 0
    while same < min(len(seen), len(ids) - 1) and seen[same] == ids[same]:
        same += 1
    return same


def _cut_at(pieces: Iterator[str], stop: tuple[str, ...]) -> Iterator[str]:
    """Pass text on until a stop string begins; what may be the start of one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        cuts = [at for at in (held.find(s) for s in stop) if at >= 0]
        if cuts:
            if held[: min(cuts)]:
                yield held[: min(cuts)]
            return
        keep = max((n for s in stop for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
        ready = held[: len(held) - keep]
        if ready:
            yield ready
        held = held[len(ready) :]
    if held:
        yield held


def _end_ids(files: ModelFiles, tokenizer: TextTokenizer) -> frozenset[int]:
    ends = {i for i in map(tokenizer.token_id, END_TOKENS) if i is not None}
    for name in ("generation_config.json", "config.json"):
        try:
            declared: Any = json.loads((files.tokenizer.parent / name).read_text()).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        ends |= set(declared) if isinstance(declared, list) else {declared} - {None}
    if not ends:
        raise ModelError(f"{files.card.name} declares no end token; add eos_token_id to its config.json.")
    return frozenset(ends)
