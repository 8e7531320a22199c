"""Would another retraining learn more? Weights, learning rates, shares of a batch, epochs and averaged weights.

    python benchmarks/retrain_variants.py                   (make bench-long BENCH_LONG=retrain_variants)

For each seed: build the data set, train a parent, label all simulation images of the side `train`, and continue the
parent in each way, always from the same weights. All but `twice the epochs` take as many optimizer steps.

Reads   params.yaml
Writes  benchmarks/results/retrain_variants_<name>.json after every seed, and its table in docs/retraining.md
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import loop
import numpy as np
import torch
import workers

from flywheel import cli, files
from flywheel.data.dataset import ImageRows
from flywheel.models import classifier
from flywheel.models import device as devices
from flywheel.models.classifier import Classifier
from flywheel.retraining import examples, train
from flywheel.retraining.examples import Labelled, mix
from flywheel.retraining.stage import recipe_of
from flywheel.traffic import feedback
from flywheel.training.loop import TrainingData

BASE = "as it is"
CHOSEN = 0.2  # of the labelled images choose the epoch, where they do


def main() -> None:
    """Run the seeds and write the table."""
    options = harness.options(__doc__, **harness.STUDY, seeds=(10, "number of seeds"))
    name = f"retrain_variants_{options.name or options.profile}"
    profile, overrides = harness.study(options)
    params = harness.params(profile, overrides)
    modules = ["flywheel.data.stage", "flywheel.retraining.train", "flywheel.traffic.feedback"]
    origin = harness.origin(params, ["data", "recipe", "retrain"], modules, workers.machine())
    tasks = {(seed,): (seed,) for seed in range(options.seeds)}
    result = workers.complete(harness.RESULTS / f"{name}.json", origin, ["seed"], tasks, run_seed, (profile, overrides))
    harness.publish(name, "retraining.md", result, table)


def run_seed(choice: tuple[str, str], seed: int) -> dict[str, Any]:
    """Retrain in every way with one seed; `choice` is the profile and the overrides."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fw-variants-") as folder:
        registry, images, parent, copy = loop.begin(choice, seed, Path(folder))
        params, directory = copy("all"), registry.open(parent)
        index = images.indices["simulation"]
        probabilities = classifier.load(directory).predict(images.images[index])
        listed = feedback.examples(images, index, probabilities.argmax(axis=1), probabilities.max(axis=1))
        labelled = examples.choose([one for one in listed if one.side == "train"], images)
        recipe, _ = recipe_of(params, parent, files.read_json(directory / "model.json")["recipe"])
        data, base = TrainingData.of(images), params.retrain.weight
        steps = len(data.labels) + round(base * len(labelled))

        def trained(
            mixed: TrainingData | None = None, *, weight: float = base, rate: float = 1.0, epochs: int = 1
        ) -> Classifier:
            model = classifier.load(directory, devices.pick())
            if mixed is None:
                mixed = mix(data, labelled.images, labelled.labels, weight, seed, steps)
            scaled = recipe.model_copy(
                update={"learning_rate": recipe.learning_rate * rate, "epochs": recipe.epochs * epochs}
            )
            train.train_arm(model, mixed, scaled, model.device)
            return model

        share = len(data.labels) / len(labelled)  # as many labelled as original images
        candidate = trained()
        variants: Mapping[str, Callable[[], Classifier]] = {
            BASE: lambda: candidate,
            "weight 1": lambda: trained(weight=1),
            "weight 4": lambda: trained(weight=4),
            "half of each batch is labelled images": lambda: trained(weight=share),
            "failures twice as often as the rest": lambda: trained(_failures_twice(data, labelled, base, seed, steps)),
            "a third of the learning rate": lambda: trained(rate=1 / 3),
            "three times the learning rate": lambda: trained(rate=3),
            "twice the epochs": lambda: trained(epochs=2),
            "a fifth of the labelled images chooses the epoch": lambda: trained(
                _choosing(data, labelled, base, seed, steps)
            ),
            "weights averaged with the parent's, 3 to 1": lambda: _averaged(directory, candidate, 0.75),
            "weights averaged with the parent's, 1 to 1": lambda: _averaged(directory, candidate, 0.5),
        }
        found = {name: _accuracies(variant(), images) for name, variant in variants.items()}
        before = _accuracies(classifier.load(directory), images)
    return {"seed": seed, "before": before, "variants": found, "wall_s": round(time.monotonic() - started, 1)}


def _failures_twice(data: TrainingData, labelled: Labelled, weight: float, seed: int, steps: int) -> TrainingData:
    index = np.concatenate([np.arange(len(labelled)), np.flatnonzero(~labelled.right)])
    return mix(data, labelled.images.select(index), labelled.labels[index], weight, seed, steps)


def _choosing(data: TrainingData, labelled: Labelled, weight: float, seed: int, steps: int) -> TrainingData:
    """Take some labelled images out of the training and put them beside the validation images."""
    order = np.random.default_rng(seed).permutation(len(labelled))
    chosen, rest = np.split(order, [round(CHOSEN * len(labelled))])
    mixed = mix(data, labelled.images.select(rest), labelled.labels[rest], weight, seed, steps)
    return replace(
        mixed,
        validation_images=ImageRows.of(data.validation_images, labelled.images.select(chosen)),
        validation_labels=np.concatenate([data.validation_labels, labelled.labels[chosen]]),
    )


def _averaged(parent: Path, candidate: Classifier, share: float) -> Classifier:
    """Return WiSE-FT's model: `share` of the candidate's weights, the rest of the parent's (arXiv 2109.01903)."""
    model = classifier.load(parent, candidate.device)
    with torch.no_grad():
        weights = candidate.network.state_dict()
        for name, value in model.network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(weights[name], share)
    return model


def _accuracies(model: Classifier, images: Any) -> dict[str, float]:
    simulation, test = images.indices["simulation"][images.holdout], images.indices["test"]
    return {
        name: float((model.predict(images.images[index]).argmax(axis=1) == images.labels[index]).mean())
        for name, index in (("holdout", simulation), ("test", test))
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the table of a result in Markdown."""
    rows = result["rows"]
    lines = []
    for name in rows[0]["variants"]:
        line = [name]
        for part in ("holdout", "test"):
            values = [100 * (row["variants"][name][part] - row["variants"][BASE][part]) for row in rows]
            if name == BASE:
                line += [f"{100 * statistics.mean(row['variants'][name][part] for row in rows):.1f} %", "–"]
            else:
                line += [harness.spread(values, "+.1f", statistics.mean), f"{sum(value > 0 for value in values)}"]
        lines.append(tuple(line))
    heads = ("retraining on all labelled images", "holdout", "seeds better", "test", "seeds better")
    before = {part: 100 * statistics.mean(row["before"][part] for row in rows) for part in ("holdout", "test")}
    return harness.markdown(heads, lines) + harness.note(
        result,
        f"{len(rows)} seeds; first row: mean accuracy (before: {before['holdout']:.1f} % and {before['test']:.1f} %); "
        "others: points more, mean (lowest to highest).",
    )


if __name__ == "__main__":
    cli.main(main)
