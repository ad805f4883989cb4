"""A small local model that writes: chat prompt in, text out, piece by piece; the sources' keys and values are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qmd.draft.decoder import SpeculativeDecoder
from qmd.draft.knowledge import KnowledgeCacheManager
from qmd.draft.linear import Precision
from qmd.draft.load import SMOLLM2, load_model, load_tokenizer
from qmd.draft.onnx_target import OnnxTarget
from qmd.draft.proposers import SuffixProposer
from qmd.draft.stats import Stats
from qmd.draft.torch_target import TorchTarget, as_target
from qmd.llm.files import local_path
from qmd.llm.repetition import repeats_from

Message = tuple[str, str]
"""(role, text)"""


class LocalWriter:
    """A causal model with its tokenizer, a suffix proposer that remembers answers, and stored keys and values.

    name: SmolLM2-135M-Instruct (from its package), a folder (torch or ONNX), a GGUF file or a hub id.
    knowledge_folder: where keys and values of sources are kept between questions; None keeps them in memory.
    """

    def __init__(
        self,
        name: str = SMOLLM2,
        *,
        knowledge_folder: Path | None = None,
        max_bytes: int = 512 << 20,
        precision: Precision | None = None,
        model: Any = None,
        tokenizer: Any = None,
        gamma: int = 8,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(name)
        if model is None:
            model = OnnxTarget.open(name) if _is_onnx(name) else load_model(name)
        self.target = as_target(model, precision=precision)
        self.suffix = SuffixProposer()
        self.decoder = SpeculativeDecoder([self.suffix], self.target, self.tokenizer, gamma=gamma)
        self.cut = False
        """Whether the last answer ended because it was as long as allowed."""
        self.knowledge: KnowledgeCacheManager | None = None
        if isinstance(self.target, TorchTarget):
            config = self.target.config
            heads = config.num_attention_heads
            self.knowledge = KnowledgeCacheManager(
                config.hidden_size, heads, 64 * heads, folder=knowledge_folder, max_bytes=max_bytes
            ).attach(self.target)

    @property
    def stats(self) -> Stats:
        return self.decoder.stats

    def write(
        self,
        messages: Sequence[Message],
        *,
        keep: str = "",
        max_new_tokens: int = 160,
        temperature: float = 0.0,
        top_p: float = 0.9,
        seed: int | None = None,
        stream: Callable[[str], None] | None = None,
    ) -> str:
        """Answer the conversation. keep: the part of the last message, from its start, whose keys and values are worth
        storing (the sources, which later questions may share). Raises ValueError if the prompt does not fit."""
        fixed, rest = split_prompt(self.tokenizer, messages, keep)
        prompt = fixed + rest
        cache = None if self.knowledge is None else self.knowledge.start(self.target, prompt)
        if self.knowledge is not None and fixed and cache is not None and cache.length < len(fixed):
            # the sources first, alone: what is stored is then what any later question would compute again
            self.target.forward(fixed[cache.length :], cache, last_only=True)
            self.knowledge.add(self.target, fixed, cache=cache)
        pieces = _Pieces(self.tokenizer, self.decoder.eos, stream)
        out = self.decoder.generate(
            prompt, max_new_tokens, temperature, top_p, seed=seed, cache=cache, streamer=pieces
        )
        self.suffix.remember([t for t in out[0, len(prompt) :].tolist() if t not in self.decoder.eos])
        self.cut = not pieces.done and self.stats.new_tokens >= max_new_tokens
        return pieces.text


def split_prompt(tokenizer: Any, messages: Sequence[Message], keep: str) -> tuple[list[int], list[int]]:
    """Tokens up to the end of `keep`, and the tokens after it, cut there so that both are always the same."""
    if getattr(tokenizer, "chat_template", None):
        chat = [{"role": role, "content": text} for role, text in messages]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    else:
        text = "\n\n".join(text for _, text in messages) + "\n"
    at = text.find(keep) + len(keep) if keep and keep in text else 0
    parts = [tokenizer(t, add_special_tokens=False).input_ids if t else [] for t in (text[:at], text[at:])]
    return list(parts[0]), list(parts[1])


def _is_onnx(name: str) -> bool:
    """Whether a folder holds an ONNX graph and no torch weights."""
    folder = local_path(name)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return False
    return any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx"))


class _Pieces:
    """Token ids to text, handed on as soon as it cannot change (no half characters)."""

    def __init__(self, tokenizer: Any, eos: frozenset[int], stream: Callable[[str], None] | None) -> None:
        self.tokenizer, self.eos, self.stream = tokenizer, eos, stream
        self.ids: list[int] = []
        self.text = ""
        self.done = False
        """The text ended by itself, or was ended where it began to repeat itself."""

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Returns True when the text has begun to repeat itself: small models do not stop by themselves then."""
        self.ids += [t for t in tokens if t not in self.eos]
        self.done = any(t in self.eos for t in tokens)
        text = self.tokenizer.decode(self.ids)
        if text.endswith("\ufffd"):
            return False
        end = repeats_from(text)
        text = text if end is None else text[:end]
        if len(text) > len(self.text):
            piece, self.text = text[len(self.text) :], text
            if self.stream is not None:
                self.stream(piece)
        self.done = self.done or end is not None
        return end is not None
