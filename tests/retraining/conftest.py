"""A store with a made data set, a model with made answers in production, and the failures it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import made_models
import numpy as np
import pytest
import scripts

from flywheel.data.dataset import Dataset
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.traffic import feedback

OVERRIDES = (
    "data.image_size=8 tracking.wandb=disabled retrain.epochs=1 retrain.control=false "
    "recipe.optimizer=sgd recipe.learning_rate=0.05 recipe.batch_size=64 recipe.warmup_fraction=0.2"
)
WRONG = (1, 3, 4, 5)  # the groups of images that production fails


def load(root: Path, overrides: str = "") -> Params:
    return scripts.load(root, f"{OVERRIDES} {overrides}")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store with the data set and the model in production."""
    root = tmp_path_factory.mktemp("built")
    params = load(root)
    made_models.produce(Registry(params.store), params, WRONG)
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A copy of that store."""
    shutil.copytree(built / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture
def make_params(root: Path) -> Callable[..., Params]:
    """Load the params of that copy with overrides; `params` and `registry` are of it, too."""
    return lambda overrides="": load(root, overrides)


@pytest.fixture
def make(make_params: Callable[..., Params]) -> Callable[..., Params]:
    return make_params


@pytest.fixture
def failed(opened: Dataset) -> list[int]:
    """Which simulation images production gets wrong."""
    split = opened.split("simulation")
    predicted = made_models.predicted(split.labels, made_models.groups(split.images), WRONG)
    return np.flatnonzero(predicted != split.labels).tolist()


@pytest.fixture
def collect(params: Params, registry: Registry, opened: Dataset) -> Callable[..., Version]:
    """Publish simulation images as simulate does: as failures, and with `right` those indices as right answers."""

    def publish(indices: Sequence[int], right: Sequence[int] = ()) -> Version:
        simulation = opened.indices["simulation"]
        listed = feedback.examples(opened, simulation[list(indices)])
        chosen = simulation[list(right)]
        listed += feedback.examples(opened, chosen, opened.labels[chosen], [0.9] * len(chosen))
        inputs = {"dataset": [registry.resolve("digits_dataset").ref], "model": [registry.resolve("model-1").ref]}
        version, _ = feedback.publish(params, registry, listed, inputs, {})
        assert version is not None
        return version

    return publish
