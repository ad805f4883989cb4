"""A conversation as one prompt. Knows the templates of the catalog's rows, no model."""

from __future__ import annotations

from collections.abc import Sequence

Message = tuple[str, str]
"""(role, text)"""
_ASSISTANT = "<|im_start|>assistant\n"
_USER = "<|im_start|>user\n"


def render_chat(template: str, messages: Sequence[Message]) -> str:
    """Put messages into the form of a card's template, ready for the model's turn.

    A ChatML template gives every message its turn; what the template has before the user's turn (a standing system
    message) stays unless the messages bring one. Another template takes the texts as one prompt.
    """
    if _ASSISTANT not in template:
        text = "\n\n".join(text for _, text in messages)
        return template.replace("{prompt}", text) if template else f"{text}\n"
    standing = template[: template.index(_USER)] if _USER in template else ""
    if any(role == "system" for role, _ in messages):
        standing = ""
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages)
    return standing + turns + template[template.rindex(_ASSISTANT) :]
