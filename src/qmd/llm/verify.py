"""Load a model and see that it does its work: what it gives, on which provider, how fast, in how much memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from qmd.errors import MissingExtra, ModelError
from qmd.llm.cut import doubt_of
from qmd.llm.memory import gpus, process_bytes
from qmd.llm.open import open_embedder, open_generator, open_reranker
from qmd.types import Role

QUESTION = "how do I renew my passport"
NEAR = "Passports are renewed at the town hall; bring the old passport and two photographs."
FAR = "Knead the dough for ten minutes and let it rise in a warm place until it has doubled."
_SAMPLE = 24
Trial = tuple[Any, float, float, float, str]
"""(model, seconds to load and answer once, milliseconds of a short request, speed, its unit)"""


@dataclass(frozen=True, slots=True)
class Verified:
    """A model that works. `speed` counts `unit` a second; memory is what this process grew by while it was loaded."""

    role: Role
    name: str
    runs_on: str
    load_s: float
    first_ms: float
    speed: float
    unit: str
    memory_bytes: int | None
    gpu_bytes: int | None = None
    doubt: str = ""
    """What is to be said of the model although it works."""


def verify_model(name: str, role: Role, *, dim: int | None = None) -> Verified:
    """Open, try and time one model. Raises QmdError where it does not load, or gives nonsense.

    dim: of an embedding model, to what length its vectors are cut.
    """
    before, gpu_before = process_bytes(), _own_gpu()
    start = time.perf_counter()
    trial = partial(_try_embedder, dim=dim) if role == "embedding" else _TRIALS[role]
    model, load_s, first_ms, speed, unit = trial(name, start)
    after, gpu_after = process_bytes(), _own_gpu()
    return Verified(
        role=role,
        name=name,
        runs_on=runs_on(model),
        load_s=round(load_s, 3),
        first_ms=round(first_ms, 1),
        speed=round(speed, 1),
        unit=unit,
        memory_bytes=None if before is None or after is None else max(0, after - before),
        gpu_bytes=None if gpu_after is None else gpu_after - (gpu_before or 0),
        doubt=doubt_of(model.card, dim),
    )


def runs_on(model: Any) -> str:
    """Where a model computes: `CPUExecutionProvider int8`, `llama.cpp`, a server's address."""
    return str(getattr(model, "runs_on", type(model).__name__))


def _try_embedder(name: str, start: float, dim: int | None) -> Trial:
    embedder = open_embedder(name, dim=dim)
    rows = embedder.embed_documents([QUESTION])
    load_s = time.perf_counter() - start
    begin = time.perf_counter()
    query = embedder.embed_query(QUESTION)
    first_ms = 1e3 * (time.perf_counter() - begin)
    texts = [f"{NEAR} {number}" for number in range(_SAMPLE)]
    tokens = sum(embedder.count_tokens(texts))
    begin = time.perf_counter()
    near = embedder.embed_documents(texts)
    seconds = time.perf_counter() - begin
    far = embedder.embed_documents([FAR])[0]
    if rows.shape != (1, embedder.dim) or not np.isfinite(near).all():
        raise ModelError(f"{name} gives vectors of shape {rows.shape}, expected (1, {embedder.dim}).")
    if query @ near[0] <= query @ far:
        raise ModelError(
            f"{name} finds a text about bread nearer to a question about passports than one about passports. "
            "Its pooling or its files are wrong: pull it again, or choose another model."
        )
    return embedder, load_s, first_ms, tokens / seconds, "tokens/s"


def _try_reranker(name: str, start: float) -> Trial:
    reranker = open_reranker(name)
    scores = reranker.score(QUESTION, [FAR, NEAR])
    load_s = time.perf_counter() - start
    begin = time.perf_counter()
    reranker.score(QUESTION, [f"{NEAR}."])
    first_ms = 1e3 * (time.perf_counter() - begin)
    texts = [f"{NEAR} {number}" for number in range(10)]
    begin = time.perf_counter()
    reranker.score(QUESTION, texts)
    seconds = time.perf_counter() - begin
    if not scores[1] > scores[0]:
        raise ModelError(
            f"{name} scores a text about bread above one about passports for a question about passports "
            f"({scores[0]:.3f} against {scores[1]:.3f}). It was not trained to judge, or its files or its template are "
            "wrong: choose another model."
        )
    return reranker, load_s, first_ms, len(texts) / seconds, "passages/s"


def _try_generator(name: str, start: float) -> Trial:
    generator = open_generator(name)
    next(iter(generator.generate("Say hello.", max_new_tokens=1)), "")
    load_s = time.perf_counter() - start
    begin = time.perf_counter()
    marks: list[float] = []
    words = ""
    for piece in generator.generate(QUESTION, max_new_tokens=24):
        marks.append(time.perf_counter())
        words += piece
    if not words.strip():
        raise ModelError(f"{name} writes nothing. Its files or its template are wrong: choose another model.")
    speed = (len(marks) - 1) / (marks[-1] - marks[0]) if len(marks) > 1 else 0.0
    return generator, load_s, 1e3 * (marks[0] - begin), speed, "tokens/s"


def _try_image_text(name: str, start: float) -> Trial:
    """A drawn disc and its name: vectors of the promised shape, and how many pictures a second."""
    from qmd.llm.image_text import open_image_text
    from qmd.llm.pictures import has_pillow

    if not has_pillow():
        raise MissingExtra("looking at pictures", "images")
    from PIL import Image, ImageDraw

    model = open_image_text(name)
    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).ellipse((16, 16, 112, 112), fill="red")
    row = model.embed_images([picture])[0]
    load_s = time.perf_counter() - start
    begin = time.perf_counter()
    words = model.embed_query("red circle")
    first_ms = 1e3 * (time.perf_counter() - begin)
    begin = time.perf_counter()
    model.embed_images([picture] * 8)
    seconds = time.perf_counter() - begin
    if row.shape != (model.dim,) or not np.isfinite(row).all() or not np.isfinite(words).all():
        raise ModelError(f"{name} gives vectors of shape {row.shape}, expected ({model.dim},).")
    return model, load_s, first_ms, 8 / seconds, "pictures/s"


_TRIALS = {
    "reranker": _try_reranker,
    "generation": _try_generator,
    "image": _try_image_text,
}


def _own_gpu() -> int | None:
    held = [gpu.own_bytes for gpu in gpus() if gpu.own_bytes is not None]
    return sum(held) if held else None
