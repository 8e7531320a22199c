"""`compact` against airbench94, a CIFAR-10 speed record: accuracy on all test images, time and arithmetic.

    python benchmarks/compact.py --set "data.source=folder data.name=… data.path=…"
                                                        (make bench-long BENCH_LONG=compact, an hour and a half)

Both train on all training images (validation included), in bfloat16 if the hardware has it, and alternate seed by seed.
The reference is airbench94 (Jordan, arXiv 2404.00498; github.com/KellerJordan/cifar10-airbench), written again from the
paper: 9.9 epochs, no test-time augmentation. Ours is the laptop profile's recipe. The time is that of the training
alone. Torch's FLOP counter counts the arithmetic; the machine's peak is measured by a 4096 x 4096 matrix product.

Reads   the sections data and recipe of params.yaml
Writes  benchmarks/results/compact.json after every training, and its table in docs/training.md
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import harness
import numpy as np
import samples
import torch
import workers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from training import MEAN, STD, peak_flops

from flywheel import cli
from flywheel.models import device as devices
from flywheel.params import Recipe
from flywheel.training.batches import AugmentedBatches
from flywheel.training.loop import TrainingData, fit

NAMES = ("airbench94", "compact")
KEYS = ("network", "seed")
# The hyperparameters of airbench94. Its rates are per 1,024 images and decoupled from the momentum.
EPOCHS, BATCH = 9.9, 1024
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, BIAS_SCALE, SMOOTHING = 11.5, 0.85, 0.0153, 64.0, 0.2
WHITEN_BIAS_EPOCHS = 3


def main() -> None:
    """Train both networks with each seed, and write the table."""
    options = harness.options(
        __doc__, set=harness.SET, epochs=(13, "epochs of compact"), seeds=([0, 1, 2], "seeds of each network")
    )
    params = harness.params("laptop", options.set)
    data = samples.train_and_test(samples.load(params), simulation=True)
    origin = {
        **harness.origin(params, ["data"], ["flywheel.training.loop"], workers.machine()),
        "images": len(data.labels), "test_images": len(data.validation_labels),
        "recipe": params.complete_recipe({}, options.epochs).model_dump(),
    }  # fmt: skip
    recipes = [params.complete_recipe({"seed": seed}, options.epochs) for seed in options.seeds]
    tasks = {(name, recipe.seed): (name, recipe) for recipe in recipes for name in NAMES}
    result = workers.complete(harness.RESULTS / "compact.json", origin, KEYS, tasks, train, data)
    harness.publish("compact", "training.md", result, table)


def train(data: TrainingData, name: str, recipe: Recipe) -> dict[str, Any]:
    """Train one network and return its accuracy, time and arithmetic; print a line per epoch."""
    peak = peak_flops(recipe.precision)
    accuracies, seconds = [], 0.0
    for accuracy, epoch_s in train_airbench94(data, recipe) if name == NAMES[0] else train_compact(data, recipe):
        accuracies.append(round(accuracy, 4))
        seconds += epoch_s
        print(f"{name}, seed {recipe.seed}, epoch {len(accuracies)}: {accuracy:.2%}, {seconds:.0f} s", flush=True)
    if name == NAMES[0]:
        batch, epochs = BATCH, EPOCHS
        network: nn.Module = Airbench94(data).network
    else:
        network, batch, epochs = data.classifier(recipe).network, recipe.batch_size, float(recipe.epochs)
    steps = math.ceil(epochs * (len(data.labels) // batch))
    flops = steps * step_flops(network, data.images.shape[1], batch)
    return {
        "network": name, "seed": recipe.seed, "accuracy": accuracies[-1], "by_epoch": accuracies,
        "seconds": round(seconds, 1), "images_per_s": round(steps * batch / seconds, 1),
        "pflop": round(flops / 1e15, 4),
        "peak_tflop_per_s": round(max(peak, peak_flops(recipe.precision)) / 1e12, 3),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def train_compact(data: TrainingData, recipe: Recipe) -> Iterator[tuple[float, float]]:
    """Yield (accuracy on the test images, seconds of training) of each epoch of the project's loop."""
    size = len(data.labels) // recipe.batch_size * recipe.batch_size
    for result in fit(data.classifier(recipe), data, recipe, devices.pick()):
        yield result.accuracy, size / result.images_per_s


class Airbench94:
    """The network of airbench94: a fixed first layer that whitens 2 x 2 patches, three blocks, a linear layer."""

    def __init__(self, data: TrainingData):
        widths = (64, 256, 256)
        self.whitening = nn.Conv2d(3, 24, 2)
        layers: list[nn.Module] = [self.whitening, nn.GELU()]
        for inputs, outputs in zip((24, *widths), widths, strict=False):
            layers += [_convolution(inputs, outputs), nn.MaxPool2d(2), _norm(outputs), nn.GELU()]
            layers += [_convolution(outputs, outputs), _norm(outputs), nn.GELU()]
        layers += [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(widths[-1], len(data.class_names), bias=False)]
        self.network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self._whiten(normalize(torch.from_numpy(np.array(data.images[:5000]))))

    @torch.no_grad()
    def _whiten(self, images: Tensor) -> None:
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).transpose(1, 3).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        directions = (vectors / (values + 5e-4).sqrt()).T.flip(0).reshape(12, 3, 2, 2)
        self.whitening.weight.copy_(torch.cat((directions, -directions)))
        self.whitening.weight.requires_grad = False
        assert self.whitening.bias is not None
        self.whitening.bias.zero_()


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[:inputs])  # starts as the identity
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad = False
    return layer


def normalize(images: Tensor) -> Tensor:
    """Normalize images (n, h, w, 3) uint8 to (n, 3, h, w) float32, channels_last."""
    mean, std = torch.tensor(MEAN, device=images.device), torch.tensor(STD, device=images.device)
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


def train_airbench94(data: TrainingData, recipe: Recipe) -> Iterator[tuple[float, float]]:
    """Yield (accuracy on the test images, seconds of training) of each epoch of airbench94."""
    device = devices.pick()
    precision = devices.resolve_precision(recipe.precision, device)
    torch.manual_seed(recipe.seed)
    model = Airbench94(data)
    network = model.network.to(device)
    batches = AugmentedBatches(data.images, data.labels, BATCH, flip=True, translate=2, seed=recipe.seed, device=device)
    steps = math.ceil(EPOCHS * len(batches))
    kilostep = 1024 * (1 + 1 / (1 - MOMENTUM))
    rate, decay = LEARNING_RATE / kilostep, WEIGHT_DECAY / kilostep * BATCH
    norms = [layer for layer in network if isinstance(layer, nn.BatchNorm2d)]
    weights = [p for layer in network if layer not in norms for p in layer.parameters() if p.requires_grad]
    assert model.whitening.bias is not None
    optimizer = torch.optim.SGD(
        [
            {"params": parameters, "lr": rate * scale, "weight_decay": decay / (rate * scale)}
            for parameters, scale in (([norm.bias for norm in norms], BIAS_SCALE), (weights, 1))
        ],
        momentum=MOMENTUM,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: float(np.interp(step / steps, [0, 0.23, 1], [0.2, 1, 0.07]))
    )
    slow = {name: value.clone() for name, value in network.state_dict().items() if value.is_floating_point()}
    step = 0
    for epoch in range(1, math.ceil(EPOCHS) + 1):
        started = time.perf_counter()
        network.train()
        model.whitening.bias.requires_grad = epoch <= WHITEN_BIAS_EPOCHS
        for images, labels in batches.epoch(epoch):
            with devices.autocast(device, precision):
                logits = network(normalize(images)) / 9
            # The paper's rates are for the sum of the losses.
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
            if step % 5 == 0 or step == steps:
                update_lookahead(network, slow, 1.0 if step == steps else 0.95**5 * (step / steps) ** 3)
            if step == steps:
                break
        seconds = time.perf_counter() - started
        yield evaluate(network, data, precision), seconds


@torch.no_grad()
def update_lookahead(network: nn.Module, slow: Mapping[str, Tensor], decay: float) -> None:
    """Move the slow weights towards the network's by 1 - decay, and copy them into the network."""
    for name, value in network.state_dict().items():
        if name in slow:
            slow[name].lerp_(value, 1 - decay)
            value.copy_(slow[name])


@torch.inference_mode()
def evaluate(network: nn.Module, data: TrainingData, precision: str) -> float:
    """Return the accuracy on the validation images."""
    network.eval()
    device, right = devices.pick(), 0
    for start in range(0, len(data.validation_labels), 500):
        images = normalize(torch.from_numpy(np.array(data.validation_images[start : start + 500])).to(device))
        with devices.autocast(device, precision):
            predicted = network(images).argmax(dim=1).cpu().numpy()
        right += int((predicted == data.validation_labels[start : start + 500]).sum())
    return right / len(data.validation_labels)


def step_flops(network: nn.Module, side: int, batch: int) -> int:
    """Return the floating-point operations of a forward and backward pass, as torch counts them."""
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        network.cpu().train()(images).sum().backward()
    return int(counter.get_total_flops())


def by_network(result: Mapping[str, Any]) -> tuple[dict[str, list[dict[str, Any]]], list[float]]:
    """Return the rows of each network by seed, and the times of compact relative to airbench94's."""
    rows = sorted(result["rows"], key=lambda row: row["seed"])
    found = {name: [row for row in rows if row["network"] == name] for name in NAMES}
    return found, [own["seconds"] / reference["seconds"] for reference, own in zip(*found.values(), strict=True)]


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    found, ratios = by_network(result)
    rows = [
        (
            name,
            harness.spread([100 * row["accuracy"] for row in own], ".2f", statistics.mean),
            f"{statistics.median(row['seconds'] for row in own):.0f}",
            "" if name == NAMES[0] else harness.spread(ratios, ".0%"),
            f"{own[0]['pflop']:.3f}",
            f"{statistics.median(1000 * r['pflop'] / r['seconds'] / r['peak_tflop_per_s'] for r in own):.0%}",
        )
        for name, own in found.items()
    ]
    heads = ("network", "test accuracy, %", "seconds", "relative to airbench94", "PFLOP", "of the machine's peak")
    return harness.markdown(heads, rows) + harness.note(
        result,
        f"{result['images']:,} training and {result['test_images']:,} test images, no test-time augmentation; mean of "
        f"{len(ratios)} seeds (lowest to highest), alternating; {EPOCHS} epochs of airbench94, "
        f"{result['recipe']['epochs']} of compact.",
    )


if __name__ == "__main__":
    cli.main(main)
