"""A conversation as one prompt. Knows the templates of the catalog's rows, no model."""

from __future__ import annotations

from collections.abc import Sequence

Message = tuple[str, str]
"""(role, text)"""
_ASSISTANT = "<|im_start|>assistant\n"
_USER = "<|im_start|>user\n"


def fill(template: str, place: str, text: str) -> list[str]:
    """A template with `text` at every `place`, as pieces: the template's own, and between them the text."""
    own = template.split(place)
    return [own[0], *(piece for part in own[1:] for piece in (text, part))]


def chat_pieces(template: str, messages: Sequence[Message]) -> list[str]:
    """Put messages into the form of a card's template, ready for the model's turn. Every other piece, from the second
    on, is of the messages.

    A ChatML template gives every message its turn; what the template has before the user's turn (a standing system
    message) stays unless the messages bring one. Another template takes the texts as one prompt.
    """
    if _ASSISTANT not in template:
        return fill(template or "{prompt}\n", "{prompt}", "\n\n".join(text for _, text in messages))
    standing = template[: template.index(_USER)] if _USER in template else ""
    if any(role == "system" for role, _ in messages):
        standing = ""
    pieces = [standing]
    for role, text in messages:
        pieces[-1] += "<|im_start|>"
        pieces += [role, "\n", text, "<|im_end|>\n"]
    pieces[-1] += template[template.rindex(_ASSISTANT) :]
    return pieces


_PROBES: tuple[tuple[Message, ...], ...] = (
    (("user", "First?"),),
    (("system", "Be brief."), ("user", "First?")),
    (("user", "First?"), ("assistant", "One."), ("user", "Second?")),
    (("system", "Be brief."), ("user", "First?"), ("assistant", "One."), ("user", "Second?")),
)


def card_template(jinja: str, *, begin: str = "") -> str | None:
    """The card's template that puts conversations into the same form as a model's own (Jinja, without thinking, `begin`
    its token for the start of a text); None where none does."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        own = environment.from_string(jinja)
        texts = [
            own.render(
                messages=[{"role": role, "content": text} for role, text in talk],
                add_generation_prompt=True, enable_thinking=False, bos_token=begin,
            )
            for talk in _PROBES
        ]  # fmt: skip
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ):
        return None  # one that needs what others give it, or refuses such a conversation
    template = texts[0].replace("First?", "{prompt}")
    if template.count("{prompt}") != 1 or _ASSISTANT not in template:
        return None
    same = ["".join(chat_pieces(template, talk)) for talk in _PROBES] == texts
    return template if same else None
