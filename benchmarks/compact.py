"""`compact` against airbench94, a CIFAR-10 speed record: accuracy on all test images, time and arithmetic.

    python benchmarks/compact.py --set "data.source=folder data.name=… data.path=…"
                                                        (make bench-long BENCH_LONG=compact, an hour and a half)

Both train on all training images (validation included), in bfloat16 where the hardware has it; a seed of one and a
seed of the other in turn, on CPUs as many at a time as there are, with one thread each. The reference is airbench94
as its paper has it (Jordan, arXiv 2404.00498; its code: github.com/KellerJordan/cifar10-airbench), written anew: 9.9
epochs, no test-time augmentation. Ours is the laptop profile's recipe. Time is that of the training alone; arithmetic
is counted by torch's FLOP counter, and a product of two 4096 x 4096 matrices tells what the processor could do at most.

Reads   the sections data and recipe of params.yaml
Writes  benchmarks/results/compact.json after every training, the entry `compact` of reports/bench.json, and its table
        in docs/training.md
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
import workers
from retrain_rate import opened
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from training import MEAN, STD, peak_flops

from flywheel import cli, files
from flywheel.models import device as devices
from flywheel.params import Params, Recipe
from flywheel.params import file as params_file
from flywheel.training.batches import Batches
from flywheel.training.loop import TrainingData, fit

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "compact.json"
NAMES = ("airbench94", "compact")
EPOCHS, BATCH = 9.9, 1024  # the reference's
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, BIAS_SCALE, SMOOTHING = 11.5, 0.85, 0.0153, 64.0, 0.2
WHITEN_BIAS_EPOCHS = 3


def main() -> None:
    """Train every seed of both that the file does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="", help="overrides of params.yaml, such as data.source")
    parser.add_argument("--epochs", type=int, default=13, help="of ours (default: 13)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    params = params_file.load(ROOT / "params.yaml", "laptop", arguments.set)
    data = everything(params)
    origin = {
        **pages.origin(params, ["data"], ["flywheel.training.loop"], workers.machine()),
        "images": len(data.labels), "test_images": len(data.validation_labels),
        "recipe": params.complete_recipe({}, arguments.epochs).model_dump(),
    }  # fmt: skip
    rows: list[dict[str, Any]] = pages.resumed(RESULT, origin).get("rows", [])
    known = {(row["network"], row["seed"]) for row in rows}
    tasks = [
        (name, params.complete_recipe({"seed": seed}, arguments.epochs))
        for seed in arguments.seeds
        for name in NAMES
        if (name, seed) not in known
    ]
    for row in workers.each(one, data, tasks):
        rows.append(row)
        print(row, flush=True)
        files.write_json(RESULT, {**origin, "rows": rows})
    result = files.read_json(RESULT)
    pages.add_to_report({"compact": result})
    pages.write(ROOT / "docs" / "training.md", "compact", table(result))
    print(table(result))


def everything(params: Params) -> TrainingData:
    """Return all training images, and all test images (the simulation set among them) in place of validation."""
    with tempfile.TemporaryDirectory() as folder:
        images = opened(params, Path(folder) / "data")
        train = np.concatenate([images.indices["train"], images.indices["validation"]])
        test = np.concatenate([images.indices["test"], images.indices["simulation"]])
        return TrainingData(
            images.images[train], images.labels[train], images.images[test], images.labels[test],
            images.class_names, images.mean, images.std,
        )  # fmt: skip


def one(data: TrainingData, name: str, recipe: Recipe) -> dict[str, Any]:
    """Return what one training cost and reached; a line an epoch is printed."""
    peak = peak_flops(recipe.precision)
    accuracies, seconds = [], 0.0
    epochs = reference(data, recipe) if name == NAMES[0] else ours(data, recipe)
    for accuracy, epoch_s in epochs:
        accuracies.append(round(accuracy, 4))
        seconds += epoch_s
        print(f"{name}, seed {recipe.seed}, epoch {len(accuracies)}: {accuracy:.2%}, {seconds:.0f} s", flush=True)
    if name == NAMES[0]:
        network: nn.Module = Airbench94(data).network
        batch, whole = BATCH, EPOCHS
    else:
        network, batch, whole = data.classifier(recipe).network, recipe.batch_size, recipe.epochs
    steps = math.ceil(whole * (len(data.labels) // batch))
    flops = steps * step_flops(network, data.images.shape[1], batch)
    return {
        "network": name, "seed": recipe.seed, "accuracy": accuracies[-1], "by_epoch": accuracies,
        "seconds": round(seconds, 1), "images_per_s": round(steps * batch / seconds, 1),
        "pflop": round(flops / 1e15, 4),
        "peak_tflop_per_s": round(max(peak, peak_flops(recipe.precision)) / 1e12, 3),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def ours(data: TrainingData, recipe: Recipe) -> Iterator[tuple[float, float]]:
    """Yield (accuracy on the test images, seconds of training) of each epoch of the project's loop."""
    size = len(data.labels) // recipe.batch_size * recipe.batch_size
    for result in fit(data.classifier(recipe), data, recipe, devices.pick()):
        yield result.accuracy, size / result.images_per_s


class Airbench94:
    """The network of airbench94: a fixed first layer that whitens 2 x 2 patches, three blocks, scaled logits."""

    def __init__(self, data: TrainingData):
        widths = (64, 256, 256)
        self.whitening = nn.Conv2d(3, 24, 2)
        layers: list[nn.Module] = [self.whitening, nn.GELU()]
        for inputs, outputs in zip((24, *widths), widths, strict=False):
            layers += [_convolution(inputs, outputs), nn.MaxPool2d(2), _norm(outputs), nn.GELU()]
            layers += [_convolution(outputs, outputs), _norm(outputs), nn.GELU()]
        layers += [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(widths[-1], len(data.class_names), bias=False)]
        self.network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self._whiten(prepared(torch.from_numpy(np.array(data.images[:5000]))))

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
    nn.init.dirac_(layer.weight[:inputs])  # begins as the identity
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad = False
    return layer


def prepared(images: Tensor) -> Tensor:
    """Return images (n, h, w, 3) uint8 normalised, (n, 3, h, w) float32, channels_last."""
    mean, std = torch.tensor(MEAN, device=images.device), torch.tensor(STD, device=images.device)
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


def reference(data: TrainingData, recipe: Recipe) -> Iterator[tuple[float, float]]:
    """Yield (accuracy on the test images, seconds of training) of each epoch of airbench94."""
    device = devices.pick()
    precision = devices.resolve_precision(recipe.precision, device)
    torch.manual_seed(recipe.seed)
    model = Airbench94(data)
    network = model.network.to(device)
    batches = Batches(data.images, data.labels, BATCH, flip=True, translate=2, seed=recipe.seed, device=device)
    steps = math.ceil(EPOCHS * len(batches))
    kilostep = 1024 * (1 + 1 / (1 - MOMENTUM))  # the rates are per 1024 images, decoupled from the momentum
    rate, decay = LEARNING_RATE / kilostep, WEIGHT_DECAY / kilostep * BATCH
    norms = [layer for layer in network if isinstance(layer, nn.BatchNorm2d)]
    weights = [p for layer in network if layer not in norms for p in layer.parameters() if p.requires_grad]
    assert model.whitening.bias is not None
    optimizer = torch.optim.SGD(
        [
            {
                "params": [norm.bias for norm in norms],
                "lr": rate * BIAS_SCALE,
                "weight_decay": decay / (rate * BIAS_SCALE),
            },
            {"params": weights, "lr": rate, "weight_decay": decay / rate},
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
                logits = network(prepared(images)) / 9
            # Summed, as the paper's rates are meant for.
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
            if step % 5 == 0 or step == steps:
                look_ahead(network, slow, 1.0 if step == steps else 0.95**5 * (step / steps) ** 3)
            if step == steps:
                break
        seconds = time.perf_counter() - started
        yield tested(network, data, precision, device), seconds


@torch.no_grad()
def look_ahead(network: nn.Module, slow: Mapping[str, Tensor], decay: float) -> None:
    """Move the slow weights towards the network's by 1 - decay, and put the network there."""
    for name, value in network.state_dict().items():
        if name in slow:
            slow[name].lerp_(value, 1 - decay)
            value.copy_(slow[name])


@torch.inference_mode()
def tested(network: nn.Module, data: TrainingData, precision: str, device: torch.device) -> float:
    """Return the accuracy on the test images."""
    network.eval()
    right = 0
    for start in range(0, len(data.validation_labels), 500):
        images = torch.from_numpy(np.array(data.validation_images[start : start + 500])).to(device)
        with devices.autocast(device, precision):
            predicted = network(prepared(images)).argmax(dim=1).cpu().numpy()
        right += int((predicted == data.validation_labels[start : start + 500]).sum())
    return right / len(data.validation_labels)


def step_flops(network: nn.Module, side: int, batch: int) -> int:
    """Return the floating point operations of a step forward and back, as torch counts them."""
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        network.cpu().train()(images).sum().backward()
    return int(counter.get_total_flops())


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = ["| network | test accuracy, % | seconds | of the reference's | PFLOP | of the machine's peak |"]
    lines += ["|---|---|---|---|---|---|"]
    rows = sorted(result["rows"], key=lambda row: row["seed"])
    found = {name: [row for row in rows if row["network"] == name] for name in NAMES}
    ratios = [mine["seconds"] / theirs["seconds"] for theirs, mine in zip(*found.values(), strict=True)]
    for name, own in found.items():
        points = [100 * row["accuracy"] for row in own]
        share = statistics.median(1000 * row["pflop"] / row["seconds"] / row["peak_tflop_per_s"] for row in own)
        of = "" if name == NAMES[0] else pages.spread(ratios, ".0%")
        cells = pages.spread(points, ".2f", statistics.mean)
        times = f"{statistics.median(row['seconds'] for row in own):.0f}"
        lines.append(f"| {name} | {cells} | {times} | {of} | {own[0]['pflop']:.3f} | {share:.0%} |")
    recipe = result["recipe"]
    note = (
        f"{result['images']:,} training and {result['test_images']:,} test images, no test-time augmentation; mean of "
        f"{len(ratios)} seeds (least to most), a seed of each in turn; {EPOCHS} epochs of airbench94, "
        f"{recipe['epochs']} of ours. `{result['command']}`; {result['machine']}, torch {result['versions']['torch']}."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    cli.main(main)
