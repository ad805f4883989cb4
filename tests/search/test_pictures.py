"""Pictures beside texts, with the model that QMD ships: who joins, who does not, and that texts stay as they were."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qmd
from qmd.config import Config, Memory, Models
from qmd.errors import BadPicture, ModelError, NotFound
from qmd.llm.image_text import find_folder, open_image_text, read_settings
from qmd.search.pictures import STRONG, probability

VAULT = Path(__file__).parents[2] / "examples" / "vault"
NOTES = {
    "trip.md": "# Lisbon\n\nThe hill is steep but quiet.\n\n![](IMG_0417.png)\n",
    "bread.md": "# Sourdough\n\nFeed the starter at ten.\n\n![Version 14, out of the iron pot](loaf.png)\n",
    "memory.md": "# Memory\n\nHow to allocate memory on the heap, and how to give it back.\n",
}
PICTURES = (
    "travel/IMG_0417.png",
    "daily/IMG_0388.png",
    "kitchen/loaf.png",
    "home/plug.png",
    "linux/locked.png",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("notes")
    for name, text in NOTES.items():
        (root / name).write_text(text)
    for picture in PICTURES:
        shutil.copy(VAULT / picture, root)
    return root


@pytest.fixture(scope="module")
def index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[qmd.Index]:
    with qmd.open(tmp_path_factory.mktemp("data") / "index.sqlite", config=Config()) as opened:
        report = opened.add(folder, name="notes")
        assert report.embed is not None
        assert report.embed.pictures is not None
        assert report.embed.pictures.embedded == len(PICTURES)
        yield opened


def test_without_citations_no_picture_is_quoted(index: qmd.Index) -> None:
    quoted = index.search("iron pot")
    assert any(hit.quote for hit in quoted)
    config = Config(memory=Memory(citations="off"))
    with qmd.open(index.store.path, config=config) as other:
        found = other.search("iron pot")
    assert [hit.file for hit in found] == [hit.file for hit in quoted]
    assert not any(hit.quote for hit in found)


def test_the_model_that_ships_is_small_and_pinned() -> None:
    folder = find_folder("qmd-pictograms")
    settings = read_settings(folder)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 25_000_000
    assert set(settings.sha256 or {}) == {"image.onnx", "text_head.onnx", "both_head.onnx"}
    assert (folder / "README.md").read_text().startswith("# qmd-pictograms")
    model = open_image_text("qmd-pictograms")
    assert model.text.fingerprint == settings.text_fingerprint  # the base that the installation brings


@pytest.mark.parametrize(
    ("question", "file"), [("a tram", "IMG_0417.png"), ("cat", "IMG_0388.png"), ("electric plug", "plug.png")]
)
def test_a_question_that_names_a_picture_finds_it_among_the_first(
    index: qmd.Index, question: str, file: str
) -> None:
    hits = index.query(question)
    assert file in [hit.path for hit in hits[:2]]
    (hit,) = [hit for hit in hits if hit.path == file]
    assert hit.image is not None
    assert (hit.image["format"], hit.image["width"]) == ("PNG", 144)
    assert "pictures" in index.query(question, explain=True).timings_ms


def test_other_questions_find_the_same_texts_and_no_picture_by_its_looks(
    index: qmd.Index, folder: Path
) -> None:
    for question in ("how to allocate memory on the heap", "when do I feed the starter", "steep hill"):
        hits = index.query(question, explain=True)
        assert not hits[0].image
        assert not [hit for hit in hits if hit.image and "pictures" in (hit.explain or {})]


def test_words_about_a_picture_find_it_by_keyword(index: qmd.Index) -> None:
    assert "loaf.png" in [hit.path for hit in index.search("iron pot")]
    assert "loaf.png" in [hit.path for hit in index.search("sourdough type:image")]
    assert not [hit for hit in index.search("tram") if hit.image]


def test_type_image_shows_the_nearest_whatever_they_are(index: qmd.Index) -> None:
    hits = index.query("type:image kitty")
    assert hits[0].path == "IMG_0388.png"
    assert len(hits) == len(PICTURES)
    assert all(hit.image for hit in hits)
    assert not [hit for hit in index.query("type:markdown tram") if hit.image]


def test_exclusions_conditions_and_limits_hold(index: qmd.Index) -> None:
    assert "IMG_0417.png" not in [hit.path for hit in index.query("tram -IMG")]
    assert "IMG_0417.png" not in [hit.path for hit in index.query("tram", path="*.md")]
    assert len(index.query("type:image tram", limit=2)) == 2


def test_a_picture_is_a_hit_or_a_copy_of_one(tmp_path: Path) -> None:
    for name in ("a/3.png", "b/3.png"):
        file = tmp_path / "album" / name
        file.parent.mkdir(parents=True)
        shutil.copy(VAULT / "travel/IMG_0417.png", file)
    with qmd.open(tmp_path / "index.sqlite", config=Config()) as index:
        index.add(tmp_path / "album")
        for search in (index.search, index.vsearch, index.query):
            hits = search("type:image tram 3")
            copies = {copy.rpartition(":")[0] for hit in hits for copy in hit.duplicates}
            assert hits
            assert not copies & {hit.file for hit in hits}


def test_pictures_near_a_picture(index: qmd.Index, folder: Path) -> None:
    near = index.similar("notes/IMG_0388.png", limit=3)
    assert "IMG_0388.png" not in [hit.path for hit in near]
    assert all(hit.image for hit in near)
    same = index.query_image(folder / "IMG_0388.png", limit=1)[0]
    assert (same.path, round(same.score, 2)) == ("IMG_0388.png", 1.0)
    smaller = io.BytesIO()
    Image.open(folder / "IMG_0388.png").convert("RGB").resize((72, 72)).save(smaller, "JPEG")
    assert index.query_image(smaller.getvalue())[0].path == "IMG_0388.png"
    assert index.query_image(folder / "IMG_0388.png", "dark skin tone")
    with pytest.raises(BadPicture):
        index.query_image(b"no picture")
    with pytest.raises(NotFound):
        index.query_image("nowhere.png")


def test_get_says_what_a_picture_is(index: qmd.Index) -> None:
    text = index.get("notes/IMG_0417.png").text
    assert text.startswith("PNG picture, 144 x 144 pixels, 2,573 bytes")
    assert "Lisbon" in text


def test_status_and_check_show_pictures_and_their_model(index: qmd.Index) -> None:
    seen = index.status().pictures
    assert seen is not None
    assert (seen.model, seen.total, seen.done, seen.refused) == ("qmd-pictograms", 5, 5, 0)
    assert [r.state for r in index.check() if r.name == "pictures"] == ["ok"]


def test_changes_of_files_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "album"
    root.mkdir()
    shutil.copy(VAULT / "travel/IMG_0417.png", root / "a.png")
    shutil.copy(VAULT / "travel/IMG_0417.png", root / "copy.png")
    (root / "cut.jpg").write_bytes(_cut_jpeg())
    with qmd.open(tmp_path / "index.sqlite", config=Config()) as index:
        done = index.add(root, name="album").embed
        assert done is not None
        assert done.pictures is not None
        assert (done.pictures.embedded, done.pictures.refused) == (1, 1)  # equal files are looked at once
        again = index.embed().pictures
        assert again is not None
        assert (again.embedded, again.refused) == (0, 0)  # and what cannot be opened is not tried again
        assert [r.name for r in index.check() if r.name.startswith("picture album/")] == [
            "picture album/cut.jpg"
        ]
        shutil.copy(VAULT / "daily/IMG_0388.png", root / "a.png")
        index.update()
        index.embed()
        assert index.query("type:image cat")[0].path == "a.png"
        (root / "a.png").unlink()
        index.update()
        assert "a.png" not in [hit.path for hit in index.query("type:image cat")]


def _cut_jpeg() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((600, 600), 90).convert("RGB").save(out, "JPEG")
    return out.getvalue()[:9_000]


def test_a_run_that_is_killed_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qmd.ingest import look

    root = tmp_path / "album"
    root.mkdir()
    for number in range(7):
        Image.new("RGB", (32, 32), (30 * number, 90, 200)).save(root / f"{number}.png")
    monkeypatch.setattr(look, "BATCH", 3)
    with qmd.open(tmp_path / "index.sqlite", config=Config()) as index:
        index.add(root, name="album", embed=False)
        model = index.image_text
        whole, calls = model.embed_pixels, []

        def dies(pixels: list[np.ndarray]) -> np.ndarray:
            calls.append(len(pixels))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return whole(pixels)

        monkeypatch.setattr(model, "embed_pixels", dies)
        assert index.embed().interrupted
        assert index.store.pictures.count(model.fingerprint).done == 3
        monkeypatch.setattr(model, "embed_pixels", whole)
        done = index.embed().pictures
        assert done is not None
        assert done.embedded == 4


def test_without_a_model_pictures_are_found_by_words_alone(folder: Path, tmp_path: Path) -> None:
    with qmd.open(tmp_path / "index.sqlite", config=Config(models=Models(image=None))) as index:
        report = index.add(folder, name="notes")
        assert report.embed is not None
        assert report.embed.pictures is None
        assert "loaf.png" in [hit.path for hit in index.query("out of the iron pot")]
        assert not [hit for hit in index.query("tram") if hit.path == "IMG_0417.png" and hit.score > 0.1]
    wrong = Config(models=Models(image="all-MiniLM-L6-v2"))
    with (
        qmd.open(tmp_path / "index.sqlite", config=wrong) as index,
        pytest.raises(ModelError, match="for embedding"),
    ):
        _ = index.image_text


def test_an_index_without_pictures_opens_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A cat\n\nIt sleeps.\n")
    with qmd.open(tmp_path / "index.sqlite", config=Config(models=Models(image="/nowhere"))) as index:
        assert index.add(tmp_path, name="n").degraded == ()
        assert index.query("cat").degraded == ()
        assert index.status().pictures is None


def test_probability_rises_with_both_and_stays_between_0_and_1() -> None:
    evidence = read_settings(find_folder("qmd-pictograms")).evidence
    low, high = probability(evidence, 0.1, 1.0), probability(evidence, 0.8, 6.0)
    assert 0 <= low < STRONG < high <= 1
