"""Tables of retrieval figures: models side by side, per mode, per Matryoshka size, m2i with its controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qmd.vembed.config import RetrievalMode
from qmd.vembed.data import Item, Pair, read_pairs
from qmd.vembed.evaluation.metrics import Interval, bootstrap, recalls_at_k

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from qmd.vembed.evaluation.lists import ListRow
    from qmd.vembed.run import TrainReport

METRICS = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")
TABLE, PLOT = "evaluation.md", "evaluation.svg"


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one model on the pairs of one mode at one vector size. `control` says what was hidden from it;
    `intervals` are those of the recalls, 95% by bootstrap over the queries."""

    model: str
    mode: str
    dim: int
    queries: int
    metrics: Mapping[str, float]
    control: str = ""
    intervals: Mapping[str, Interval] = field(default_factory=dict)


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
                intervals = {
                    f"recall@{k}": bootstrap(recalls_at_k(similarities, k, relevant)) for k in (1, 5, 10)
                }
                rows.append(Row(name, mode, dim, len(similarities), metrics, control, intervals))
    return rows


def compare_models(
    models: Mapping[str, str | Path],
    data_path: str | Path,
    *,
    retrieval_mode: RetrievalMode,
    image_root: str | Path | None = None,
    dims: Sequence[int] = (),
    output_dir: str | Path | None = None,
    batch_size: int = 32,
) -> list[Row]:
    """Models side by side on the same pairs: name in the table -> trained folder, or a model that was never trained.

    With `output_dir` the table is left there as Markdown and as a plot. Raises DataError, ModelError.
    """
    from qmd.vembed.model.assemble import open_model

    pairs = read_pairs(data_path, retrieval_mode=retrieval_mode, image_root=image_root).pairs
    rows: list[Row] = []
    for name, place in models.items():
        model = open_model(place).eval()
        rows += evaluate_pairs(model, pairs, name=name, dims=dims, batch_size=batch_size)
    if output_dir is not None:
        write_tables(Path(output_dir), rows)
    return rows


def write_tables(folder: Path, rows: Sequence[Row | ListRow]) -> None:
    """The figures of a run as Markdown and as a plot."""
    from qmd.vembed.evaluation.plot import table_svg

    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{line}\n" for line in rows_as_table(rows))
    (folder / TABLE).write_text(lines, encoding="utf-8")
    (folder / PLOT).write_text(table_svg(rows), encoding="utf-8")


def rows_as_table(rows: Sequence[Row | ListRow]) -> Iterator[str]:
    """A Markdown table of embedding models, of rerankers, or one after the other."""
    embedded = [row for row in rows if isinstance(row, Row)]
    listed = [row for row in rows if not isinstance(row, Row)]
    if embedded:
        yield from table_lines(embedded)
    if listed:
        from qmd.vembed.evaluation.lists import list_table

        yield from list_table(listed)


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table; recall and nDCG in percent, as retrieval papers print them; R@1 with its interval."""
    yield "| model | mode | dim | queries | R@1 | R@5 | R@10 | MRR | nDCG@10 |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        name = f"{row.model} ({row.control})" if row.control else row.model
        figures = " | ".join(
            f"{row.metrics[key]:.3f}" if key == "mrr" else f"{100 * row.metrics[key]:.1f}" for key in METRICS
        )
        if (first := row.intervals.get("recall@1")) is not None:
            spread = f" ({100 * first.low:.1f} to {100 * first.high:.1f})"
            figures = figures.replace(" |", f"{spread} |", 1)
        yield f"| {name} | {row.mode} | {row.dim} | {row.queries} | {figures} |"


def report_lines(report: TrainReport) -> Iterator[str]:
    """What a person reads after a run."""
    yield f"{report.steps} steps, mean loss {report.final_loss:.3f}. The model is in {report.output_dir}."
    if report.skipped:
        yield f"{len(report.skipped)} lines were left out, first: {report.skipped[0]}"
    yield from report.notes
    if report.rows:
        yield ""
        yield from rows_as_table(report.rows)
