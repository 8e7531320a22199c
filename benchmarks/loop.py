"""What does the loop gain? Accuracy that retraining on the failures regains after drift, over many seeds.

    python benchmarks/loop.py                                           (make bench-long: the demo, 20 seeds)
    python benchmarks/loop.py --set "retrain.learning_rate_scale=1" --name demo-rate-1 --retrainings 1

For each seed: build the data set, put a parent trained with the profile's recipe into production, then repeat: predict
all simulation images, publish the failures as feedback, run the retrain stage with the gate. There is no sweep (it
would only improve the parent) and no server (it predicts the same, see tests/serving). *Lost to drift* is the parent's
accuracy on the holdout images without drift minus that with drift.

Reads   params.yaml
Writes  benchmarks/results/loop_<name>.json after every seed, and its table in docs/retraining.md
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import harness
import samples
import workers

from flywheel import cli, files
from flywheel.data import dataset
from flywheel.data import stage as data_stage
from flywheel.data.dataset import Dataset
from flywheel.models import classifier
from flywheel.models import device as devices
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.retraining import stage as retraining_stage
from flywheel.traffic import feedback
from flywheel.training.loop import TrainingData, fit

ARMS, PARTS = ("before", "after", "control"), ("test", "holdout", "unseen")


def main() -> None:
    """Run the seeds and write the table."""
    options = harness.options(
        __doc__,
        profile=("demo", "profile of params.yaml"),
        set=harness.SET,
        name=("", "suffix of the result file (default: the profile)"),
        seeds=(20, "number of seeds"),
        retrainings=(3, "retrainings of each seed"),
    )
    name = f"loop_{options.name or options.profile}"
    params = harness.params(options.profile, options.set)
    modules = ["flywheel.data.stage", "flywheel.retraining.stage", "flywheel.traffic.feedback"]
    origin = harness.origin(params, ["data", "recipe", "gate", "retrain"], modules, workers.machine())
    tasks = {(seed,): (options.retrainings, seed) for seed in range(options.seeds)}
    path = harness.RESULTS / f"{name}.json"
    result = workers.complete(path, origin, ["seed"], tasks, run_seed, (options.profile, options.set))
    harness.publish(name, "retraining.md", result, table)


def run_seed(choice: tuple[str, str], retrainings: int, seed: int) -> dict[str, Any]:
    """Run the loop with one seed for everything; `choice` is the profile and the overrides."""
    profile, overrides = choice
    with tempfile.TemporaryDirectory(prefix="fw-loop-") as folder:
        seeded = f"data.seed={seed} retrain.seed={seed} retrain.control=true"
        params = harness.params(profile, f"{overrides} {harness.scratch(folder)} {seeded}")
        registry = Registry(params.store)
        data_stage.run(params, registry)
        version = registry.resolve(params.dataset_name)
        images = dataset.open_directory(registry.open(version))
        parent = train_parent(params, registry, version, images, seed, Path(folder) / "parent")
        clean = without_drift(params)
        return {
            "seed": seed,
            "clean_holdout": float(correct(registry, parent, clean)[clean.holdout].mean()),
            "drifted_holdout": float(correct(registry, parent, images)[images.holdout].mean()),
            "turns": [retrain(params, registry, version, images, turn) for turn in range(1, retrainings + 1)],
            "disk_bytes": files.size_of(params.store),
        }


def train_parent(
    params: Params, registry: Registry, data: Version, images: Dataset, seed: int, folder: Path
) -> Version:
    """Train from scratch for the epochs of a trial, and put the model into production."""
    recipe = params.complete_recipe({"seed": seed}, params.sweep.epochs)
    training = TrainingData.of(images)
    model = training.classifier(recipe)
    list(fit(model, training, recipe, devices.pick()))
    model.save(folder, recipe.model_dump())
    metadata = {"recipe": recipe.model_dump()}
    version = registry.publish(f"model-{seed}", "model", folder, metadata=metadata, inputs={"dataset": data.ref})
    registry.link(version, params.registered_model, ("best", "production"), reason="the parent")
    return version


def retrain(params: Params, registry: Registry, data: Version, images: Dataset, turn: int) -> dict[str, Any]:
    """Publish the failures of the production model, run the retrain stage, and return what it reports."""
    started = time.monotonic()
    production = registry.resolve(f"{params.registered_model}:production")
    failures = images.indices["simulation"][~correct(registry, production, images)]
    inputs = {"dataset": [data.ref], "model": [production.ref]}
    _, new = feedback.publish(params, registry, feedback.examples(images, failures), inputs, {})
    report = retraining_stage.run(params, registry)
    now = registry.resolve(f"{params.registered_model}:production")
    found: dict[str, Any] = {
        "turn": turn, "failures": len(failures), "new": new, "worked": report is not None,
        "production_holdout": float(correct(registry, now, images)[images.holdout].mean()),
        "wall_s": round(time.monotonic() - started, 1),
    }  # fmt: skip
    if report is not None:
        found |= {"promoted": report.promoted, "reasons": list(report.reasons), "hard": report.hard_examples}
        for arm in ARMS:
            scores = getattr(report, arm)
            found |= {f"{arm}_{part}": getattr(scores, part).accuracy if scores else None for part in PARTS}
    return found


def without_drift(params: Params) -> Dataset:
    """Return the same data set without drift: the same simulation images in the same order."""
    none = dict.fromkeys(type(params.data.drift).model_fields, 0.0)
    data = params.data.model_copy(update={"drift": params.data.drift.model_copy(update=none)})
    return samples.load(params.model_copy(update={"data": data}))


def correct(registry: Registry, version: Version, images: Dataset) -> Any:
    """Return which simulation images a model predicts rightly, (n,) bool."""
    index = images.indices["simulation"]
    return classifier.load(registry.open(version)).predict(images.images[index]).argmax(axis=1) == images.labels[index]


def summary(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures that the project promises, by what they say."""
    rows = result["rows"]
    first = [row["turns"][0] for row in rows]
    worked = [turn for turn in first if turn["worked"]]

    def share(turns: list[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> str:
        return f"{sum(map(holds, turns))} of {len(turns)}"

    lost = [row["clean_holdout"] - row["drifted_holdout"] for row in rows]
    found = {
        "seeds": str(len(rows)),
        "enough failures to retrain": share(first, lambda turn: turn["worked"]),
        "candidate promoted": share(worked, lambda turn: turn["promoted"]),
        "holdout accuracy rises": share(worked, lambda turn: turn["after_holdout"] > turn["before_holdout"]),
        "unseen accuracy rises": share(worked, lambda turn: turn["after_unseen"] > turn["before_unseen"]),
        "holdout: failures beat control": share(worked, lambda turn: turn["after_holdout"] > turn["control_holdout"]),
        "unseen: failures beat control": share(worked, lambda turn: turn["after_unseen"] > turn["control_unseen"]),
        "holdout accuracy lost to drift, points": f"{100 * statistics.median(lost):.1f}",
    }
    for number in range(len(rows[0]["turns"])):
        regained = [row["turns"][number]["production_holdout"] - row["drifted_holdout"] for row in rows]
        shares = [gain / loss for gain, loss in zip(regained, lost, strict=True)]
        low, _, high = statistics.quantiles(shares, n=4) if len(shares) > 1 else shares * 3
        text = f"{statistics.median(shares):.0%} (quartiles {low:.0%} to {high:.0%})"
        found[f"share of it regained after retraining {number + 1}"] = text
    return found


def table(result: Mapping[str, Any]) -> str:
    """Return the summary of a result in Markdown."""
    text = "Counts are seeds, after the first retraining; the last rows are medians over seeds."
    return harness.markdown(("figure", "value"), list(summary(result).items())) + harness.note(result, text)


if __name__ == "__main__":
    cli.main(main)
