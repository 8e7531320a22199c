"""The estimate of a sweep's time."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from flywheel.params import Params
from flywheel.sweep import estimate
from flywheel.training import optimizers


class Slow:
    """An optimizer whose step takes a fifth of a second, for any number of images."""

    def step(self) -> None:
        time.sleep(0.2)


def test_the_cost_of_an_optimizer_step_is_divided_by_the_batch_size(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "make_optimizers", lambda *_: [Slow()])
    recipes = [params.complete_recipe({"batch_size": size}, epochs=1) for size in (32, 256)]
    (small, weights), (large, same_weights) = estimate._measure(recipes, 10, image_size=8, threads=1, cuda=False)
    assert small >= 0.2 / 32
    assert 0.2 / 256 <= large < small / 2
    assert weights == same_weights > 0


@pytest.mark.parametrize(
    ("overrides", "images", "proposed"),
    [
        ("", 189, "recipe.batch_size=16 sweep.space.batch_size=[16,32] sweep.epochs=17"),
        ("", 40, "recipe.batch_size=8 sweep.space.batch_size=[8,16] sweep.epochs=40"),
        ("recipe.batch_size=16 sweep.epochs=17", 189, None),
        ("", 1280, None),
    ],
)
def test_few_images_get_params_that_suit_them(
    make_params: Callable[..., Params], overrides: str, images: int, proposed: str | None
) -> None:
    line = estimate.few_steps(make_params(overrides, profile="laptop"), images)
    assert (line is None) == (proposed is None)
    if line is not None and proposed is not None:
        assert f"are {-(-images // 128)} batches of 128 an epoch, {-(-images // 128) * 4} steps a trial" in line
        assert f"; try {proposed} in SET or your profile" in line
        assert estimate.few_steps(make_params(proposed, profile="laptop"), images) is None
