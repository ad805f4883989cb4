"""Pictures become documents: headers read, words gathered, bad files refused and counted."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from PIL import Image

from qmd.config import Config, Ingest
from qmd.errors import BadPicture
from qmd.ingest.captions import write_captions
from qmd.ingest.formats.picture import read_picture, words_of_name
from qmd.ingest.look import LookReport, look_at_pictures
from qmd.ingest.run import update
from qmd.llm.pictures import MOST_PIXELS, open_image, read_facts
from qmd.store import Store
from qmd.types import Collection, Document

if TYPE_CHECKING:
    from qmd.llm.image_text import ImageTextModel


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "tomato").save(out, kind, **options)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG whose header says 60,000 x 60,000, in a few bytes."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + part(b"IDAT", zlib.compress(b"\0" * 64))
        + part(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read_and_decoded(kind: str) -> None:
    data = encoded(kind)
    facts = read_facts(data)
    assert (facts.format, facts.width, facts.height) == (kind, 40, 30)
    assert open_image(data).size == (40, 30)


def test_of_an_animation_the_first_frame_counts() -> None:
    out = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    red, _, blue = open_image(out.getvalue()).getpixel((5, 5))
    assert red > 200 > 50 > blue


def test_words_come_from_the_name_and_from_exif() -> None:
    assert words_of_name("img/redApple_on-table.v2.png") == "red Apple on table v2"
    exif = Image.Exif()
    exif[0x010E] = "The old bridge at low water"
    exif[0x0112] = 6  # turned by a quarter
    exif.get_ifd(0x8769)[0x9003] = "2024:05:31 10:20:30"
    document = read_picture("IMG_0001.jpg", encoded("JPEG", exif=exif))
    assert isinstance(document, Document)
    assert document.type == "image"
    assert document.text == "IMG 0001\nThe old bridge at low water"
    assert document.date == "2024-05-31"
    assert (document.fields["width"], document.fields["height"]) == (30, 40)
    assert len(document.chunks) == 1


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"no picture at all", "no picture"),
        (encoded()[:-20], "damaged"),
        (bomb(), "too many pixels"),
        (b"%PDF-1.4 with the wrong ending", "no picture"),
    ],
)
def test_bad_files_are_refused_with_the_reason(data: bytes, why: str) -> None:
    skipped = read_picture("x.png", data)
    assert not isinstance(skipped, Document)
    assert why in skipped.reason


def test_a_jpeg_cut_short_is_refused_when_it_is_decoded() -> None:
    with pytest.raises(BadPicture, match="damaged"):
        open_image(encoded("JPEG", (400, 400))[:900])
    assert MOST_PIXELS < 60_000 * 60_000


@pytest.mark.parametrize("seed", range(6))
def test_damage_anywhere_is_refused_or_read_never_a_crash(seed: int) -> None:
    import random

    draw = random.Random(seed)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        for _ in range(12):
            data = bytearray(encoded(kind))
            for _ in range(draw.randint(1, 12)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            try:
                read_facts(bytes(data))
                open_image(bytes(data))
            except BadPicture:
                continue


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    (root / "img").mkdir(parents=True)
    (root / "img" / "p1.png").write_bytes(encoded())
    (root / "img" / "p2.jpg").write_bytes(encoded("JPEG"))
    (root / "broken.png").write_bytes(bomb())
    text = '# Travels\n\n## The bridge\n\nSee ![Low water in June](img/p1.png "From the quay")\n\n![[p2.jpg|300]]\n'
    (root / "a.md").write_text(text)
    return root


@pytest.fixture
def store(tmp_path: Path, notes: Path) -> Store:
    opened = Store.open(tmp_path / "index.sqlite")
    opened.add_collection(Collection("notes", str(notes)))
    return opened


def words(store: Store, path: str) -> str:
    document = store.find_document("notes", path)
    assert document is not None
    return document.text or ""


def test_an_update_indexes_pictures_with_what_notes_say(store: Store, notes: Path) -> None:
    report = update(store, "notes", Config())
    assert report.added == 3
    assert [(s.path, "too many pixels" in s.reason) for s in report.skipped] == [("broken.png", True)]
    assert words(store, "img/p1.png") == "p1\nLow water in June\nFrom the quay\nThe bridge"
    assert words(store, "img/p2.jpg") == "p2\nThe bridge"
    assert store.keyword.match("quay")  # the note's own line, and the picture's


def test_captions_follow_the_notes(store: Store, notes: Path) -> None:
    update(store, "notes", Config())
    before = store.find_document("notes", "img/p1.png")
    (notes / "a.md").write_text("# Travels\n\n![High water](img/p1.png)\n")
    update(store, "notes", Config())
    after = store.find_document("notes", "img/p1.png")
    assert after is not None
    assert before is not None
    assert (after.text, after.hash, after.docid) == ("p1\nHigh water\nTravels", before.hash, before.docid)
    assert words(store, "img/p2.jpg") == "p2"
    assert write_captions(store, "notes") == 0


def test_a_line_that_opens_thousands_of_links_is_read_at_once(store: Store, notes: Path) -> None:
    line = "![ok](img/p1.png) " + "![a](" * 4_000 + "[[a|" * 4_000
    (notes / "a.md").write_text(f"# wide{' ' * 3_000}heading\n\n{line}\n")
    update(store, "notes", Config())
    assert words(store, "img/p1.png").split("\n")[1] == "ok"


class Eye:
    """Looks at pictures: the mean of their colours."""

    fingerprint, dim = "eye", 3

    def pixels(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.convert("RGB"), np.float32).reshape(-1, 3).mean(axis=0)

    def embed_pixels(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
        return pixels


def look(store: Store) -> LookReport:
    return look_at_pictures(store, cast("ImageTextModel", Eye()), 1 << 20)


def test_a_picture_is_looked_at_by_any_of_its_names(store: Store, notes: Path) -> None:
    (notes / "A.png").symlink_to("z/ok.png")
    (notes / "z").mkdir()
    (notes / "z" / "ok.png").write_bytes(encoded(size=(7, 7)))
    (notes / "z" / "copy.png").write_bytes(encoded(size=(9, 9)))
    (notes / "z" / "same.png").write_bytes(encoded(size=(9, 9)))
    config = Config(ingest=Ingest(follow_symlinks=True))
    assert update(store, "notes", config).added == 7
    (notes / "z" / "copy.png").unlink()
    report = look(store)
    assert (report.embedded, report.remaining) == (4, 0)


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_a_picture_whose_name_is_no_utf8_is_looked_at(store: Store, notes: Path) -> None:
    with open(os.fsencode(notes) + b"/caf\xe9.png", "wb") as file:
        file.write(encoded(size=(7, 7)))
    update(store, "notes", Config())
    report = look(store)
    assert (report.embedded, report.remaining) == (3, 0)


def test_removal_and_the_switch(store: Store, notes: Path) -> None:
    update(store, "notes", Config())
    (notes / "img" / "p2.jpg").unlink()
    assert update(store, "notes", Config()).removed == 1
    report = update(store, "notes", Config(ingest=Ingest(images=False)))
    assert report.removed == 1
    assert {s.reason for s in report.skipped} == {"binary: by its name"}
    assert not store.pictures.any()


def test_without_pillow_pictures_are_skipped_and_the_remedy_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmd.ingest.run.find_spec", lambda name: None)
    report = update(store, "notes", Config())
    assert report.added == 1
    assert {s.reason for s in report.skipped} == {
        "picture: `pip install 'qmd-python[images]'` to find pictures too"
    }
