"""What a sweep is said to take."""

from __future__ import annotations

import time

import pytest

from flywheel.params import Params
from flywheel.sweep import estimate
from flywheel.training import optimizers


class Slow:
    """An optimizer whose step takes half a second, however many images there are."""

    def step(self) -> None:
        time.sleep(0.5)


def test_an_optimizers_step_is_shared_by_the_recipes_whole_batch(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "make_optimizers", lambda *_: [Slow()])
    recipes = [params.complete_recipe({"batch_size": size}, epochs=1) for size in (32, 256)]
    (small, weights), (large, same_weights) = estimate._measure(recipes, 10, image_size=8, threads=1, cuda=False)
    assert small >= 0.5 / 32
    assert 0.5 / 256 <= large < small / 2
    assert weights == same_weights > 0
