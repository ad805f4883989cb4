"""A run's curves and a table of figures as SVG, which every browser and Markdown page shows. No library is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmd.vembed.evaluation.lists import ListRow
    from qmd.vembed.evaluation.metrics import Interval
    from qmd.vembed.evaluation.report import Row

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 60, 40, 50
COLOURS = ("#0b6fb8", "#d1590b", "#2c8a3d", "#8d4bb0", "#b02a37", "#6b6b6b")
RECALLS = ("recall@1", "recall@5", "recall@10")
Point = tuple[float, float]


def curve_svg(history: Sequence[Mapping[str, float]], *, metric: str | None = None) -> str:
    """Loss over steps, and the validation's `metric` (0 to 1, on the right) where there was one.

    history: the trainer's log, as `curve.json` keeps it; values that are not finite are left out.
    """
    loss = _points(history, "loss")
    scores = _points(history, f"eval_{metric}") if metric else []
    last = max((x for x, _ in (*loss, *scores)), default=1.0) or 1.0
    top = _ceiling(max((y for _, y in loss), default=1.0))
    body = [*_frame("Training"), *_ticks(top, last)]
    for points, height, colour, side in ((loss, top, COLOURS[0], "loss"), (scores, 1.0, COLOURS[1], metric)):
        if not points:
            continue
        placed = [(_x(x / last), _y(y / height)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in placed[-1:]]
        right = side == metric
        at, anchor = (WIDTH - RIGHT, "end") if right else (LEFT, "start")
        body.append(_text(at, TOP - 12, str(side), colour=colour, anchor=anchor))
    if scores:
        body += [
            _text(WIDTH - RIGHT + 8, _y(part) + 4, f"{part:.1f}", anchor="start") for part in (0, 0.5, 1)
        ]
    return _svg(body)


def table_svg(rows: Sequence[Row | ListRow]) -> str:
    """Bars of R@1, R@5 and R@10 (of nDCG@10 and MRR for rerankers), a group a row, with 95% intervals."""
    groups = list(_groups(rows))
    body = [*_frame("Evaluation"), *_ticks(100.0, None)]
    room = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    names = list(dict.fromkeys(name for _, bars in groups for name, _, _ in bars))
    for place, (label, bars) in enumerate(groups):
        wide = room * 0.8 / len(bars)
        for number, (name, value, interval) in enumerate(bars):
            x, y = LEFT + room * (place + 0.1) + wide * number, _y(value)
            colour = COLOURS[names.index(name) % len(COLOURS)]
            body.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide * 0.9:.1f}" height="{_y(0) - y:.1f}" fill="{colour}">'
                f"<title>{escape(label)}: {escape(name)} {100 * value:.1f}</title></rect>"
            )
            if interval is not None:
                middle = x + wide * 0.45
                body.append(
                    f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{_y(interval.low):.1f}" '
                    f'y2="{_y(interval.high):.1f}" stroke="#222"/>'
                )
        body.append(_text(LEFT + room * (place + 0.5), HEIGHT - BOTTOM + 18, label, anchor="middle", size=11))
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        body.append(_text(LEFT + 90 * number, HEIGHT - 10, name, colour=colour))
    return _svg(body)


def _groups(
    rows: Sequence[Row | ListRow],
) -> Iterator[tuple[str, list[tuple[str, float, Interval | None]]]]:
    from qmd.vembed.evaluation.report import Row

    for row in rows:
        if isinstance(row, Row):
            name = f"{row.model} ({row.control})" if row.control else row.model
            bars = [(key, row.metrics[key], row.intervals.get(key)) for key in RECALLS]
            yield f"{name}, {row.mode}, {row.dim}", bars
        else:
            yield row.model, [("nDCG@10", row.ndcg.value, row.ndcg), ("MRR", row.mrr.value, row.mrr)]


def _points(history: Sequence[Mapping[str, float]], key: str) -> list[Point]:
    found = [(float(row["step"]), float(row[key])) for row in history if key in row and "step" in row]
    return [(x, y) for x, y in found if math.isfinite(y)]


def _ceiling(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 ... above a value."""
    if value <= 0:
        return 1.0
    ten = 10.0 ** math.floor(math.log10(value))
    return next(step * ten for step in (1, 2, 5, 10) if step * ten >= value)


def _frame(title: str) -> Iterator[str]:
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    yield _text(WIDTH / 2, 20, title, anchor="middle", size=15)


def _ticks(top: float, last: float | None) -> Iterator[str]:
    """Lines at quarters of the height; steps below, where `last` says how many there were."""
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(part)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield _text(LEFT - 8, y + 4, f"{part * top:g}", anchor="end")
        if last is not None:
            yield _text(_x(part), HEIGHT - BOTTOM + 18, f"{part * last:.0f}", anchor="middle")
    if last is not None:
        yield _text(_x(0.5), HEIGHT - 10, "step", anchor="middle")


def _x(part: float) -> float:
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def _y(part: float) -> float:
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)


def _text(
    x: float, y: float, words: str, *, colour: str = "#222", anchor: str = "start", size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(words)}</text>"
    )


def _svg(body: Sequence[str]) -> str:
    inside = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif">\n{inside}\n</svg>\n'
    )
