"""Test-time augmentation: the mean of what a classifier says of an image, of it shifted, and of their mirrors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from flywheel.models.classifier import Classifier

SHIFTS = ((0, 0.5), (1, 0.25), (-1, 0.25))  # pixels down and right, weight


def predict(classifier: Classifier, images: NDArray[np.uint8], recipe: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return probabilities (n, classes) float32 of images (n, h, w, 3) uint8: weighted means over 3 or 6 views.

    The views and their weights are those of airbench (Jordan, arXiv 2404.00498, 3.5), there means of logits. Mirrors
    count only for what the recipe (`flip`) trained with them.
    """
    views = [(shifted(images, shift), weight) for shift, weight in SHIFTS]
    if recipe["flip"]:
        views = [(side, weight / 2) for view, weight in views for side in (view, view[:, :, ::-1])]
    total = sum(weight * classifier.predict(view) for view, weight in views)
    assert isinstance(total, np.ndarray)
    return total.astype(np.float32)


def shifted(images: NDArray[np.uint8], pixels: int) -> NDArray[np.uint8]:
    """Return images (n, h, w, 3) moved down and right; what is uncovered is filled by reflection."""
    if not pixels:
        return images
    edge = abs(pixels)
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode="reflect")
    start = edge - pixels
    return padded[:, start : start + height, start : start + width]
