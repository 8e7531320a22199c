"""Does bfloat16 cost accuracy? Train with the same seeds in bfloat16 and in float32.

    python benchmarks/precision.py --set "data.source=folder data.name=… data.path=…"
                                                                      (make bench-long BENCH_LONG=precision)

Each seed trains twice on the same random 5,000 images, with the same initial weights, order and augmentation. `compact`
has the laptop profile's recipe (Muon), other networks the cifar10 profile's (SGD). The accuracy is that of the last
epoch on the test images, in the precision of the training.

Reads   the sections data and recipe of params.yaml
Writes  benchmarks/results/precision.json after every training, and its table in docs/training.md
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import harness
import samples
import workers

from flywheel import cli
from flywheel.models import device as devices
from flywheel.models.architectures import ARCHITECTURES
from flywheel.params import Recipe
from flywheel.training.loop import TrainingData, fit

PRECISIONS = ("bfloat16", "float32")
KEYS = ("architecture", "seed", "precision")


def main() -> None:
    """Train each architecture, seed and precision, and write the table."""
    options = harness.options(
        __doc__,
        set=harness.SET,
        architectures=(["compact", "standard"], "networks to train", ARCHITECTURES),
        seeds=([0, 1, 2], "seeds of each network"),
        images=(5000, "training images"),
        epochs=(8, "epochs of a training"),
    )
    params = harness.params("laptop", options.set)
    everything = samples.train_and_test(samples.load(params))
    data = samples.draw(everything, options.images, len(everything.validation_labels))
    recipes = [
        harness.params("laptop" if name == "compact" else "cifar10", options.set).complete_recipe(
            {"architecture": name, "seed": seed, "precision": precision}, options.epochs
        )
        for name in options.architectures
        for seed in options.seeds
        for precision in PRECISIONS
    ]
    origin = {
        **harness.origin(params, ["data"], ["flywheel.training.loop"], workers.machine()),
        "recipes": [recipe.model_dump() for recipe in recipes],
        "images": len(data.labels), "test_images": len(data.validation_labels), "epochs": options.epochs,
    }  # fmt: skip
    tasks = {tuple(getattr(recipe, key) for key in KEYS): (recipe,) for recipe in recipes}
    result = workers.complete(harness.RESULTS / "precision.json", origin, KEYS, tasks, train, data)
    harness.publish("precision", "training.md", result, table)


def train(data: TrainingData, recipe: Recipe) -> dict[str, Any]:
    """Train and return the last accuracy and the images per second."""
    results = list(fit(data.classifier(recipe), data, recipe, devices.pick()))
    return {
        **{key: getattr(recipe, key) for key in KEYS},
        "accuracy": round(results[-1].accuracy, 4),
        "images_per_s": round(statistics.median(result.images_per_s for result in results), 1),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = []
    for name in dict.fromkeys(row["architecture"] for row in result["rows"]):
        rows = sorted((row for row in result["rows"] if row["architecture"] == name), key=lambda row: row["seed"])
        found = [[row for row in rows if row["precision"] == precision] for precision in PRECISIONS]
        pairs = list(zip(*found, strict=True))
        accuracies = [[100 * row["accuracy"] for row in rows] for rows in found]
        differences = [low - full for low, full in zip(*accuracies, strict=True)]
        speed = statistics.median(low["images_per_s"] / full["images_per_s"] for low, full in pairs)
        cells = [harness.spread(values, ".2f", statistics.mean) for values in accuracies]
        lines.append((name, *cells, harness.spread(differences, "+.2f", statistics.mean), f"{speed:.2f}x"))
    heads = ("network", "accuracy in bfloat16, %", "in float32, %", "difference, points", "speed of bfloat16")
    return harness.markdown(heads, lines) + harness.note(
        result,
        f"Accuracy on {result['test_images']:,} test images after {result['epochs']} epochs of {result['images']:,}; "
        f"means of {len({row['seed'] for row in result['rows']})} seeds (lowest to highest), differences per seed.",
    )


if __name__ == "__main__":
    cli.main(main)
