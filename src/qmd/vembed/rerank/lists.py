"""Candidate lists: a query, what answers it, what does not. Made of the same pairs that embedding models learn from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from qmd.vembed.data import DataError, Pair


@dataclass(frozen=True, slots=True)
class CandidateList:
    """One query with its candidates. No text stands on both sides. `line` is where the query first occurs."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    line: int


def candidate_lists(pairs: Sequence[Pair]) -> list[CandidateList]:
    """Equal queries are one list with several positives; a negative that is a positive of the query is dropped.

    Raises DataError for a pair that is not of texts.
    """
    found: dict[str, tuple[dict[str, None], dict[str, None], int]] = {}
    for pair in pairs:
        if pair.mode != "t2t" or pair.query.text is None or pair.positive.text is None:
            raise DataError(f"line {pair.line}: a reranker reads texts (mode t2t), not {pair.mode}.")
        right, wrong, _ = found.setdefault(pair.query.text, ({}, {}, pair.line))
        right[pair.positive.text] = None
        wrong.update(dict.fromkeys(item.text for item in pair.negatives if item.text))
    return [
        CandidateList(query, tuple(right), tuple(text for text in wrong if text not in right), line)
        for query, (right, wrong, line) in found.items()
    ]


def training_rows(
    lists: Sequence[CandidateList], *, negatives: int, seed: int
) -> list[tuple[str, list[str], list[int]]]:
    """(query, texts, 1 or 0 for each) for every positive, with the same number of negatives in each row.

    Where a query has too few of its own, positives of other queries, drawn at random, fill the row: easy, but wrong.
    Raises DataError where the data has too few texts for that.
    """
    draw = random.Random(seed)
    pool = list(dict.fromkeys(text for row in lists for text in row.positives))
    rows: list[tuple[str, list[str], list[int]]] = []
    for row in lists:
        for positive in row.positives:
            chosen = draw.sample(row.negatives, min(negatives, len(row.negatives)))
            taken = {*row.positives, *chosen}
            if len(pool) - len(taken & {*pool}) < negatives - len(chosen):
                raise DataError(
                    f"line {row.line}: {negatives} negatives are asked for (num_negatives), the query has "
                    f"{len(row.negatives)} and the data no more texts to draw from."
                )
            while len(chosen) < negatives:
                if (text := draw.choice(pool)) not in taken:
                    chosen.append(text)
                    taken.add(text)
            rows.append((row.query, [positive, *chosen], [1] + [0] * negatives))
    return rows
