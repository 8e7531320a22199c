"""One trial: follow a recipe, report an epoch at a time, keep the weights of the best epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flywheel.models import device as devices
from flywheel.models.classifier import Classifier
from flywheel.params import Recipe
from flywheel.training import EpochResult, TrainingData, fit


def follow(
    recipe: Recipe, data: TrainingData, threads: int, device: torch.device | None = None
) -> Iterator[tuple[EpochResult, Classifier, bool]]:
    """Train as a trial does. Yields (result, classifier, whether this is the best epoch so far).

    With the same recipe, data, thread count and machine the weights are the same to the byte on the CPU:
    this is how a trial is run again from its record.
    """
    torch.set_num_threads(threads)
    classifier = data.classifier(recipe)
    best = -1.0
    for result in fit(classifier, data, recipe, device or devices.pick()):
        improved = result.accuracy > best
        best = max(best, result.accuracy)
        yield result, classifier, improved


def train(config: Mapping[str, Any], data: TrainingData) -> None:
    """Run a trial inside Ray Tune; `config` is a complete recipe."""
    from ray import tune

    recipe = Recipe.model_validate(dict(config))
    resources = tune.get_context().get_trial_resources().required_resources
    for result, classifier, improved in follow(recipe, data, max(1, int(resources.get("CPU", 1)))):
        if not improved:
            tune.report(asdict(result))
            continue
        with tempfile.TemporaryDirectory() as directory:
            classifier.save(Path(directory), recipe.model_dump())
            tune.report(asdict(result), checkpoint=tune.Checkpoint.from_directory(directory))
