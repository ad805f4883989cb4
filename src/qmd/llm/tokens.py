"""Text to token ids: the model's own tokenizer, its stored truncation and padding set aside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qmd.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextTokenizer:
    """A `tokenizer.json`, with the special tokens it puts around one text.

    A text is cut into windows by `windows`, never truncated: stored truncation and padding are switched off.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        full = tokenizer.encode("a").ids
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        self.head: list[int] = full[:start]
        self.tail: list[int] = full[start + len(bare) :]
        added = tokenizer.get_added_tokens_decoder()
        self._specials = {token.content: number for number, token in added.items() if token.special}
        longest_first = sorted(map(re.escape, self._specials), key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self._spelling: Tokenizer | None = None

    @classmethod
    def from_file(cls, path: Path) -> TextTokenizer:
        """Raises ModelError when the file is missing or is not a tokenizer."""
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises plain Exception for a bad file
            raise ModelError(
                f"{path} is not a readable tokenizer.json ({error}). "
                "Remove the model with `qmd models remove` and pull it again."
            ) from error

    @property
    def pad_id(self) -> int:
        for token in ("[PAD]", "<pad>", "<|endoftext|>", "</s>"):
            found = self._tokenizer.token_to_id(token)
            if found is not None:
                return int(found)
        return 0

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def content_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without special tokens."""
        clean = [encodable(text) for text in texts]
        return [e.ids for e in self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)]

    def prompt_ids(self, pieces: Sequence[str]) -> list[int]:
        """Ids of pieces read as one text. Every other piece, from the second on, is what somebody said: special tokens
        in it are spelled out, so that no text can end its own turn."""
        if not any(map(self._special.search, pieces[1::2])):
            return self.content_ids(["".join(pieces)])[0]
        ids, plain = list[int](), ""
        for at, piece in enumerate(pieces):
            parts = [piece] if at % 2 else self._special.split(piece)
            for place, part in enumerate(parts):
                if place % 2:
                    ids += [*self.said_ids([plain])[0], self._specials[part]]
                    plain = ""
                else:
                    plain += part
        return ids + self.said_ids([plain])[0]

    def said_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, special tokens in it spelled out."""
        if not any(map(self._special.search, texts)):
            return self.content_ids(texts)
        if self._spelling is None:
            from tokenizers import Tokenizer

            self._spelling = Tokenizer.from_str(self._tokenizer.to_str())
            self._spelling.encode_special_tokens = True
        clean = [encodable(text) for text in texts]
        return [e.ids for e in self._spelling.encode_batch_fast(clean, add_special_tokens=False)]

    def pair_frame(self, query: str) -> tuple[list[int], list[int], list[int]]:
        """Ids (up to and with the query, between, at the end) around a second text."""
        probe = self.content_ids(["a"])[0]
        query_ids = self.content_ids([query])[0]
        full = self._tokenizer.encode(encodable(query), "a").ids
        end = len(full)
        while end > 0 and full[end - len(probe) : end] != probe:
            end -= 1
        start = end - len(probe)
        split = len(self.head) + len(query_ids)
        return full[:split], full[split:start], full[end:]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included."""
        extra = len(self.head) + len(self.tail)
        return [len(ids) + extra for ids in self.content_ids(texts)]

    def windows(self, ids: list[int], max_tokens: int) -> Iterator[list[int]]:
        """Cut content ids into the fewest windows of nearly equal length, each with its special tokens."""
        room = max_tokens - len(self.head) - len(self.tail)
        parts = max(1, -(-len(ids) // room))
        size, longer = divmod(len(ids), parts)
        start = 0
        for part in range(parts):
            end = start + size + (part < longer)
            yield [*self.head, *ids[start:end], *self.tail]
            start = end


def encodable(text: str) -> str:
    """Lone surrogates (from undecodable file names) cannot enter the tokenizer; they become U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return text
