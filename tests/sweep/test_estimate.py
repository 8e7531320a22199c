"""The estimate of a sweep's time, and params for few images."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from flywheel.params import Params, Recipe
from flywheel.params import file as params_file
from flywheel.sweep import estimate
from flywheel.training import optimizers
from flywheel.training.batches import AugmentedBatches
from flywheel.training.loop import TrainingData


class Slow:
    """An optimizer whose step takes a fifth of a second, for any number of images."""

    def step(self) -> None:
        time.sleep(0.2)


def test_the_cost_of_an_optimizer_step_is_divided_by_the_batch_size(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "make_optimizers", lambda *_: [Slow()])
    recipes = [params.complete_recipe({"batch_size": size}, epochs=1).model_dump() for size in (32, 256)]
    images, labels = np.zeros((1000, 8, 8, 3), np.uint8), np.zeros(1000, int)
    data = TrainingData(images, labels, images[:300], labels[:300], ("a", "b"), (0.5,) * 3, (0.3,) * 3)
    (small, weights), (large, same_weights) = estimate.measure(recipes, data, torch.device("cpu"))
    assert small >= 1100 * 0.2 / 32
    assert 1100 * 0.2 / 256 <= large < small / 2
    assert weights == same_weights > 0


def test_an_architecture_that_the_gpu_has_no_memory_for_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(recipe: Recipe, *_: object) -> estimate.Speed:
        if recipe.architecture == "upsample":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 1.0, 5

    monkeypatch.setattr(estimate, "_measure", measure)
    data = TrainingData(np.zeros((1, 8, 8, 3), np.uint8), *[np.zeros(1)] * 3, ("a", "b"), (0.5,) * 3, (0.3,) * 3)
    recipes = estimate.recipes(params_file.load(overrides="sweep.space.architecture=[standard,upsample]"))
    assert [recipe["architecture"] for recipe in recipes] == ["standard", "upsample"]
    assert estimate.measure(recipes, data, torch.device("cpu")) == [(1.0, 5)]


@pytest.mark.parametrize(
    ("overrides", "images", "proposed"),
    [
        ("", 189, "recipe.batch_size=16 sweep.space.batch_size=[16,32] sweep.epochs=19"),
        ("", 40, "recipe.batch_size=8 sweep.space.batch_size=[8,16] sweep.epochs=40"),
        ("recipe.batch_size=16 sweep.epochs=17", 189, None),
        ("", 1280, None),
    ],
)
def test_few_images_get_params_that_suit_them(
    make_params: Callable[..., Params], overrides: str, images: int, proposed: str | None
) -> None:
    pixels, labels = np.zeros((images, 2, 2, 3), np.uint8), np.zeros(images, np.int64)
    batches = len(AugmentedBatches(pixels, labels, 128, flip=False, translate=0, seed=0, device=torch.device("cpu")))
    line = estimate.few_steps(make_params(overrides, profile="laptop"), images)
    assert (line is None) == (proposed is None)
    if line is not None and proposed is not None:
        assert f"are {batches} batches of 128 an epoch, {batches * 4} steps a trial" in line
        assert f"; try {proposed} in SET or your profile" in line
        assert estimate.few_steps(make_params(proposed, profile="laptop"), images) is None
