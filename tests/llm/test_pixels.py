"""Pictures of any shape become the square a model reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from qmd.llm.pixels import fitted_pixels


@pytest.mark.parametrize("size", [(2, 60_000), (60_000, 2), (1, 1)])
def test_a_strip_is_not_scaled_to_gigabytes(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    resize, made = Image.Image.resize, []

    def watched(self: Image.Image, to: Any, *more: Any) -> Image.Image:
        made.append(to[0] * to[1])
        assert made[-1] < 1e7
        return resize(self, to, *more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    pixels = fitted_pixels(Image.new("RGB", size, "red"), "crop", 224, (0, 0, 0), (1, 1, 1))
    assert pixels.shape == (3, 224, 224)
    assert made
    np.testing.assert_allclose(pixels[0], 1.0)
