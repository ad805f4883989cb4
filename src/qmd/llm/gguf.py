"""GGUF files through llama.cpp, as a Generator."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmd.errors import MissingExtra, ModelError, UsageError
from qmd.llm.chat import Message
from qmd.llm.files import file_sha256
from qmd.llm.sampling import check_sampling
from qmd.llm.session import default_threads
from qmd.types import ModelCard, ModelVariant

SILENT = -1


class GgufGenerator:
    """One GGUF file in llama.cpp. Chat templates come from the file's own metadata."""

    grammar_form = "gbnf"

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        context_tokens: int = 4096,
        card: ModelCard | None = None,
    ) -> None:
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
        parameters.verbosity = SILENT
        parameters.cpuparams.n_threads = threads or default_threads()
        parameters.cpuparams_batch.n_threads = threads or default_threads()
        try:
            self._server = xllamacpp.Server(parameters)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"llama.cpp cannot load {path}: {error}") from error
        card = card or ModelCard(
            path.stem,
            "generation",
            max_tokens=context_tokens,
            variants=(ModelVariant("q4", (path.name,)),),
            form="causal",
        )
        self.card = replace(card, max_tokens=min(card.max_tokens, context_tokens))
        self.runs_on = "llama.cpp"
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
        return self.generate_chat(
            [("user", prompt)],
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
        """As `generate`, after a conversation of (role, text)."""
        check_sampling(temperature=temperature, top_p=top_p, seed=seed)
        if grammar is not None and "::=" not in grammar:
            raise UsageError("llama.cpp takes grammars as GBNF; use an ONNX model for a Lark grammar.")
        request: dict[str, Any] = {
            "messages": [{"role": role, "content": text} for role, text in messages],
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": list(stop),
            "stream": True,
            "cache_prompt": True,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        if seed is not None:
            request["seed"] = seed
        if grammar is not None:
            request["grammar"] = grammar
        return self._stream(request)

    def _stream(self, request: dict[str, Any]) -> Iterator[str]:
        """llama.cpp calls back while it decodes; a thread carries its pieces here. Leaving early stops it."""
        pieces: queue.Queue[str | ModelError | None] = queue.Queue()
        left = threading.Event()

        def receive(chunk: Any) -> bool:
            for part in chunk if isinstance(chunk, list) else [chunk]:
                tree = json.loads(part) if isinstance(part, (str, bytes)) else part
                if "error" in tree or "code" in tree:
                    pieces.put(ModelError(f"llama.cpp refused the request: {tree}"))
                    continue
                for choice in tree.get("choices", ()):
                    text = choice.get("delta", {}).get("content")
                    if text:
                        pieces.put(text)
            return left.is_set()

        def decode() -> None:
            try:
                self._server.handle_chat_completions(json.dumps(request), receive)
            except (RuntimeError, ValueError) as error:
                pieces.put(ModelError(f"llama.cpp failed: {error}"))
            finally:
                pieces.put(None)

        worker = threading.Thread(target=decode, daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, ModelError):
                    raise piece
                yield piece
        finally:
            left.set()
            worker.join()
