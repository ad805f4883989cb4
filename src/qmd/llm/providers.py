"""Which processor runs a model, and which precision fits it. Pure policy: loads no model.

| precision | CPU | CUDA |
| int8 | right (int8 dot products) | wrong: operators fall back to the CPU, copying each time |
| q4, q4f16 | fair | right for generation (MatMulNBits) |
| fp16 | widened to float, slow | right for encoders |
| fp32 | slow but always runs | right for classification |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qmd.errors import ModelError
from qmd.types import ModelCard, ModelVariant, Role

Device = Literal["cpu", "cuda", "rocm", "directml", "coreml"]
Precision = Literal["fp32", "fp16", "int8", "q4", "q4f16"]

PROVIDERS: dict[Device, str] = {
    "cuda": "CUDAExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
_GPU: dict[Role, tuple[Precision, ...]] = {
    "embedding": ("fp16", "fp32"),
    "reranker": ("fp32", "fp16"),
    "generation": ("q4f16", "fp16", "q4", "fp32"),
}
_CPU: dict[Role, tuple[Precision, ...]] = {
    "embedding": ("int8", "fp32", "fp16", "q4", "q4f16"),
    "reranker": ("int8", "fp32", "q4", "fp16", "q4f16"),
    "generation": ("q4", "int8", "q4f16", "fp32", "fp16"),
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs, in which precision, and why; `note` is shown by `qmd check`."""

    device: Device
    variant: ModelVariant
    note: str = ""

    @property
    def providers(self) -> tuple[str, ...]:
        first = PROVIDERS[self.device]
        return (first,) if self.device == "cpu" else (first, PROVIDERS["cpu"])


def available_devices(names: Sequence[str] | None = None) -> tuple[Device, ...]:
    """Devices ONNX Runtime was built for, best first. `names` stands in for what it reports."""
    if names is None:
        import onnxruntime

        names = onnxruntime.get_available_providers()
    return tuple(device for device, provider in PROVIDERS.items() if provider in names)


def place_model(
    card: ModelCard,
    devices: Sequence[Device],
    *,
    device: Device | None = None,
    precision: Precision | None = None,
) -> Placement:
    """Choose device and variant.

    An int8 file asked for on a GPU is replaced by the variant that fits, or else the model runs on the
    CPU, and
    `note` says so. Raises ModelError when the device or the precision is not to be had.
    """
    wanted = device or devices[0]
    if wanted not in devices:
        raise ModelError(
            f"device {wanted!r} is not available here (there is: {', '.join(devices)}). "
            "Install the onnxruntime build for it, for example `pip install 'qmd-python[cuda]'`."
        )
    by_precision: dict[Precision, ModelVariant] = {v.precision: v for v in card.variants}
    if precision is not None and precision not in by_precision:
        raise ModelError(f"model {card.name} has no {precision} files (it has: {', '.join(by_precision)}).")
    if wanted == "cpu":
        choice = precision or _first(_CPU[card.role], by_precision)
        return Placement("cpu", by_precision[choice])
    fitting = next((p for p in _GPU[card.role] if p in by_precision), None)
    if precision == "int8" or fitting is None:
        why = "int8 operators fall back to the CPU there, copying at every step"
        if fitting is not None:
            note = f"int8 asked for on {wanted}; {fitting} runs instead: {why}"
            return Placement(wanted, by_precision[fitting], note)
        best = _first(_CPU[card.role], by_precision)
        note = (
            f"{card.name} has only {', '.join(by_precision)}; it runs on the CPU instead of {wanted}: {why}"
        )
        return Placement("cpu", by_precision[best], note)
    chosen: Precision = precision or fitting
    return Placement(wanted, by_precision[chosen])


def _first(order: Sequence[Precision], there: Mapping[Precision, ModelVariant]) -> Precision:
    return next(precision for precision in order if precision in there)
