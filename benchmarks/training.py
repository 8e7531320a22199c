"""Images a second of full training steps: ours against the textbook loop and against a step whose batch is ready.

    python benchmarks/training.py [--rounds 3] [--architectures standard modified]   (make bench BENCH=training)

*Textbook* is what Ray's CIFAR-10 tutorial and most notebooks do: torchvision's DataLoader (the better of 0 and 2 worker
processes), PIL transforms, float32, contiguous memory, SGD. *Ready* is our step on one batch that is prepared already:
what the network alone allows. All on the same random 32 x 32 images, in turn; the first epoch of each is left out.

Writes  the entry `training` of reports/bench.json; with --publish also benchmarks/results/training.json and its table
        in docs/training.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from flywheel import cli, files
from flywheel.models import device as devices
from flywheel.models.architectures import architecture
from flywheel.params import Recipe
from flywheel.params import file as params_file
from flywheel.training.loop import Training, TrainingData
from flywheel.training.optimizers import make_optimizers

ROOT = Path(__file__).parents[1]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
STEPS = {"standard": (128, 40), "modified": (128, 4), "upsample": (32, 4), "compact": (128, 40)}  # batch size, steps
NAMES = ("textbook, 0 workers", "textbook, 2 workers", "ours", "ready")


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Images as torchvision's CIFAR10 gives them: one at a time, through PIL."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], resize: int | None):
        steps: list[Callable[[Any], Any]] = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        if resize:
            steps.append(transforms.Resize(resize))
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each that count (default: 3)")
    parser.add_argument("--architectures", nargs="+", default=list(STEPS), choices=list(STEPS), metavar="NAME")
    parser.add_argument("--publish", action="store_true", help="write the figures into the docs")
    arguments = parser.parse_args()
    rows = [measure(name, arguments.rounds) for name in arguments.architectures]
    report = pages.add_to_report({"training": rows})
    device = devices.pick()
    result = {
        "training": rows,
        "command": pages.command(),
        "machine": f"{device.type}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[2]:.1f} over the last 15 minutes, its own included",
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__}
        | {"python": platform.python_version()},
    }
    print(f"\n{table(result)}\n\nreports: {report}")
    if arguments.publish:
        files.write_json(Path(__file__).parent / "results" / "training.json", result)
        pages.write(ROOT / "docs" / "training.md", "training", table(result))


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Return the images a second of every loop with one architecture."""
    batch_size, steps = STEPS[name]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size * steps, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, len(images))
    loops = {
        NAMES[0]: textbook(name, images, labels, batch_size, workers=0),
        NAMES[1]: textbook(name, images, labels, batch_size, workers=2),
        NAMES[2]: ours(name, images, labels, batch_size, rounds + 1),
        NAMES[3]: ready(name, images, labels, batch_size, steps),
    }
    rates: dict[str, list[float]] = {loop: [] for loop in loops}
    for number in range(rounds + 1):
        for loop, epochs in loops.items():
            rate = next(epochs)
            if number:
                rates[loop].append(rate)
            print(f"{name:<9} round {number}, {loop:<20} {rate:7.1f} images/s", flush=True)
    medians = {loop: statistics.median(values) for loop, values in rates.items()}
    best = max(medians[NAMES[0]], medians[NAMES[1]])
    return {
        "architecture": name,
        "ours": medians["ours"],
        "textbook": best,
        "ready_step": medians["ready"],
        "ratio": round(medians["ours"] / best, 3),
        "share_of_ready": round(medians["ours"] / medians["ready"], 3),
        "n": rounds,
        "batch_size": batch_size,
        "images_per_s": {
            loop: {"median": medians[loop], "least": min(values), "most": max(values)} for loop, values in rates.items()
        },
    }


def textbook(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int, workers: int
) -> Iterator[float]:
    """Yield images a second, an epoch at a time."""
    model = textbook_network(name, 10).to(devices.pick())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = textbook_loader(name, images, labels, batch_size, workers)
    while True:
        started = time.perf_counter()
        textbook_epoch(model, loader, optimizer)
        yield len(images) / (time.perf_counter() - started)


def textbook_network(name: str, classes: int) -> nn.Module:
    """Return torchvision's ResNet-18 in one of the three forms; `compact` is the project's own."""
    if name == "compact":
        return architecture(name).build(classes)
    model = torchvision.models.resnet18(num_classes=classes)
    if name == "modified":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    whole: nn.Module = model
    return whole


def textbook_loader(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int, workers: int
) -> DataLoader[tuple[torch.Tensor, int]]:
    """Return what a notebook writes: shuffled batches of images that went through PIL one at a time."""
    return DataLoader(
        Images(images, labels, architecture(name).input_size),
        batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=devices.pick().type == "cuda",
    )  # fmt: skip


def textbook_epoch(
    model: nn.Module, loader: DataLoader[tuple[torch.Tensor, int]], optimizer: torch.optim.Optimizer
) -> None:
    """Train for an epoch as a notebook does: float32, contiguous memory, the loss read after every step."""
    device = devices.pick()
    model.train()
    total = 0.0
    for inputs, targets in loader:
        loss = functional.cross_entropy(model(inputs.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()


def ours(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int, epochs: int
) -> Iterator[float]:
    """Yield images a second of the project's training loop, an epoch at a time (validation is not counted)."""
    recipe = _recipe(name, batch_size, epochs)
    data = TrainingData(images, labels, images[:1], labels[:1], tuple("0123456789"), MEAN, STD)
    for result in Training(data.classifier(recipe), data, recipe, devices.pick()).epochs():
        yield result.images_per_s


def ready(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int, steps: int
) -> Iterator[float]:
    """Yield images a second of the network's own step: normalised, resized and on the device before the clock runs."""
    recipe = _recipe(name, batch_size)
    data = TrainingData(images, labels, images[:1], labels[:1], tuple("0123456789"), MEAN, STD)
    classifier = data.classifier(recipe).place(devices.pick()).train()
    (optimizer,) = make_optimizers(classifier, recipe)
    batch = classifier.prepare(torch.from_numpy(images[:batch_size]).to(classifier.device))
    targets = torch.from_numpy(labels[:batch_size]).to(classifier.device)
    while True:
        started = time.perf_counter()
        for _ in range(steps):
            _step(classifier.network, classifier, batch, targets, optimizer)
        if classifier.device.type == "cuda":
            torch.cuda.synchronize()
        yield batch_size * steps / (time.perf_counter() - started)


def peak_flops(precision: str) -> float:
    """Return the operations a second of a product of two 4096 x 4096 matrices: the best of five."""
    device = devices.pick()
    kind = getattr(torch, devices.resolve_precision(precision, device))
    matrix = torch.randn(4096, 4096, device=device).to(kind)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        times.append(time.perf_counter() - started)
    return float(2 * 4096**3 / min(times[1:]))


def _recipe(name: str, batch_size: int, epochs: int = 1) -> Recipe:
    changes = {"architecture": name, "batch_size": batch_size, "learning_rate": 0.01}
    return params_file.load(ROOT / "params.yaml", "cifar10", "").complete_recipe(changes, epochs)


def _step(
    network: nn.Module, classifier: Any, batch: torch.Tensor, targets: torch.Tensor, optimizer: torch.optim.Optimizer
) -> None:
    with devices.autocast(classifier.device, classifier.precision):
        logits = network(batch)
    loss = functional.cross_entropy(logits.float(), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def table(result: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = [
        "| network, batch | textbook, 0 workers | textbook, 2 workers | this loop | batch ready | gain | of ready |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["training"]:
        cells = [
            f"{rate['median']:.0f} ({rate['least']:.0f} to {rate['most']:.0f})" for rate in row["images_per_s"].values()
        ]
        shares = f"{row['ratio']:.2f}x | {row['share_of_ready']:.0%}"
        lines.append(f"| {row['architecture']}, {row['batch_size']} | {' | '.join(cells)} | {shares} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    note = (
        f"Images a second, medians of n = {result['training'][0]['n']} epochs (least to most); *gain* is against the "
        "better textbook."
    )
    return "\n".join([*lines, "", f"{note} `{result['command']}`; {result['machine']}; {versions}."])


if __name__ == "__main__":
    cli.main(main)
