"""Does bfloat16 cost accuracy? The same trainings in bfloat16 and in float32, with the same seeds.

    python benchmarks/precision.py --set "data.source=folder data.name=… data.path=…"
                                                                      (make bench-long BENCH_LONG=precision)

Every seed trains on the same 5,000 images drawn from all, once in each precision, on CPUs side by side with one thread
each: weights, order and augmentation begin alike. `compact` has the laptop profile's recipe (Muon), other networks the
cifar10 profile's (SGD). Accuracy is that of the last epoch on the test images, in the precision that the network was
trained in.

Reads   the sections data and recipe of params.yaml
Writes  benchmarks/results/precision.json after every training, and its table in docs/training.md
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pages
import workers
from retrain_rate import opened

from flywheel import cli, files
from flywheel.models import device as devices
from flywheel.models.architectures import ARCHITECTURES
from flywheel.params import Recipe
from flywheel.params import file as params_file
from flywheel.training.loop import TrainingData, fit

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "precision.json"
PRECISIONS = ("bfloat16", "float32")
PROFILES = {"compact": "laptop"}


def main() -> None:
    """Train every architecture, seed and precision, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="", help="overrides of params.yaml, such as data.source")
    parser.add_argument(
        "--architectures", nargs="+", default=["compact", "standard"], choices=list(ARCHITECTURES), metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=5000, help="to train on (default: 5000)")
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    params = params_file.load(ROOT / "params.yaml", "laptop", arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        dataset = opened(params, Path(folder) / "data")
        test = dataset.split("test")
        everything = replace(TrainingData.of(dataset), validation_images=test.images, validation_labels=test.labels)
        data = some_of(everything, arguments.images, len(test.labels))
    recipes = [
        params_file.load(ROOT / "params.yaml", PROFILES.get(name, "cifar10"), arguments.set).complete_recipe(
            {"architecture": name, "seed": seed, "precision": precision}, arguments.epochs
        )
        for name in arguments.architectures
        for seed in arguments.seeds
        for precision in PRECISIONS
    ]
    origin = {
        **pages.origin(params, ["data"], ["flywheel.training.loop"], workers.machine()),
        "recipes": [recipe.model_dump() for recipe in recipes],
        "images": len(data.labels), "test_images": len(data.validation_labels), "epochs": arguments.epochs,
    }  # fmt: skip
    rows: list[dict[str, Any]] = pages.resumed(RESULT, origin).get("rows", [])
    known = {(row["architecture"], row["seed"], row["precision"]) for row in rows}
    tasks = [(recipe,) for recipe in recipes if (recipe.architecture, recipe.seed, recipe.precision) not in known]
    for row in workers.each(trained, data, tasks):
        rows.append(row)
        print(row, flush=True)
        files.write_json(RESULT, {**origin, "rows": rows})
    result = files.read_json(RESULT)
    pages.write(ROOT / "docs" / "training.md", "precision", table(result))
    print(table(result))


def some_of(data: TrainingData, images: int, validation_images: int) -> TrainingData:
    """Return so many training and validation images, drawn with seed 0 (a folder's are sorted by class)."""
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


def trained(data: TrainingData, recipe: Recipe) -> dict[str, Any]:
    """Return the last accuracy of a training and its images a second."""
    results = list(fit(data.classifier(recipe), data, recipe, devices.pick()))
    return {
        "architecture": recipe.architecture,
        "seed": recipe.seed,
        "precision": recipe.precision,
        "accuracy": round(results[-1].accuracy, 4),
        "images_per_s": round(statistics.median(result.images_per_s for result in results), 1),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = ["| network | bfloat16, % | float32, % | difference, points | speed |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(row["architecture"] for row in result["rows"]):
        of_seeds = sorted((row for row in result["rows"] if row["architecture"] == name), key=lambda row: row["seed"])
        found = {kind: [row for row in of_seeds if row["precision"] == kind] for kind in PRECISIONS}
        cells = [
            pages.spread([100 * row["accuracy"] for row in rows], ".2f", statistics.mean) for rows in found.values()
        ]
        pairs = list(zip(*found.values(), strict=True))
        points = [100 * (ours["accuracy"] - theirs["accuracy"]) for ours, theirs in pairs]
        speed = statistics.median(ours["images_per_s"] / theirs["images_per_s"] for ours, theirs in pairs)
        difference = pages.spread(points, "+.2f", statistics.mean)
        lines.append(f"| {name} | {' | '.join(cells)} | {difference} | {speed:.2f}x |")
    seeds = len({row["seed"] for row in result["rows"]})
    note = (
        f"Accuracy on {result['test_images']:,} test images after {result['epochs']} epochs of {result['images']:,}; "
        f"means of {seeds} seeds (least to most), differences seed by seed. `{result['command']}`; "
        f"{result['machine']}, torch {result['versions']['torch']}."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    cli.main(main)
