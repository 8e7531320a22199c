"""Which learning rate should a retraining have? Accuracy before and after, with the failures and with a control arm.

    python benchmarks/retrain_rate.py                  (make bench-long BENCH_LONG=retrain_rate, about 10 minutes)
    python benchmarks/retrain_rate.py --profile laptop --name cifar10-jpeg-10k \\
        --set "data.source=folder data.name=cifar10-jpeg data.path=path/to/jpeg-10k"

Each seed trains a parent from scratch with the profile's recipe; the failures are the images of the side `train` of
simulation that it predicts wrongly, the control arm is a draw of the same size from those that it predicts rightly.
Every scale starts from that parent.

Reads   the sections data, recipe and retrain of params.yaml
Writes  benchmarks/results/retrain_rate_<name>.json after every seed, and its table in docs/retraining.md
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import numpy as np
import samples
import workers

from flywheel import cli
from flywheel.data.dataset import Dataset
from flywheel.models import classifier
from flywheel.models import device as devices
from flywheel.params import Params
from flywheel.retraining import scores
from flywheel.retraining.examples import mix
from flywheel.retraining.train import train_arm
from flywheel.training.loop import TrainingData, fit

ARMS = ("failures", "control")


def main() -> None:
    """Train every seed, arm and scale, and write the table."""
    options = harness.options(
        __doc__,
        **harness.STUDY,
        scales=([1.0, 0.3, 0.1, 0.03], "learning rates, relative to the parent's"),
        seeds=([0, 1, 2], "seeds of the parents"),
        parent_epochs=(8, "epochs of a parent"),
    )
    name = f"retrain_rate_{options.name or options.profile}"
    params = harness.params(options.profile, options.set)
    images = samples.load(params)
    origin = {
        **harness.origin(params, ["data", "recipe", "retrain"], ["flywheel.retraining.train"], workers.machine()),
        "n": {part: len(index) for part, index in images.indices.items()} | {"holdout": int(images.holdout.sum())},
    }
    tasks = {(seed,): (params, options.scales, seed, options.parent_epochs) for seed in options.seeds}
    result = workers.complete(harness.RESULTS / f"{name}.json", origin, ["seed"], tasks, retrain, images)
    harness.publish(name, "retraining.md", result, table)


def retrain(images: Dataset, params: Params, scales: list[float], seed: int, parent_epochs: int) -> dict[str, Any]:
    """Train a parent, then both arms at every scale, and return their accuracies."""
    device, data = devices.pick(), TrainingData.of(images)
    recipe = params.complete_recipe({"seed": seed}, parent_epochs)
    parent = data.classifier(recipe)
    list(fit(parent, data, recipe, device))
    before = scores.predict(parent, images)
    index = images.indices["simulation"]
    right = before["simulation"] == images.labels[index]
    failures, known = index[~right & ~images.holdout], index[right & ~images.holdout]
    repeat = len(known) < len(failures)
    control = np.random.default_rng(seed).choice(known, len(failures), replace=repeat)
    row: dict[str, Any] = {"seed": seed, "failures": len(failures), "before": accuracies(images, before), "arms": []}
    with tempfile.TemporaryDirectory() as folder:
        parent.save(Path(folder), recipe.model_dump())
        for scale in scales:
            for name, chosen in zip(ARMS, (failures, np.sort(control)), strict=True):
                changes = {"learning_rate": recipe.learning_rate * scale, "epochs": params.retrain.epochs, "seed": seed}
                mixed = mix(data, images.images[chosen], images.labels[chosen], params.retrain.weight, seed)
                arm = classifier.load(Path(folder), device)
                epochs = train_arm(arm, mixed, recipe.model_copy(update=changes), device)
                after = accuracies(images, scores.predict(arm, images))
                kept = next(epoch.epoch for epoch in epochs if epoch.kept)
                row["arms"].append({"arm": name, "scale": scale, "kept_epoch": kept, **after})
                print(f"seed {seed}, scale {scale:g}, {name}: {after}", flush=True)
    return row


def accuracies(images: Dataset, predictions: scores.Predicted) -> dict[str, float]:
    """Return the accuracy on the test images and on the holdout side of simulation."""
    test, simulation = (images.labels[images.indices[name]] for name in ("test", "simulation"))
    return {
        "test": float((predictions["test"] == test).mean()),
        "holdout": float((predictions["simulation"] == simulation)[images.holdout].mean()),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the changes of accuracy in Markdown."""
    rows = result["rows"]

    def change(scale: float, arm: str, part: str) -> str:
        values = [
            100 * (after[part] - row["before"][part])
            for row in rows
            for after in row["arms"]
            if (after["arm"], after["scale"]) == (arm, scale)
        ]
        return harness.spread(values, "+.1f", statistics.mean)

    scales = sorted({arm["scale"] for arm in rows[0]["arms"]}, reverse=True)
    columns = [(part, arm) for part in ("holdout", "test") for arm in ARMS]
    before = {part: statistics.mean(100 * row["before"][part] for row in rows) for part in ("holdout", "test")}
    heads = ("learning-rate scale", *(f"{part}, {arm}" for part, arm in columns))
    return harness.markdown(
        heads, [(f"{scale:g}", *(change(scale, arm, part) for part, arm in columns)) for scale in scales]
    ) + harness.note(
        result,
        f"Change of accuracy in points, mean of {len(rows)} seeds (lowest to highest). Before: "
        f"{before['holdout']:.1f} % of {result['n']['holdout']:,} holdout images, {before['test']:.1f} % of "
        f"{result['n']['test']:,} test images; {statistics.mean(row['failures'] for row in rows):.0f} failures.",
    )


if __name__ == "__main__":
    cli.main(main)
