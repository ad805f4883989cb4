"""GGUF files through llama.cpp, as a Generator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qmd.errors import MissingExtra, ModelError, UsageError
from qmd.llm.files import file_sha256
from qmd.llm.session import default_threads
from qmd.types import ModelCard, ModelVariant


class GgufGenerator:
    """One GGUF file in llama.cpp. Chat templates come from the file's own metadata."""

    def __init__(self, path: Path, *, threads: int | None = None, context_tokens: int = 4096) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            raise MissingExtra("running GGUF files", "gguf") from error
        try:
            with path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}.") from error
        if magic != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file. Download it again.")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = context_tokens
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = threads or default_threads()
        parameters.cpuparams_batch.n_threads = threads or default_threads()
        try:
            self._server = xllamacpp.Server(parameters)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"llama.cpp cannot load {path}: {error}") from error
        self.card = ModelCard(
            path.stem,
            "generation",
            max_tokens=context_tokens,
            variants=(ModelVariant("q4", (path.name,)),),
            form="causal",
        )
        self.fingerprint = f"{path.stem}:{file_sha256(path)[:16]}"

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
        """Yield text as it is decoded. `grammar` is GBNF here (llama.cpp's own form), not Lark."""
        if grammar is not None and "::=" not in grammar:
            raise UsageError("llama.cpp takes grammars as GBNF; use an ONNX model for a Lark grammar.")
        request: dict[str, Any] = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": list(stop),
            "stream": True,
        }
        if seed is not None:
            request["seed"] = seed
        if grammar is not None:
            request["grammar"] = grammar
        pieces: list[str] = []

        def receive(chunk: Any) -> None:
            for part in chunk if isinstance(chunk, list) else [chunk]:
                tree = json.loads(part) if isinstance(part, (str, bytes)) else part
                if "error" in tree or "code" in tree:
                    raise ModelError(f"llama.cpp refused the request: {tree}")
                for choice in tree.get("choices", ()):
                    text = choice.get("delta", {}).get("content")
                    if text:
                        pieces.append(text)

        self._server.handle_chat_completions(json.dumps(request), receive)
        yield from pieces
