"""Every loss learns from data of its form, and says what is missing where the data has another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from qmd.vembed.config import TrainConfig
from qmd.vembed.data import DataError
from qmd.vembed.run import train

LOSSES: list[tuple[str, str, dict[str, object]]] = [
    ("text", "infonce", {"hardness_weight": 5.0}),
    ("text", "infonce", {"false_negative_margin": 0.05}),
    ("clip", "infonce", {"false_negative_margin": 0.05, "use_gradient_cache": "true"}),
    ("text", "symmetric_infonce", {}),
    ("text", "cosent", {}),
    ("text", "triplet", {}),
    ("clip", "sigmoid", {}),
    ("text", "distillation", {}),
]


def scored(folder: Path, source: Path, loss: str) -> Path:
    """The sixteen pairs of texts with two negatives and the scores that a loss wants."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    if loss == "cosent":
        wrong = [{"query": row["query"], "positive": row["negatives"][0], "score": 0.2} for row in rows]
        rows = [{"query": r["query"], "positive": r["positive"], "score": 1.0} for r in rows] + wrong
    elif loss == "distillation":
        rows = [row | {"score": [0.9, 0.3, 0.1]} for row in rows]
    path = folder / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("family", "loss", "options"), LOSSES, ids=[f"{f}-{n}-{len(o)}" for f, n, o in LOSSES]
)
def test_every_loss_learns(
    configure: Callable[..., TrainConfig],
    pairs_of: Callable[[str], Path],
    tmp_path: Path,
    family: str,
    loss: str,
    options: dict[str, object],
) -> None:
    mode = "t2i" if family == "clip" else "t2t"
    data = pairs_of("t2i") if family == "clip" else scored(tmp_path, pairs_of("rerank"), loss)
    config = configure(
        family,
        mode,
        data_path=data,
        loss_type=loss,
        epochs=12,
        learning_rate="3e-3",
        save_steps=1000,
        **options,
    )
    train(config)
    history = json.loads((Path(config.output_dir) / "curve.json").read_text())
    curve = [row["loss"] for row in history if "loss" in row]
    assert np.isfinite(curve).all()
    assert np.mean(curve[-3:]) < 0.9 * curve[0]


@pytest.mark.parametrize(
    ("loss", "says"), [("triplet", "negative"), ("cosent", "one number"), ("distillation", "negative")]
)
def test_what_a_loss_needs_is_said_with_the_line(
    configure: Callable[..., TrainConfig], loss: str, says: str
) -> None:
    with pytest.raises(DataError, match=f"line 1: .*{says}"):
        train(configure("text", "t2t", loss_type=loss))
