"""Training pairs: read, typed and checked before a model is loaded. An error names the file and the line.

Which side is an image follows from the retrieval mode alone, never from how a string looks: text may hold
a "/".
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from qmd.errors import BadPicture, MissingExtra, QmdError
from qmd.llm.pictures import open_image
from qmd.vembed.config import RetrievalMode

_SIDES: Mapping[str, tuple[bool, bool]] = {  # mode -> (query is an image, positive is an image)
    "t2i": (False, True),
    "i2t": (True, False),
    "m2i": (False, True),
    "t2t": (False, False),
    "i2i": (True, True),
}
_KEYS = frozenset({"query", "query_image", "positive", "negative", "negatives", "mode", "score"})


class DataError(QmdError):
    """A line of training data cannot be used as it stands."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Item:
    """One side of a pair: text, an image, or both (a composed query)."""

    text: str | None = None
    image: Path | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A query, what it should find, and what it should not. `line` counts from 1 in the file it came from.

    scores: how near a person or a teacher puts the positive, then each negative, where the data says so."""

    query: Item
    positive: Item
    negatives: tuple[Item, ...]
    mode: RetrievalMode
    line: int
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PairSet:
    """What one data file gave. `fingerprint` is the digest of the file; `skipped` names the refused lines."""

    pairs: tuple[Pair, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()


def read_pairs(
    path: str | Path,
    *,
    retrieval_mode: RetrievalMode,
    image_root: str | Path | None = None,
    skip_bad: bool = False,
) -> PairSet:
    """Read JSONL, CSV, TSV or Parquet, one pair a line or row.

    Keys: `query`, `positive`, for m2i `query_image`, optionally `negative`/`negatives`, `score` (a number, or one for
    the positive and each negative) and `mode`, which overrides `retrieval_mode` for its line. Relative image paths
    start at `image_root`, or beside the file.
    Raises DataError at the first line that cannot be used; with `skip_bad` such lines stand in `skipped`.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    if not path.is_file():
        raise DataError(f"no data file at {path}.")
    pairs: list[Pair] = []
    skipped: list[str] = []
    checked: dict[Path, str | None] = {}
    for line, row in _rows(path):
        try:
            if isinstance(row, str):
                raise DataError(row)
            pair = _pair(row, line, retrieval_mode, root)
            for item in (pair.query, pair.positive, *pair.negatives):
                if item.image is not None and (fault := _image_fault(item.image, checked)):
                    raise DataError(fault)
        except DataError as error:
            fault = f"{path}, line {line}: {error}"
            if not skip_bad:
                raise DataError(f"{fault} (skip_bad: true leaves such lines out)") from error
            skipped.append(fault)
        else:
            pairs.append(pair)
    if not pairs:
        raise DataError(f"{path} has no usable pair ({len(skipped)} refused).")
    return PairSet(tuple(pairs), hashlib.sha256(path.read_bytes()).hexdigest(), tuple(skipped))


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, object] | str]]:
    """(line, row) for each row; a row that cannot be read at all is the fault as a string."""
    suffix = path.suffix.lower()
    if suffix in {".csv", ".tsv"}:
        csv.field_size_limit(2**31 - 1)  # a text may be long
        # Bytes that are not UTF-8 become halves of characters, which `_is_text` refuses on their line.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(
                file, delimiter="\t" if suffix == ".tsv" else ",", restkey="(more columns)"
            )
            for row in reader:
                yield reader.line_num, {key: value for key, value in row.items() if value != ""}
    elif suffix == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise MissingExtra("reading Parquet", "train") from error
        number = 0
        try:
            for batch in parquet.ParquetFile(path).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}, after row {number}: {error}") from error
    else:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                try:
                    row = json.loads(raw)
                except (ValueError, RecursionError) as error:
                    yield number, f"not valid JSON: {error}"
                    continue
                yield (
                    number,
                    row if isinstance(row, dict) else f"expected an object, found {type(row).__name__}",
                )


def _pair(row: Mapping[str, object], line: int, default_mode: RetrievalMode, root: Path) -> Pair:
    row = {key: value for key, value in row.items() if value is not None}
    if unknown := sorted(set(row) - _KEYS):
        raise DataError(f"unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
    mode = row.get("mode", default_mode)
    if mode not in get_args(RetrievalMode):
        raise DataError(f"mode is {mode!r}; known: {', '.join(get_args(RetrievalMode))}")
    query_is_image, positive_is_image = _SIDES[str(mode)]
    query = _item(_text(row, "query"), query_is_image, root)
    if mode == "m2i":
        query = Item(query.text, root / _text(row, "query_image"))
    elif "query_image" in row:
        raise DataError(f"query_image belongs to mode m2i, this line is {mode}")
    if "negative" in row and "negatives" in row:
        raise DataError("give negative or negatives, not both")
    given = row.get("negatives", row.get("negative", ()))
    negatives = [given] if isinstance(given, str) else given
    if not isinstance(negatives, Sequence) or not all(_is_text(n) for n in negatives):
        raise DataError("negatives must be a string or a list of non-empty strings")
    return Pair(
        query=query,
        positive=_item(_text(row, "positive"), positive_is_image, root),
        negatives=tuple(_item(negative, positive_is_image, root) for negative in negatives),
        mode=mode,  # type: ignore[arg-type]  # checked against the literal above
        line=line,
        scores=_scores(row.get("score", ())),
    )


def check_loss_fits(pairs: Sequence[Pair], loss_type: str) -> None:
    """Raises DataError, naming the line, where a loss needs what a pair does not have."""
    for pair in pairs:
        fault = ""
        if loss_type in ("triplet", "distillation") and not pair.negatives:
            fault = f"loss_type {loss_type} needs a negative"
        elif loss_type == "cosent" and len(pair.scores) != 1:
            fault = "loss_type cosent needs a score, one number"
        elif loss_type == "distillation" and len(pair.scores) != 1 + len(pair.negatives):
            fault = "loss_type distillation needs a score for the positive and for each negative"
        elif loss_type == "distillation" and len(pair.negatives) != len(pairs[0].negatives):
            fault = "loss_type distillation needs as many negatives on every line"
        if fault:
            raise DataError(f"line {pair.line}: {fault}.")


def check_model_fits(pairs: Sequence[Pair], *, supports: Callable[[Any], bool], mixes: bool) -> None:
    """Raises DataError, naming the line, where a model cannot take a pair: supports(kind) of "text", "image" or both in
    a tuple; mixes: one batch may hold several kinds."""
    first: dict[int, tuple[Pair, Any]] = {}
    for pair in pairs:
        for side, item in enumerate((pair.query, pair.positive)):
            kind = ("image", "text") if item.text and item.image else "image" if item.image else "text"
            if not supports(kind):
                wanted = kind if isinstance(kind, str) else "text and image together"
                raise DataError(
                    f"line {pair.line}: mode {pair.mode} has {wanted}, which this model does not take."
                )
            known, before = first.setdefault(side, (pair, kind))
            if kind != before and not mixes:
                raise DataError(
                    f"line {pair.line} is {pair.mode} and line {known.line} is {known.mode}: this model takes lines of "
                    "one kind in a run."
                )


def _scores(value: object) -> tuple[float, ...]:
    given: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    try:
        scores = tuple(float(one) for one in given)
    except (TypeError, ValueError, OverflowError):
        scores = (math.nan,)
    if not all(math.isfinite(score) for score in scores):
        raise DataError("score must be a number or a list of numbers")
    return scores


def _item(value: str, is_image: bool, root: Path) -> Item:
    return Item(image=root / value) if is_image else Item(text=value)


def _text(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if not _is_text(value):
        raise DataError(f"{key} is missing or empty" if not value else f"{key} must be a string in UTF-8")
    return str(value)


def _is_text(value: object) -> bool:
    """Whether it is a string that says something, and whole characters."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def _image_fault(path: Path, checked: dict[Path, str | None]) -> str | None:
    """Why an image cannot be used, or None. Each file is opened once."""
    if path not in checked:
        try:
            open_image(path)
            checked[path] = None
        except FileNotFoundError:
            checked[path] = f"no image at {path}"
        except (BadPicture, OSError) as error:
            checked[path] = f"cannot read image {path}: {error}"
    return checked[path]
