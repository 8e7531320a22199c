"""Fixtures of the training tests: two classes that any network tells apart, and a recipe of three epochs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from shades import two_shades

from flywheel.params import Params, Recipe
from flywheel.training.loop import TrainingData


@pytest.fixture
def data(random: np.random.Generator) -> TrainingData:
    return two_shades(random, 16)


@pytest.fixture
def few(data: TrainingData) -> TrainingData:
    """Three batches of the recipe."""
    return replace(data, images=data.images[:48], labels=data.labels[:48])


@pytest.fixture
def recipe(params: Params) -> Recipe:
    return params.complete_recipe({"batch_size": 16, "learning_rate": 0.05}, epochs=3)
