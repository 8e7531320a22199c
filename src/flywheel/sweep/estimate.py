"""Estimate the time and disk space of a sweep.

Before their first epoch, the first trials take a few training steps of each architecture; the first result counts.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flywheel.params import Params, Recipe

if TYPE_CHECKING:
    import torch

    from flywheel.training.loop import TrainingData

Speed = tuple[float, int]  # seconds of an epoch, bytes of the weights

MEASURED_STEPS = 2
CPU_BATCH = 32  # on a GPU the recipe's own batch is measured: a small one would not fill it
VALIDATION_COST = 1 / 3  # of an image against a training image: forward only
# In sizes of the weights: the state (with Adam three: weights and two moments), twice while it is replaced, and the
# weights of two epochs.
CHECKPOINTS_PER_TRIAL = 8
# With fewer batches an epoch and fewer steps a trial, other params are proposed, which make ENOUGH_STEPS.
FEW_BATCHES, FEW_STEPS, ENOUGH_STEPS = 10, 40, 200


def recipes(params: Params) -> list[dict[str, Any]]:
    """Return a recipe for each architecture of the sweep, for `measure`."""
    return [params.complete_recipe({"architecture": name}, epochs=1).model_dump() for name in params.architectures]


def estimate(params: Params, concurrent: int, trials: int, speeds: Sequence[Speed]) -> tuple[float, float, float]:
    """Return (seconds, most seconds, bytes of disk) that a number of trials take without early stopping.

    The seconds are those with all architectures in equal parts, and with the slowest only.
    """
    epochs = params.sweep.epochs * -(-trials // concurrent)
    epoch_s = [seconds for seconds, _ in speeds]
    largest = max(size for _, size in speeds)
    disk_bytes = largest * (CHECKPOINTS_PER_TRIAL * concurrent + params.sweep.keep_checkpoints)
    return epochs * sum(epoch_s) / len(epoch_s), epochs * max(epoch_s), disk_bytes


def few_steps(params: Params, images: int) -> str | None:
    """Return a line with params that suit few training images, or None if there are enough for these params."""
    recipe, epochs = params.recipe, params.sweep.epochs
    batches = max(1, images // recipe.batch_size)
    if batches >= FEW_BATCHES or batches * epochs >= FEW_STEPS:
        return None
    batch = max(8, 2 ** int(math.log2(max(images / FEW_BATCHES, 8))))
    changes = [f"recipe.batch_size={batch}", f"sweep.epochs={math.ceil(ENOUGH_STEPS / max(1, images // batch))}"]
    if "batch_size" in params.sweep.space:
        changes.insert(1, f"sweep.space.batch_size=[{batch},{2 * batch}]")
    return (
        f"{images:,} training images are {batches} batches of {recipe.batch_size} an epoch, {batches * epochs} steps a "
        f"trial, from which little is learned; try {' '.join(changes)} in SET or your profile (docs/own-images.md)"
    )


def measure(recipes: Sequence[Mapping[str, Any]], data: TrainingData, device: torch.device) -> list[Speed]:
    """Return the speed of each recipe in this process, on this data; without those that a GPU has no memory for."""
    import torch

    speeds = []
    for recipe in recipes:
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            speeds.append(_measure(Recipe.model_validate(dict(recipe)), data, device))
    return speeds


def _measure(recipe: Recipe, data: TrainingData, device: torch.device) -> Speed:
    import torch
    from torch.nn import functional

    from flywheel.training.optimizers import make_optimizers

    classifier = data.classifier(recipe).move_to(device)
    optimizers = make_optimizers(classifier, recipe)
    batch = recipe.batch_size if device.type == "cuda" else min(CPU_BATCH, recipe.batch_size)
    images = torch.zeros(batch, *data.images.shape[1:], dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    computing = updating = 0.0
    for step in range(MEASURED_STEPS + 1):
        started = time.perf_counter()
        classifier.zero_grad(set_to_none=True)
        functional.cross_entropy(classifier(images), labels).backward()  # type: ignore[no-untyped-call]
        _wait(device)
        computed = time.perf_counter()
        for optimizer in optimizers:
            optimizer.step()
        _wait(device)
        if step > 0:  # the first step includes start-up
            computing += computed - started
            updating += time.perf_counter() - computed
    per_image = (computing / batch + updating / recipe.batch_size) / MEASURED_STEPS
    per_epoch = len(data.labels) + VALIDATION_COST * len(data.validation_labels)
    return per_image * per_epoch, sum(p.numel() * p.element_size() for p in classifier.parameters())


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def human_time(seconds: float) -> str:
    """Return a duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
