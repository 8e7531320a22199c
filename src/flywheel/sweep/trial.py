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
    torch.backends.cudnn.deterministic = True
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # what a worker's former trial held is its neighbours' now
    classifier = data.classifier(recipe)
    best = -1.0
    for result in fit(classifier, data, recipe, device or devices.pick()):
        improved = result.accuracy > best
        best = max(best, result.accuracy)
        yield result, classifier, improved


def train(config: Mapping[str, Any], data: TrainingData, scratch: str) -> None:
    """Run a trial inside Ray Tune; `config` is a complete recipe.

    `scratch` is a folder of the sweep's for weights on their way: a worker that is killed leaves them there.
    """
    from ray import tune

    recipe = Recipe.model_validate(dict(config))
    resources = tune.get_context().get_trial_resources().required_resources
    threads = max(1, int(resources.get("CPU", 1)))
    # Ray does not hide the GPUs from a trial that was given none.
    device = devices.pick(cuda=resources.get("GPU", 0) > 0)
    for result, classifier, improved in follow(recipe, data, threads, device):
        machine = {"device": device.type, "precision": classifier.precision, "threads": threads}
        report = {**asdict(result), "machine": machine}
        if not improved:
            tune.report(report)
            continue
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            classifier.save(Path(directory), recipe.model_dump())
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(directory))
