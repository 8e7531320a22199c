"""What a sweep will take, measured before it starts: a few training steps of each architecture on a worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.params import Params
from flywheel.sweep import space
from flywheel.sweep.cluster import Resources

MEASURED_STEPS = 2
MEASURED_IMAGES = 16
VALIDATION_COST = 1 / 3  # of an image against a training image: forward only
CHECKPOINTS_BESIDE = 2  # the best trial's, and one being replaced


@dataclass(frozen=True)
class Estimate:
    """An upper bound: early stopping ends trials sooner."""

    seconds: float
    disk_bytes: float


def estimate(params: Params, resources: Resources, counts: dict[str, int], classes: int) -> Estimate:
    """Return the time and the disk that all trials may take. `counts` are the images of train and validation."""
    import ray

    names = space.searched_architectures(params)
    measure = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_measure)
    measured = ray.get(
        measure.remote(names, classes, params.data.image_size, params.recipe.precision, int(resources.cpus))
    )
    per_image = sum(seconds for seconds, _ in measured) / len(measured)
    images = counts["train"] + VALIDATION_COST * counts["validation"]
    rounds = -(-params.sweep.trials // resources.concurrent)
    largest = max(size for _, size in measured)
    return Estimate(
        per_image * images * params.sweep.epochs * rounds,
        largest * (2 * resources.concurrent + CHECKPOINTS_BESIDE),
    )


def _measure(
    names: Sequence[str], classes: int, image_size: int, precision: str, threads: int
) -> list[tuple[float, int]]:
    """Return (seconds an image of training, bytes of weights) of each architecture on this worker."""
    import torch
    from torch.nn import functional

    from flywheel.models import device as devices
    from flywheel.models.classifier import Classifier

    torch.set_num_threads(max(1, threads))
    device = devices.pick()
    results = []
    for name in names:
        classifier = Classifier(
            name, [str(i) for i in range(classes)], [0.5] * 3, [0.25] * 3, image_size, precision
        ).place(device)
        images = torch.zeros(MEASURED_IMAGES, image_size, image_size, 3, dtype=torch.uint8, device=device)
        labels = torch.zeros(MEASURED_IMAGES, dtype=torch.int64, device=device)
        for step in range(MEASURED_STEPS + 1):
            if step == 1:  # the first step pays for start-up
                _wait(device)
                started = time.perf_counter()
            functional.cross_entropy(classifier(images), labels).backward()  # type: ignore[no-untyped-call]
        _wait(device)
        seconds = (time.perf_counter() - started) / (MEASURED_STEPS * MEASURED_IMAGES)
        results.append((seconds, sum(p.numel() * p.element_size() for p in classifier.parameters())))
    return results


def _wait(device: object) -> None:
    import torch

    if isinstance(device, torch.device) and device.type == "cuda":
        torch.cuda.synchronize(device)
