"""Images per second of full training steps: this loop against the textbook loop, and against the network alone.

    python benchmarks/training.py [--rounds 3] [--architectures standard modified]   (make bench BENCH=training)

*Textbook* is the loop of Ray's CIFAR-10 tutorial and most notebooks: torchvision's DataLoader (the better of 0 and 2
worker processes), PIL transforms, float32, contiguous memory, SGD. *Network alone* is our step on one prepared batch.
All train on the same random 32 x 32 images, alternating; the first epoch of each is not counted.

Writes  reports/bench.json; with --publish also benchmarks/results/training.json and its table in docs/training.md
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import harness
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from flywheel import cli
from flywheel.models import device as devices
from flywheel.models.architectures import architecture
from flywheel.params import Recipe
from flywheel.training.loop import Training, TrainingData
from flywheel.training.optimizers import make_optimizers

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
STEPS = {"standard": (128, 40), "modified": (128, 4), "upsample": (32, 4), "compact": (128, 40)}  # batch size, steps
NAMES = ("textbook, 0 workers", "textbook, 2 workers", "ours", "ready")


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Images one at a time through PIL, as torchvision's CIFAR10 gives them."""

    def __init__(self, data: TrainingData, resize: int | None):
        steps: list[Callable[[Any], Any]] = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        if resize:
            steps.append(transforms.Resize(resize))
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        self.images, self.labels = data.images, data.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def main() -> None:
    """Measure and write the table."""
    options = harness.options(
        __doc__,
        rounds=(3, "epochs of each loop that count"),
        architectures=(list(STEPS), "networks to train", STEPS),
        publish=harness.PUBLISH,
    )
    rows = [measure(name, options.rounds) for name in options.architectures]
    result = {"training": rows, **harness.stamp("torch", "torchvision")}
    result["machine"] = f"{devices.pick().type}, {torch.get_num_threads()} threads, {result['machine']}"
    harness.publish("training", "training.md", result, table, commit=options.publish)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Return the images per second of every loop with one architecture."""
    batch_size, steps = STEPS[name]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size * steps, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, len(images))
    data = TrainingData(images, labels, images[:1], labels[:1], tuple("0123456789"), MEAN, STD)
    changes = {"architecture": name, "batch_size": batch_size, "learning_rate": 0.01}
    recipe = harness.params("cifar10").complete_recipe(changes, rounds + 1)
    generators = (textbook(data, recipe, 0), textbook(data, recipe, 2), ours(data, recipe), ready(data, recipe))
    loops = dict(zip(NAMES, generators, strict=True))
    rates: dict[str, list[float]] = {loop: [] for loop in loops}
    for number in range(rounds + 1):
        for loop, epochs in loops.items():
            rate = next(epochs)
            if number:
                rates[loop].append(rate)
            print(f"{name:<9} round {number}, {loop:<20} {rate:7.1f} images/s", flush=True)
    found = {loop: harness.extent(values) for loop, values in rates.items()}
    one, two, own, ready_step = (found[loop]["median"] for loop in NAMES)
    return {
        "architecture": name,
        "ours": own,
        "textbook": max(one, two),
        "ready_step": ready_step,
        "ratio": round(own / max(one, two), 3),
        "share_of_ready": round(own / ready_step, 3),
        "n": rounds,
        "batch_size": batch_size,
        "images_per_s": found,
    }


def textbook(data: TrainingData, recipe: Recipe, workers: int) -> Iterator[float]:
    """Yield the images per second of each epoch of a notebook's loop, which reads the loss after every step."""
    device = devices.pick()
    model = textbook_network(recipe.architecture, len(data.class_names)).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        Images(data, architecture(recipe.architecture).input_size), recipe.batch_size, shuffle=True,
        num_workers=workers, persistent_workers=workers > 0, pin_memory=device.type == "cuda",
    )  # fmt: skip
    while True:
        started = time.perf_counter()
        total = 0.0
        for inputs, targets in loader:
            loss = functional.cross_entropy(model(inputs.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()
        yield len(data.labels) / (time.perf_counter() - started)


def textbook_network(name: str, classes: int) -> nn.Module:
    """Return torchvision's ResNet-18 in one of three variants, or the project's own `compact`."""
    if name == "compact":
        return architecture(name).build(classes)
    model: nn.Module = torchvision.models.resnet18(num_classes=classes)
    if name == "modified":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def ours(data: TrainingData, recipe: Recipe) -> Iterator[float]:
    """Yield the images per second of each epoch of the project's training loop, without validation."""
    for result in Training(data.classifier(recipe), data, recipe, devices.pick()).epochs():
        yield result.images_per_s


def ready(data: TrainingData, recipe: Recipe) -> Iterator[float]:
    """Yield the images per second of the network alone, on one batch that is normalized, resized and on the device."""
    classifier = data.classifier(recipe).move_to(devices.pick()).train()
    (optimizer,) = make_optimizers(classifier, recipe)
    batch = classifier.prepare(torch.from_numpy(data.images[: recipe.batch_size]).to(classifier.device))
    targets = torch.from_numpy(data.labels[: recipe.batch_size]).to(classifier.device)
    steps = len(data.labels) // recipe.batch_size
    while True:
        started = time.perf_counter()
        for _ in range(steps):
            with devices.autocast(classifier.device, classifier.precision):
                logits = classifier.network(batch)
            loss = functional.cross_entropy(logits.float(), targets)
            classifier.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if classifier.device.type == "cuda":
            torch.cuda.synchronize()
        yield recipe.batch_size * steps / (time.perf_counter() - started)


def peak_flops(precision: str) -> float:
    """Return the operations per second of a 4096 x 4096 matrix product: the best of five."""
    device = devices.pick()
    kind = getattr(torch, devices.resolve_precision(precision, device))
    matrix = torch.randn(4096, 4096, device=device).to(kind)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        times.append(time.perf_counter() - started)
    return float(2 * 4096**3 / min(times[1:]))


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    rows = [
        (
            f"{row['architecture']}, {row['batch_size']}",
            *(harness.spread(rate.values()) for rate in row["images_per_s"].values()),
            f"{row['ratio']:.2f}x",
            f"{row['share_of_ready']:.0%}",
        )
        for row in result["training"]
    ]
    heads = (
        "network, batch size", "textbook, 0 workers", "textbook, 2 workers", "this loop", "network alone", "speedup",
        "of network alone",
    )  # fmt: skip
    return harness.markdown(heads, rows) + harness.note(
        result,
        f"Images per second, medians of n = {result['training'][0]['n']} epochs (lowest to highest); the speedup is "
        "against the better textbook loop.",
    )


if __name__ == "__main__":
    cli.main(main)
