"""Tables of retrieval figures: models side by side, per mode, per Matryoshka size, m2i with its controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qmd.vembed.data import Item, Pair

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from qmd.vembed.run import TrainReport

METRICS = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one model on the pairs of one mode at one vector size. `control` says what was hidden from it."""

    model: str
    mode: str
    dim: int
    queries: int
    metrics: Mapping[str, float]
    control: str = ""


def evaluate_pairs(
    model: SentenceTransformer,
    pairs: Sequence[Pair],
    *,
    name: str,
    dims: Sequence[int] = (),
    batch_size: int = 32,
) -> list[Row]:
    """A row for every mode and size; for m2i also the controls that see only the image, or only the text.

    A composed query is understood only as far as it beats both controls.
    """
    from qmd.vembed.evaluation.evaluator import pair_similarities, ranking_metrics

    full = int(model.get_embedding_dimension() or 0)
    sizes = sorted({full, *(dim for dim in dims if dim <= full)}, reverse=True)
    rows = []
    for mode in dict.fromkeys(pair.mode for pair in pairs):
        part = [pair for pair in pairs if pair.mode == mode]
        views = [("", part, sizes)]
        if mode == "m2i":
            image = [replace(pair, query=Item(image=pair.query.image)) for pair in part]
            text = [replace(pair, query=Item(pair.query.text)) for pair in part]
            views += [("image only", image, sizes[:1]), ("text only", text, sizes[:1])]
        for control, seen, wanted in views:
            for dim in wanted:
                similarities, relevant = pair_similarities(model, seen, batch_size=batch_size, dim=dim)
                metrics = ranking_metrics(similarities, relevant)
                rows.append(Row(name, mode, dim, len(similarities), metrics, control))
    return rows


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table; recall and nDCG in percent, as retrieval papers print them."""
    yield "| model | mode | dim | queries | R@1 | R@5 | R@10 | MRR | nDCG@10 |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        name = f"{row.model} ({row.control})" if row.control else row.model
        figures = " | ".join(
            f"{row.metrics[key]:.3f}" if key == "mrr" else f"{100 * row.metrics[key]:.1f}" for key in METRICS
        )
        yield f"| {name} | {row.mode} | {row.dim} | {row.queries} | {figures} |"


def report_lines(report: TrainReport) -> Iterator[str]:
    """What a person reads after a run."""
    yield f"{report.steps} steps, mean loss {report.final_loss:.3f}. The model is in {report.output_dir}."
    if report.skipped:
        yield f"{len(report.skipped)} lines were left out, first: {report.skipped[0]}"
    embedded = [row for row in report.rows if isinstance(row, Row)]
    listed = [row for row in report.rows if not isinstance(row, Row)]
    if embedded:
        yield ""
        yield from table_lines(embedded)
    if listed:
        from qmd.vembed.evaluation.lists import list_table

        yield ""
        yield from list_table(listed)
