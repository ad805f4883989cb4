"""Tables and plots of figures: intervals, models side by side, and pictures that show the numbers they were given."""

from __future__ import annotations

import xml.etree.ElementTree as Tree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from qmd.vembed import compare_models
from qmd.vembed.evaluation.lists import ListRow
from qmd.vembed.evaluation.metrics import Interval, compute_recall_at_k, recalls_at_k
from qmd.vembed.evaluation.plot import HEIGHT, WIDTH, curve_svg, table_svg
from qmd.vembed.evaluation.report import Row, table_lines

SVG = "{http://www.w3.org/2000/svg}"


def test_recall_of_each_query_and_its_mean() -> None:
    similarities = np.array([[0.9, 0.1, 0.3], [0.8, 0.7, 0.1], [0.2, 0.4, 0.3]])
    np.testing.assert_array_equal(recalls_at_k(similarities, 1), [1, 0, 0])
    np.testing.assert_array_equal(recalls_at_k(similarities, 2), [1, 1, 1])
    assert compute_recall_at_k(similarities, 1) == pytest.approx(1 / 3)


def test_a_table_says_how_sure_it_is() -> None:
    metrics = {"recall@1": 0.5, "recall@5": 0.75, "recall@10": 1.0, "mrr": 0.625, "ndcg@10": 0.7}
    row = Row("LoRA", "t2i", 64, 8, metrics, "text only", {"recall@1": Interval(0.5, 0.25, 0.75)})
    *_, line = table_lines([row])
    assert line == "| LoRA (text only) | t2i | 64 | 8 | 50.0 (25.0 to 75.0) | 75.0 | 100.0 | 0.625 | 70.0 |"


def test_models_side_by_side(
    tiny: Callable[[str], str], pairs_of: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = compare_models(
        {"CLIP": tiny("clip"), "SigLIP <zero-shot>": tiny("siglip")},
        pairs_of("t2i"),
        retrieval_mode="t2i",
        dims=[16],
        output_dir=tmp_path,
    )
    assert [(row.model, row.dim) for row in rows] == [
        ("CLIP", 48),
        ("CLIP", 16),
        ("SigLIP <zero-shot>", 48),
        ("SigLIP <zero-shot>", 16),
    ]
    for row in rows:
        interval = row.intervals["recall@5"]
        assert interval.low <= interval.value == pytest.approx(row.metrics["recall@5"])
        assert interval.value <= interval.high
    assert (tmp_path / "evaluation.md").read_text().count("\n") == 6
    words = [e.text for e in Tree.parse(tmp_path / "evaluation.svg").iter(f"{SVG}text")]
    assert "SigLIP <zero-shot>, t2i, 16" in words


def test_bars_are_as_high_as_their_figures() -> None:
    def row(name: str, value: float) -> ListRow:
        at = Interval(value, value - 0.1, value + 0.1)
        return ListRow(name, 10, 20.0, at, at)

    bars = list(Tree.fromstring(table_svg([row("before", 0.25), row("after", 0.5)])).iter(f"{SVG}rect"))[1:]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert len(heights) == 4
    assert heights[2] == pytest.approx(2 * heights[0], rel=0.01)
    lefts = [float(bar.attrib["x"]) for bar in bars]
    assert lefts == sorted(lefts)
    assert lefts[-1] + float(bars[-1].attrib["width"]) < WIDTH


def test_a_curve_falls_where_the_loss_falls() -> None:
    history = [{"step": s, "loss": loss} for s, loss in ((1, 3.0), (10, 1.0), (20, 0.5))]
    history += [{"step": 10, "eval_recall@1": 0.5}, {"step": 20, "eval_recall@1": float("nan")}]
    tree = Tree.fromstring(curve_svg(history, metric="recall@1"))
    loss, recall = (line.attrib["points"].split() for line in tree.iter(f"{SVG}polyline"))
    ys = [float(point.split(",")[1]) for point in loss]
    assert ys == sorted(ys)  # SVG counts downwards
    assert 0 < ys[0] < ys[-1] < HEIGHT
    assert len(recall) == 1
    assert "</svg>" in curve_svg([], metric=None)
