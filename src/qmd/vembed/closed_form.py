"""Projection heads without a single step: regularised canonical correlation of two frozen towers' features.

For few thousand pairs the best linear heads can be written down. With features x of pictures and y of texts, pair by
pair, centred, and C their covariances: the singular vectors of (Cxx + r)^-1/2 Cxy (Cyy + s)^-1/2 are the directions in
which pictures and texts vary together, best first, so that a cut vector is a good vector (Matryoshka by construction).
Each is weighed by a power of its correlation. r and s are in units of the mean variance.

What tells a picture from its changed twin is often none of that: names say nothing of skin tones. Where there are m2i
pairs, the first few dimensions are therefore the directions in which pictures change as texts ask: the correlation of
(changed - given) with the text, in the metric of the changes and of all pictures, so that they are calm where nothing
was asked for. A question of a picture and a text ("this one, with dark skin") gets what ridge regression adds to the
sum of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmd.errors import ModelError
from qmd.vembed.data import Item, Pair

if TYPE_CHECKING:
    from qmd.vembed.config import TrainConfig

Rows = NDArray[np.float64]
BLOCK = 4096
CALM = 5.0
"""How much all pictures count beside the changes, in the metric of the changes' directions."""
CHANGE_RIDGES = (0.1, 1e-3)
"""Of pictures and texts there, in units of the mean variance. Texts that ask for changes are few and far apart."""
LEAST_CORRELATION = 0.3
"""Of a direction of change, as a share of the first one's."""


def fit_heads(backbone: Any, pairs: Sequence[Pair], config: TrainConfig) -> float:
    """Set the weights of a composed model's linear heads from its training pairs.

    Returns the mean correlation of the directions kept. Raises ModelError where there are no t2i or i2t lines.
    """
    text_of, image_of = _prepared(backbone)
    both = [_sides(pair) for pair in pairs if pair.mode in ("t2i", "i2t")]
    if not both:
        raise ModelError("loss_type cca needs pairs of a text and an image (t2i or i2t lines).")
    texts, images = [text for text, _ in both], [image for _, image in both]
    image_mean, cxx, text_mean, cyy, cxy = _moments(images, texts, image_of, text_of)
    left, right = _inverse_root(cxx, config.ridge_image), _inverse_root(cyy, config.ridge_text)
    u, correlations, v = np.linalg.svd(left @ cxy @ right, full_matrices=False)
    dim = backbone.projection_dim
    if len(correlations) < dim:
        raise ModelError(f"the towers allow {len(correlations)} dimensions, projection_dim asks for {dim}.")
    changed = [pair for pair in pairs if pair.mode == "m2i"]
    directions, spread = _changes(backbone, changed, cxx, dim // 8 if config.change_weight else 0)
    kept = dim - directions.shape[1]
    weight = correlations[:kept] ** config.correlation_power
    image_map, text_map = left @ u[:, :kept] * weight, right @ v.T[:, :kept] * weight
    # One scale for both, so that a sum of a text and a picture weighs them alike.
    image_map /= np.sqrt(np.trace(image_map.T @ cxx @ image_map))
    text_map /= np.sqrt(np.trace(text_map.T @ cyy @ text_map))
    if kept < dim:
        widths = [float(np.sqrt(np.trace(m.T @ spread @ m))) for m in (image_map, directions)]
        directions = directions * (config.change_weight * widths[0] / max(widths[1], 1e-12))
        image_map = np.concatenate([directions, image_map], axis=1)
        text_map = np.concatenate([np.zeros((len(text_map), dim - kept)), text_map], axis=1)
    backbone.image_head.set_linear(image_map, -image_mean @ image_map)
    backbone.text_head.set_linear(text_map, -text_mean @ text_map)
    _fit_both(backbone, changed, config.ridge_both)
    return float(correlations[:kept].mean())


def _changes(backbone: Any, pairs: Sequence[Pair], cxx: Rows, most: int) -> tuple[Rows, Rows]:
    """(directions (d_image, k) in which pictures change as texts ask, covariance of the changed pictures)."""
    if not pairs or not most:
        return np.zeros((len(cxx), 0)), cxx
    text_of, image_of = _prepared(backbone)
    texts = text_of([str(pair.query.text) for pair in pairs])
    given, changed = (
        image_of([item.image for item in side])
        for side in ([pair.query for pair in pairs], [pair.positive for pair in pairs])
    )
    texts -= texts.mean(axis=0)
    change = changed - given
    change -= change.mean(axis=0)
    own = change.T @ change / len(change)
    metric = own / max(np.trace(own), 1e-12) + CALM * cxx / max(np.trace(cxx), 1e-12)
    left = _inverse_root(metric, CHANGE_RIDGES[0])
    right = _inverse_root(texts.T @ texts / len(texts), CHANGE_RIDGES[1])
    u, correlations, _ = np.linalg.svd(left @ (change.T @ texts / len(texts)) @ right, full_matrices=False)
    count = min(most, int((correlations > LEAST_CORRELATION * correlations[0]).sum()))
    return left @ u[:, :count] * correlations[:count], np.cov(changed.T, bias=True)


def _prepared(backbone: Any) -> tuple[Callable[[Sequence[str]], Rows], Callable[[Sequence[Any]], Rows]]:
    """Features as the heads' matrices take them."""
    text_of, image_of = backbone.feature_rows
    return (
        lambda texts: backbone.text_head.prepare(text_of(texts)),
        lambda images: backbone.image_head.prepare(image_of(images)),
    )


def _fit_both(backbone: Any, pairs: Sequence[Pair], ridge: float) -> None:
    """The joint head: what is missing between (text + picture) and the picture that is meant.

    ridge: in units of the variance, over all features, of the texts for the texts, of the pictures for the pictures.
    """
    backbone.fuse_head.set_linear(
        np.zeros((backbone.fuse_head.dim_in, backbone.projection_dim)), np.zeros(backbone.projection_dim)
    )
    if not pairs:
        return
    text_of, image_of = backbone.feature_rows
    texts = text_of([str(pair.query.text) for pair in pairs])
    images = image_of([pair.query.image for pair in pairs])
    meant = backbone.image_head.apply_rows(image_of([pair.positive.image for pair in pairs]))
    given = backbone.text_head.apply_rows(texts) + backbone.image_head.apply_rows(images)
    missing = _unit(meant) * np.linalg.norm(given, axis=1, keepdims=True) - given
    rows = backbone.fuse_head.prepare(np.concatenate([texts, images], axis=1))
    mean, offset = rows.mean(axis=0), missing.mean(axis=0)
    centred = rows - mean
    square = centred.T @ centred / len(rows)
    widths = np.diag(square)[: texts.shape[1]].sum(), np.diag(square)[texts.shape[1] :].sum()
    square += ridge * np.diag(np.repeat(widths, [texts.shape[1], images.shape[1]]))
    weights = np.linalg.solve(square, centred.T @ (missing - offset) / len(rows))
    backbone.fuse_head.set_linear(weights, offset - mean @ weights)


def _sides(pair: Pair) -> tuple[str, Any]:
    """(text, image) of a pair, whichever asks."""
    sides: tuple[Item, Item] = (pair.query, pair.positive)
    text = next(item.text for item in sides if item.image is None)
    image = next(item.image for item in sides if item.image is not None)
    return str(text), image


def _moments(
    images: Sequence[Any],
    texts: Sequence[str],
    image_of: Callable[[Sequence[Any]], Rows],
    text_of: Callable[[Sequence[str]], Rows],
) -> tuple[Rows, Rows, Rows, Rows, Rows]:
    """(mean x, Cxx, mean y, Cyy, Cxy), a block of pairs at a time."""
    sums: list[Any] = [0.0] * 5
    for start in range(0, len(images), BLOCK):
        x, y = image_of(images[start : start + BLOCK]), text_of(texts[start : start + BLOCK])
        for place, value in enumerate((x.sum(axis=0), x.T @ x, y.sum(axis=0), y.T @ y, x.T @ y)):
            sums[place] = sums[place] + value
    mx, xx, my, yy, xy = (value / len(images) for value in sums)
    return mx, xx - np.outer(mx, mx), my, yy - np.outer(my, my), xy - np.outer(mx, my)


def _inverse_root(covariance: Rows, ridge: float) -> Rows:
    """(C + ridge * mean variance)^-1/2, symmetric."""
    values, vectors = np.linalg.eigh(covariance)
    root = np.sqrt(np.maximum(values, 0.0) + ridge * max(float(values.mean()), 1e-12))
    made: Rows = (vectors / root) @ vectors.T
    return made


def _unit(rows: Rows) -> Rows:
    made: Rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return made
