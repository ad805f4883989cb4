"""What a graph takes and gives, read from the file before the model is used for a role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmd.errors import ModelError
from qmd.types import Form, ModelCard

if TYPE_CHECKING:
    import onnxruntime

Shape = tuple[int | str | None, ...]
SMALLEST_VOCABULARY = 1000
"""A last dimension from here on is a vocabulary, unless it is the width the card says."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Names to shapes; `types` are ONNX Runtime's names of the inputs' element types."""

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    types: dict[str, str]

    @property
    def has_cache(self) -> bool:
        """Whether the graph takes the keys and values of earlier tokens."""
        return any(name.startswith("past_key_values.") for name in self.inputs)

    @property
    def most_rows(self) -> int | None:
        """Rows of a batch, where the graph fixes them (an export made for one text at a time)."""
        rows = self.inputs.get("input_ids", (None,))[0]
        return rows if isinstance(rows, int) and rows > 0 else None


def read_signature(session: onnxruntime.InferenceSession) -> Signature:
    return Signature(
        {i.name: tuple(i.shape) for i in session.get_inputs()},
        {o.name: tuple(o.shape) for o in session.get_outputs()},
        {i.name: i.type for i in session.get_inputs()},
    )


def find_form(signature: Signature) -> Form:
    """How a graph is to be read, by the shapes it gives.

    (B, T, vocabulary) named logits is causal; (B, 1) or (B, labels) logits is a classifier; (B, T, d) is an encoder,
    as is (B, d) already pooled. Hidden states are an encoder's also where the graph takes a cache, as decoders that
    were trained to embed do.
    """
    for name, shape in signature.outputs.items():
        if name.startswith(("present", "past")):
            continue
        if len(shape) == 3:
            last = shape[-1]
            hidden = "hidden" in name or "embedding" in name
            wide = isinstance(last, int) and last >= SMALLEST_VOCABULARY
            return (
                "causal" if name == "logits" or (not hidden and (wide or signature.has_cache)) else "encoder"
            )
        if len(shape) == 2 and name in {"logits", "score", "scores"}:
            return "seq-cls"
        if len(shape) == 2:
            return "encoder"
    raise ModelError(
        f"the graph's outputs {list(signature.outputs)} are neither token vectors, scores nor logits. "
        "Choose a model exported for feature extraction, text classification or text generation."
    )


def check_role(card: ModelCard, form: Form) -> None:
    """Raises ModelError when a graph of this form cannot serve the card's role."""
    serves = {"embedding": ("encoder",), "reranker": ("seq-cls", "causal"), "generation": ("causal",)}[
        card.role
    ]
    if form not in serves:
        kinds = {"encoder": "gives vectors", "seq-cls": "scores pairs", "causal": "writes text"}
        raise ModelError(
            f"model {card.name} {kinds[form]}; as {card.role} a model is needed that "
            f"{' or '.join(kinds[s] for s in serves)}. Set `models.{card.role}` to another one (`qmd "
            f"models list`)."
        )
