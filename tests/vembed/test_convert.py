"""Converters give lines that `read_pairs` reads."""

import json
from pathlib import Path

import pytest
from PIL import Image

from qmd.vembed.convert import pairs_of_image_folder, pairs_of_products, write_pairs
from qmd.vembed.data import DataError, read_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("dress.png", "cat.png", "uncaptioned.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def test_a_product_gives_two_lines(folder: Path) -> None:
    records = [
        {
            "title": "Summer dress",
            "image": "dress.png",
            "attributes": {"colour": "red", "cut": "short", "size": ""},
        },
        {"title": "Cat", "image": "cat.png", "attributes": ["grey", "small"]},
        {"title": "Plain", "image": "cat.png"},
    ]
    assert write_pairs(pairs_of_products(records), folder / "pairs.jsonl") == 5
    pairs = read_pairs(folder / "pairs.jsonl", retrieval_mode="i2t").pairs
    assert [pair.query.text for pair in pairs] == [
        "Summer dress",
        "colour: red, cut: short",
        "Cat",
        "grey, small",
        "Plain",
    ]
    assert pairs[1].positive.image == folder / "dress.png"


@pytest.mark.parametrize(
    "record", [{"title": "x"}, {"title": " ", "image": "a"}, {"title": "x", "image": "a", "attributes": 3}]
)
def test_a_product_that_says_too_little_is_named(record: dict[str, object]) -> None:
    with pytest.raises(DataError, match="product 2"):
        list(pairs_of_products([{"title": "x", "image": "y"}, record]))


def test_captions_beside_the_images(folder: Path) -> None:
    (folder / "cat.txt").write_text("a grey cat\n\na cat asleep\n")
    assert [(row["query"], row["positive"]) for row in pairs_of_image_folder(folder)] == [
        ("a grey cat", "cat.png"),
        ("a cat asleep", "cat.png"),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_in_a_table(folder: Path, kind: str) -> None:
    row = {"file_name": "cat.png", "text": "a cat, grey"}
    text = json.dumps(row) if kind == "jsonl" else 'file_name,text\ncat.png,"a cat, grey"\n'
    (folder / f"metadata.{kind}").write_text(text)
    assert [row["query"] for row in pairs_of_image_folder(folder)] == ["a cat, grey"]
    (folder / f"metadata.{kind}").write_text(text.replace("cat.png", "gone.png"))
    with pytest.raises(DataError, match=r"line \d: no image"):
        list(pairs_of_image_folder(folder))


def test_a_folder_without_captions_is_said(folder: Path) -> None:
    with pytest.raises(DataError, match="no captions"):
        list(pairs_of_image_folder(folder))
