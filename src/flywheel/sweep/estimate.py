"""Estimate the time and disk space of a sweep from a few training steps of each architecture on the workers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.params import Params, Recipe
from flywheel.sweep import SweepError
from flywheel.sweep.cluster import Resources

MEASURED_STEPS = 2
CPU_BATCH = 32  # on a GPU the recipe's own batch is measured: a small one would not fill it
MEASURED_CONCURRENT = 4  # measured at the same time, because trials slow each other down
TIMEOUT_S = 180
VALIDATION_COST = 1 / 3  # of an image against a training image: forward only
# In sizes of the weights: the state (with Adam three: weights and two moments), twice while it is replaced, and the
# weights of two epochs.
CHECKPOINTS_PER_TRIAL = 8
# With fewer batches an epoch and fewer steps a trial, other params are proposed, which make ENOUGH_STEPS.
FEW_BATCHES, FEW_STEPS, ENOUGH_STEPS = 10, 40, 200


@dataclass(frozen=True)
class Estimate:
    """Without early stopping: `seconds` with all architectures in equal parts, `most_seconds` with the slowest only."""

    seconds: float
    most_seconds: float
    disk_bytes: float


def estimate(params: Params, resources: Resources, image_counts: dict[str, int], classes: int, trials: int) -> Estimate:
    """Return the time and the disk space that a number of trials may take. `image_counts` is by split.

    Raises SweepError when no worker is free.
    """
    import ray

    recipes = [params.complete_recipe({"architecture": name}, epochs=1) for name in params.architectures]
    measure = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_measure)
    arguments = (recipes, classes, params.data.image_size, resources.threads, resources.gpus > 0)
    pending = [measure.remote(*arguments) for _ in range(min(resources.concurrent, MEASURED_CONCURRENT))]
    import flywheel.sweep.tune_runner  # noqa: F401 (takes a second, in which the workers measure)

    try:
        measured = ray.get(pending, timeout=TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        raise SweepError(
            f"no worker with {resources.cpus:g} CPUs and {resources.gpus:g} GPUs was free and ran a few steps within "
            f"{TIMEOUT_S} s: the machine is busy (Ray's workers have low priority: nice 15), or the cluster is full "
            "(see ray status); run the same command again later"
        ) from None
    per_image = [max(one[index][0] for one in measured) for index in range(len(recipes))]
    images = image_counts["train"] + VALIDATION_COST * image_counts["validation"]
    rounds = -(-trials // resources.concurrent)
    total = images * params.sweep.epochs * rounds
    largest = max(size for _, size in measured[0])
    return Estimate(
        total * sum(per_image) / len(per_image),
        total * max(per_image),
        largest * (CHECKPOINTS_PER_TRIAL * resources.concurrent + params.sweep.keep_checkpoints),
    )


def few_steps(params: Params, images: int) -> str | None:
    """Return a line with params that suit few training images, or None if there are enough for these params."""
    recipe, epochs = params.recipe, params.sweep.epochs
    batches = -(-images // recipe.batch_size)
    if batches >= FEW_BATCHES or batches * epochs >= FEW_STEPS:
        return None
    batch = max(8, 2 ** int(math.log2(max(images / FEW_BATCHES, 8))))
    changes = [f"recipe.batch_size={batch}", f"sweep.epochs={math.ceil(ENOUGH_STEPS / -(-images // batch))}"]
    if "batch_size" in params.sweep.space:
        changes.insert(1, f"sweep.space.batch_size=[{batch},{2 * batch}]")
    return (
        f"{images:,} training images are {batches} batches of {recipe.batch_size} an epoch, {batches * epochs} steps a "
        f"trial, from which little is learned; try {' '.join(changes)} in SET or your profile (docs/own-images.md)"
    )


def _measure(
    recipes: Sequence[Recipe], classes: int, image_size: int, threads: int, cuda: bool
) -> list[tuple[float, int]]:
    """Return (seconds per training image, bytes of weights) of each recipe's architecture on this worker."""
    import torch
    from torch.nn import functional

    from flywheel.models import device as devices
    from flywheel.models.classifier import Classifier
    from flywheel.training.optimizers import make_optimizers

    torch.set_num_threads(threads)
    device = devices.pick(cuda)
    names = [str(index) for index in range(classes)]
    results = []
    for recipe in recipes:
        classifier = Classifier(
            recipe.architecture, names, [0.5] * 3, [0.25] * 3, image_size, recipe.precision
        ).move_to(device)
        optimizers = make_optimizers(classifier, recipe)
        batch = recipe.batch_size if device.type == "cuda" else min(CPU_BATCH, recipe.batch_size)
        images = torch.zeros(batch, image_size, image_size, 3, dtype=torch.uint8, device=device)
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
        seconds = (computing / batch + updating / recipe.batch_size) / MEASURED_STEPS
        results.append((seconds, sum(p.numel() * p.element_size() for p in classifier.parameters())))
    return results


def _wait(device: object) -> None:
    import torch

    if isinstance(device, torch.device) and device.type == "cuda":
        torch.cuda.synchronize(device)


def human_time(seconds: float) -> str:
    """Return a duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
