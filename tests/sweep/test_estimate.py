"""The estimate of a sweep's time."""

from __future__ import annotations

import time

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
