"""The images that studies train on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flywheel.data import build, sources
from flywheel.data.dataset import Dataset
from flywheel.params import Params
from flywheel.training.loop import TrainingData


def load(params: Params) -> Dataset:
    """Build the data set of the params in memory."""
    return build.build(sources.load(params.data, params.cache), params.data)


def train_and_test(dataset: Dataset, simulation: bool = False) -> TrainingData:
    """Return the training images, with the test images in place of validation.

    With `simulation` no image is left out: validation joins training, simulation joins test.
    """
    data, test = TrainingData.of(dataset), dataset.split("test")
    if not simulation:
        return replace(data, validation_images=test.images, validation_labels=test.labels)
    parts = (("train", "validation"), ("test", "simulation"))
    train, test_index = (np.concatenate([dataset.indices[name] for name in names]) for names in parts)
    return replace(
        data,
        images=dataset.images[train],
        labels=dataset.labels[train],
        validation_images=dataset.images[test_index],
        validation_labels=dataset.labels[test_index],
    )


def draw(data: TrainingData, images: int, validation_images: int) -> TrainingData:
    """Draw some training and validation images with seed 0 (those of a folder are sorted by class)."""
    random = np.random.default_rng(0)
    train = random.permutation(len(data.labels))[:images]
    validation = random.permutation(len(data.validation_labels))[:validation_images]
    return replace(
        data,
        images=data.images[train],
        labels=data.labels[train],
        validation_images=data.validation_images[validation],
        validation_labels=data.validation_labels[validation],
    )
