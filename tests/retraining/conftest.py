"""A store with drifted digits, a model trained on them for real, and the failures it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import parents
import pytest

from flywheel.data import dataset
from flywheel.data import stage as data_stage
from flywheel.data.dataset import Dataset
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.registry import LocalRegistry, Registry, Version
from flywheel.traffic import feedback

ROOT = Path(__file__).parents[2]
# Images of half the demo's size, for time; by SGD, which leaves more to the failures than Muon does (docs/log.md).
OVERRIDES = (
    "data.image_size=16 tracking.wandb=disabled retrain.epochs=2 retrain.control=false "
    "recipe.optimizer=sgd recipe.learning_rate=0.05 recipe.momentum=0.9 recipe.warmup_fraction=0.2"
)


def load(place: Path, overrides: str = "") -> Params:
    paths = f"paths.store={place}/store paths.reports={place}/reports paths.cache={place}/cache"
    return params_file.load(ROOT / "params.yaml", "demo", f"{paths} {OVERRIDES} {overrides}")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after data, a training of eight epochs, and its promotion."""
    place = tmp_path_factory.mktemp("trained")
    params = load(place)
    registry = LocalRegistry(params.store)
    data_stage.run(params, registry)
    parents.produce(params, registry, place / "model", epochs=8)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of that store."""
    shutil.copytree(trained / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture
def make(place: Path) -> Callable[[str], Params]:
    return lambda overrides: load(place, overrides)


@pytest.fixture
def params(place: Path) -> Params:
    return load(place)


@pytest.fixture
def registry(params: Params) -> Registry:
    return LocalRegistry(params.store)


@pytest.fixture
def opened(registry: Registry) -> Dataset:
    return dataset.open_directory(registry.open(registry.resolve("digits_dataset")))


@pytest.fixture(scope="session")
def failed(trained: Path) -> list[int]:
    """Which simulation images the trained model gets wrong."""
    from flywheel.models import classifier

    registry = LocalRegistry(load(trained).store)
    opened = dataset.open_directory(registry.open(registry.resolve("digits_dataset")))
    split = opened.split("simulation")
    model = classifier.load(registry.open(registry.resolve("model-1")))
    return [int(i) for i in np.flatnonzero(model.predict(split.images).argmax(axis=1) != split.labels)]


@pytest.fixture
def collect(params: Params, registry: Registry, opened: Dataset) -> Callable[[Sequence[int]], Version]:
    """Publish simulation images as failures, as simulate does."""

    def publish(places: Sequence[int]) -> Version:
        listed = feedback.examples(opened, opened.indices["simulation"][list(places)])
        inputs = {"dataset": [registry.resolve("digits_dataset").ref], "model": [registry.resolve("model-1").ref]}
        version, _ = feedback.publish(params, registry, listed, inputs, {})
        assert version is not None
        return version

    return publish
