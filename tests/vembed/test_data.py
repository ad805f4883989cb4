"""Training data: each mode's form, each fault named with file and line."""

import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from qmd.vembed.data import DataError, Item, read_pairs


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(root / name)
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    Image.effect_noise((64, 64), 90).save(root / "whole.jpg")
    (root / "cut.jpg").write_bytes((root / "whole.jpg").read_bytes()[:-900])
    for kind in ("ppm", "ico", "tga"):
        Image.new("RGB", (20, 20)).save(root / f"a.{kind}")
    Image.new("1", (9000, 8000)).save(root / "large.png")
    (root / "short.png").write_bytes(short_png())
    return root


def short_png() -> bytes:
    """Every checksum right, and too few pixels."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 20, 20, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 30)))
    written = b"\x89PNG\r\n\x1a\n"
    for name, data in (*parts, (b"IEND", b"")):
        written += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return written


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_modes_of_the_specification(tmp_path: Path, images: Path) -> None:
    path = write(
        tmp_path / "pairs.jsonl",
        {"query": "a red dress", "positive": "a.png", "mode": "t2i"},
        {"query": "a.png", "positive": "a red dress", "mode": "i2t"},
        {"query": "change to blue", "query_image": "a.png", "positive": "b.png", "mode": "m2i"},
        {"query": "q", "positive": "p", "negatives": ["n", "m"], "mode": "t2t"},
        {"query": "a.png", "positive": "b.png", "mode": "i2i"},
    )
    pairs = read_pairs(path, retrieval_mode="t2i", image_root=images).pairs
    assert [pair.mode for pair in pairs] == ["t2i", "i2t", "m2i", "t2t", "i2i"]
    assert pairs[0].positive == Item(image=images / "a.png")
    assert pairs[1].query == Item(image=images / "a.png")
    assert pairs[2].query == Item("change to blue", images / "a.png")
    assert pairs[3].negatives == (Item("n"), Item("m"))


def test_text_with_a_slash_is_text(tmp_path: Path, images: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", {"query": "images/a.png or w/o sleeves", "positive": "a.png"})
    pair = read_pairs(path, retrieval_mode="t2i", image_root=images).pairs[0]
    assert pair.query == Item("images/a.png or w/o sleeves")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"query": "x", "positive": "missing.png"}, "no image at"),
        ({"query": "x", "positive": "broken.png"}, "cannot read image"),
        ({"query": "x", "positive": "cut.jpg"}, "cannot read image"),
        ({"query": "x", "positive": "a.png", "score": "near"}, "score must be a number"),
        ({"query": "", "positive": "a.png"}, "query is missing"),
        ({"query": "x"}, "positive is missing"),
        ({"query": "x", "positive": "a.png", "postive": "b.png"}, "unknown key 'postive'"),
        ({"query": "x", "positive": "a.png", "mode": "v2i"}, "mode is 'v2i'"),
        ({"query": "x", "positive": "a.png", "mode": "m2i"}, "query_image is missing"),
        ({"query": "x", "positive": "a.png", "query_image": "b.png"}, "belongs to mode m2i"),
        ({"query": "x", "positive": "a.png", "negatives": [3]}, "negatives must be"),
        ({"query": 5, "positive": "a.png"}, "query must be a string"),
        ({"query": "x", "positive": "a.png", "negative": "b.png", "negatives": ["b.png"]}, "not both"),
        *(({"query": "x", "positive": f"a.{kind}"}, "cannot read image") for kind in ("ppm", "ico", "tga")),
        ({"query": "x", "positive": "large.png"}, "too many pixels"),
        ({"query": "x", "positive": "short.png"}, "cannot read image"),
        (["x", "a.png"], "expected an object"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, images: Path, row: object, says: str) -> None:
    good = {"query": "fine", "positive": "a.png"}
    path = write(tmp_path / "pairs.jsonl", good, row)
    with pytest.raises(DataError, match=rf"pairs\.jsonl, line 2: .*{says}"):
        read_pairs(path, retrieval_mode="t2i", image_root=images)
    counted = read_pairs(path, retrieval_mode="t2i", image_root=images, skip_bad=True)
    assert (len(counted.pairs), len(counted.skipped)) == (1, 1)


def test_csv_and_parquet_give_the_same_pairs(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"query": "如何, 分配?", "positive": 'a "b"'}, {"query": "q", "positive": "p"}]
    jsonl = write(tmp_path / "pairs.jsonl", *rows)
    (tmp_path / "pairs.csv").write_text('query,positive\n"如何, 分配?","a ""b"""\nq,p\n', encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    sets = [
        read_pairs(path, retrieval_mode="t2t").pairs
        for path in (jsonl, tmp_path / "pairs.csv", tmp_path / "pairs.parquet")
    ]
    sides = [[(pair.query, pair.positive) for pair in pairs] for pairs in sets]
    assert sides[0] == sides[1] == sides[2]


GOOD = b'{"query": "a", "positive": "b"}\n'


@pytest.mark.parametrize(
    "line",
    [
        b'{"query": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"query": "a", "positive": "b", "score": ' + b"1" * 5000 + b"}",
        b'{"query": "a", "positive": "b", "score": ' + b"1" * 400 + b"}",
        b'{"query": "a\\ud800", "positive": "b"}',
    ],
    ids=["nested", "too many digits", "beyond a float", "half a character"],
)
def test_lines_that_break_the_parser_are_left_out(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(GOOD + line + b"\n")
    found = read_pairs(tmp_path / "pairs.jsonl", retrieval_mode="t2t", skip_bad=True)
    assert (len(found.pairs), len(found.skipped)) == (1, 1)
    assert "line 2" in found.skipped[0]


def test_null_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    row = {"query": "a", "positive": "b", "negatives": None, "query_image": None, "mode": None, "score": None}
    [pair] = read_pairs(write(tmp_path / "pairs.jsonl", row), retrieval_mode="t2t").pairs
    assert (pair.mode, pair.negatives, pair.scores) == ("t2t", (), ())


def test_tables_of_long_texts_and_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(b"query,positive\na," + b"b" * 200_000 + b"\nc,caf\xe9\n")
    found = read_pairs(path, retrieval_mode="t2t", skip_bad=True)
    assert [len(pair.positive.text or "") for pair in found.pairs] == [200_000]
    assert "line 3: positive must be a string in UTF-8" in found.skipped[0]


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "pairs.parquet").write_bytes(b"nope")
    with pytest.raises(DataError, match=r"pairs\.parquet"):
        read_pairs(tmp_path / "pairs.parquet", retrieval_mode="t2t", skip_bad=True)


def test_a_file_without_a_usable_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file"):
        read_pairs(tmp_path / "none.jsonl", retrieval_mode="t2t")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no usable pair"):
        read_pairs(tmp_path / "empty.jsonl", retrieval_mode="t2t")
