"""Make training pairs from what people have: product records, and folders of images with captions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from qmd.vembed.data import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def pairs_of_products(records: Iterable[Mapping[str, object]]) -> Iterator[dict[str, str]]:
    """Two t2i lines a product: its title, and its attributes as one sentence.

    A record has `title`, `image` and optionally `attributes`, a mapping such as {"colour": "red", "size": "M"}
    or a list of words. Raises DataError naming the record, from 1.
    """
    for number, record in enumerate(records, 1):
        title, image = record.get("title"), record.get("image")
        if not isinstance(title, str) or not title.strip() or not isinstance(image, str) or not image.strip():
            raise DataError(f"product {number}: title and image must be non-empty strings.")
        yield {"query": title.strip(), "positive": image, "mode": "t2i"}
        attributes = record.get("attributes")
        if isinstance(attributes, Mapping):
            words = [f"{key}: {value}" for key, value in attributes.items() if value not in (None, "")]
        elif isinstance(attributes, list):
            words = [str(word) for word in attributes if str(word).strip()]
        elif attributes is None:
            words = []
        else:
            raise DataError(f"product {number}: attributes must be a mapping or a list, not {attributes!r}.")
        if words:
            yield {"query": ", ".join(words), "positive": image, "mode": "t2i"}


def pairs_of_image_folder(folder: str | Path) -> Iterator[dict[str, str]]:
    """A t2i line for every caption of every image, paths relative to `folder`.

    Captions come from `metadata.jsonl` or `metadata.csv` (columns `file_name` and `text`) in the folder, else from a
    text file beside each image (`cat.jpg`, `cat.txt`; a line, a caption). Images without a caption are left out. Raises
    DataError where a caption names no file, and where there is none at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}.")
    found = False
    for name, text in _captions(folder):
        found = True
        yield {"query": text, "positive": name, "mode": "t2i"}
    if not found:
        raise DataError(
            f"{folder} holds no captions: expected metadata.jsonl, metadata.csv, or a .txt file beside each image."
        )


def write_pairs(rows: Iterable[Mapping[str, object]], path: str | Path) -> int:
    """Write JSONL lines; returns how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _captions(folder: Path) -> Iterator[tuple[str, str]]:
    table = next(
        (folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()), None
    )
    if table is not None:
        for line, row in _table_rows(table):
            name, text = row.get("file_name"), row.get("text")
            if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
                raise DataError(f"{table}, line {line}: file_name and text are expected.")
            if not (folder / name).is_file():
                raise DataError(f"{table}, line {line}: no image at {folder / name}.")
            yield name, text.strip()
        return
    for image in sorted(folder.rglob("*")):
        if image.suffix.lower() in IMAGE_SUFFIXES and (beside := image.with_suffix(".txt")).is_file():
            for text in beside.read_text(encoding="utf-8").splitlines():
                if text.strip():
                    yield image.relative_to(folder).as_posix(), text.strip()


def _table_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, row
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object.")
            yield number, row
