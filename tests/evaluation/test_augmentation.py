"""Test-time augmentation: which views count, and how much."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flywheel.evaluation.augmentation import predict, shifted
from flywheel.models.classifier import Classifier

NAMES = ("cat", "dog")


@pytest.fixture
def images(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def model() -> Classifier:
    untrained = Classifier("standard", NAMES, [0.5] * 3, [0.25] * 3, 16, "float32").eval()
    with torch.no_grad():
        untrained.network.fc.weight *= 100  # so that it says different things of different views
    return untrained


def test_a_shift_moves_every_pixel_and_reflects_at_the_edge(images: np.ndarray) -> None:
    down = shifted(images, 1)
    np.testing.assert_array_equal(down[:, 1:, 1:], images[:, :-1, :-1])
    np.testing.assert_array_equal(down[:, 0, 1:], images[:, 1, :-1])
    up = shifted(images, -1)
    np.testing.assert_array_equal(up[:, :-1, :-1], images[:, 1:, 1:])
    np.testing.assert_array_equal(up[:, -1, :-1], images[:, -2, 1:])
    assert shifted(images, 0) is images


@pytest.mark.parametrize("mirror", [False, True])
def test_the_answer_is_the_weighted_mean_over_the_views(model: Classifier, images: np.ndarray, mirror: bool) -> None:
    sides = [lambda x: x, lambda x: x[:, :, ::-1]] if mirror else [lambda x: x]
    expected = sum(
        weight / len(sides) * model.predict(side(shifted(images, shift)))
        for shift, weight in ((0, 0.5), (1, 0.25), (-1, 0.25))
        for side in sides
    )
    found = predict(model, images, {"flip": mirror})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert not np.allclose(found, model.predict(images), atol=1e-3)  # the views tell something
