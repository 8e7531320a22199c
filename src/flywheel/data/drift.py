"""Seeded corruptions that make production images differ from training images.

Like ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261): each kind has a severity of 0 to 5, and each image its own
draw. A corrupted image is on the side of its original, or a model could learn a holdout image from its twin: where the
hash says otherwise, the severity is varied in steps of 1 % until it does not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from flywheel import params
from flywheel.data.images import Pixels
from flywheel.data.splits import content_hashes, is_holdout

ROTATION_DEGREES = 7.0
NOISE_STD = 0.047 * 255
BLUR_RADIUS = 0.3 / 32  # times the image size
BRIGHTNESS, CONTRAST = 0.12, 0.15
# Tried in this order; mostly one of the first five is taken.
STRENGTHS = (1.0, *(1 + sign * step / 100 for step in range(1, 31) for sign in (1, -1)))


def apply(images: Pixels, ids: NDArray[np.int64], drift: params.Drift, seed: int) -> Pixels:
    """Return images (n, s, s, 3) uint8 corrupted as `drift` says; the draw depends on seed and id only."""
    if not any(drift.model_dump().values()):
        return images
    sides = is_holdout(content_hashes(images))
    return np.stack(
        [
            _on_side(bool(side), image, int(id_), drift, seed)
            for side, image, id_ in zip(sides, images, ids, strict=True)
        ]
    )


def _on_side(holdout: bool, image: Pixels, id_: int, drift: params.Drift, seed: int) -> Pixels:
    for strength in STRENGTHS:
        corrupted = _corrupt(image, id_, drift, seed, strength)
        if is_holdout(content_hashes(corrupted[None]))[0] == holdout:
            return corrupted
    return image


def _corrupt(image: Pixels, id_: int, drift: params.Drift, seed: int, strength: float) -> Pixels:
    random = np.random.default_rng([seed, id_])
    degrees, brightness, contrast = random.uniform(-1, 1, size=3)
    picture = Image.fromarray(image)
    if drift.rotation:
        border = tuple(int(value) for value in np.median(_border(image), axis=0))
        angle = degrees * ROTATION_DEGREES * strength * drift.rotation
        picture = picture.rotate(angle, Image.Resampling.BILINEAR, fillcolor=border)
    if drift.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(BLUR_RADIUS * image.shape[0] * strength * drift.blur))
    values = np.asarray(picture, np.float32)
    if drift.contrast:
        mean = values.mean()
        values = mean + (values - mean) * (1 + contrast * CONTRAST * strength * drift.contrast)
    if drift.brightness:
        values = values * (1 + brightness * BRIGHTNESS * strength * drift.brightness)
    if drift.noise:
        values = values + random.normal(0, NOISE_STD * strength * drift.noise, size=values.shape).astype(np.float32)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _border(image: Pixels) -> Pixels:
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
