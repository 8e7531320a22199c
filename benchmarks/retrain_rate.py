"""What the learning rate of a retraining does: accuracy before and after, with the failures and with a control arm.

    .venv/bin/python benchmarks/retrain_rate.py --profile demo                       digits with drift, about 10 minutes
    .venv/bin/python benchmarks/retrain_rate.py --profile laptop --name cifar10-jpeg --parent-epochs 8 \\
        --set "data.source=folder data.name=cifar10-jpeg data.path=path/to/cifar10-jpeg.tar.gz"

A parent is trained from scratch with the profile's recipe for each seed; its failures on the side `train` of the
simulation images are the hard examples. Every scale then starts from that same parent.

Reads   the sections data, recipe and retrain of params.yaml
Writes  benchmarks/results/retrain_rate_<name>.json after every seed, and its table into docs/retraining.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch

from flywheel import cli, files
from flywheel.data import build, dataset, sources
from flywheel.data.dataset import Dataset
from flywheel.models import classifier
from flywheel.models import device as devices
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.retraining import arms, scores
from flywheel.retraining.examples import mix
from flywheel.training.loop import TrainingData, fit

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "retraining.md"


def opened(params: Params, folder: Path) -> Dataset:
    """Build the data set of the params in a folder and open it."""
    dataset.save(build.build(sources.load(params.data, params.cache), params.data), folder)
    return dataset.open_directory(folder)


def rows_of_seed(
    params: Params,
    data: TrainingData,
    images: Dataset,
    scales: list[float],
    seed: int,
    parent_epochs: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """Train a parent, then both arms at every scale; return a row for the parent and one for each arm."""
    device = devices.pick()
    recipe = params.complete_recipe({"seed": seed}, parent_epochs)
    parent = data.classifier(recipe)
    for result in fit(parent, data, recipe, device):
        print(f"seed {seed}, parent, epoch {result.epoch}: {result.accuracy:.2%}", flush=True)
    parent.save(folder, recipe.model_dump())
    before = scores.Predictions.of(parent, images)
    index = images.indices["simulation"]
    wrong = (before.simulation != images.labels[index]) & ~images.holdout
    right = (before.simulation == images.labels[index]) & ~images.holdout
    hard = index[wrong]
    control = index[np.sort(np.random.default_rng(seed).choice(np.flatnonzero(right), len(hard), replace=False))]
    everything = np.ones(len(index), bool)
    rows = [{"seed": seed, "arm": "before", "hard": len(hard), **scored(images, everything, before)}]
    for scale in scales:
        for name, chosen in (("failures", hard), ("control", control)):
            changes = {"learning_rate": recipe.learning_rate * scale, "epochs": params.retrain.epochs, "seed": seed}
            started = time.monotonic()
            mixed = mix(data, images.images[chosen], images.labels[chosen], params.retrain.weight, seed)
            arm = arms.train(classifier.load(folder, device), mixed, recipe.model_copy(update=changes), device)
            after = scores.Predictions.of(arm.classifier, images)
            rows.append(
                {
                    "seed": seed, "arm": name, "scale": scale, "kept_epoch": arm.kept_epoch,
                    "validation": arm.epochs[arm.kept_epoch - 1].accuracy,
                    "wall_s": round(time.monotonic() - started, 1), **scored(images, everything, after, before),
                }
            )  # fmt: skip
            print(
                f"seed {seed}, scale {scale:g}, {name}: {rows[-1]['test']:.2%} test, {rows[-1]['holdout']:.2%} holdout"
            )
    return rows


def scored(images: Dataset, unseen: Any, after: scores.Predictions, before: Any = None) -> dict[str, Any]:
    """Return accuracy on test and holdout, with the images fixed and broken on test."""
    found = scores.scores(images, unseen, after, before)
    row = {part: found[part]["accuracy"] for part in ("test", "holdout")}
    return row | {key: found["test"][key] for key in ("fixed", "broken") if key in found["test"]}


def table(result: dict[str, Any]) -> str:
    """Return the table in Markdown: means over seeds, with the least and the most; changes are against before."""
    rows = result["rows"]
    before = {row["seed"]: row for row in rows if row["arm"] == "before"}

    def cell(chosen: list[dict[str, Any]], part: str) -> str:
        values = [100 * (row[part] - before[row["seed"]][part]) for row in chosen]
        return pages.spread(values, "+.1f", statistics.mean)

    lines = [
        "| scale | holdout, with the failures | holdout, control | test, with the failures | test, control |",
        "|---|---|---|---|---|",
    ]
    for scale in sorted({row["scale"] for row in rows if "scale" in row}, reverse=True):
        arms_ = {
            name: [r for r in rows if r.get("scale") == scale and r["arm"] == name] for name in ("failures", "control")
        }
        cells = [cell(arms_[name], part) for part in ("holdout", "test") for name in ("failures", "control")]
        lines.append(f"| {scale:g} | {' | '.join(cells)} |")
    means = {part: statistics.mean(100 * row[part] for row in before.values()) for part in ("holdout", "test")}
    hard = statistics.mean(row["hard"] for row in before.values())
    note = (
        f"Points against before, mean of {len(before)} seeds (least to most). "
        f"Before: holdout {means['holdout']:.1f} % of "
        f"{result['n']['holdout']:,}, test {means['test']:.1f} % of {result['n']['test']:,}; {hard:.0f} failures. "
        f"`{result['command']}`; {result['machine']}, torch {result['versions']['torch']}."
    )
    return "\n".join([*lines, "", note])


def main() -> None:
    """Run every seed and scale, write the rows as they come, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--set", default="", help="overrides of params.yaml")
    parser.add_argument("--name", help="of the result file (default: the profile)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 0.3, 0.1, 0.03])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parent-epochs", type=int, default=8)
    arguments = parser.parse_args()
    params = params_file.load("params.yaml", arguments.profile, arguments.set)
    name = arguments.name or arguments.profile
    result: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        images = opened(params, Path(temporary) / "data")
        data = TrainingData.of(images)
        for seed in arguments.seeds:
            model = Path(temporary) / f"parent-{seed}"
            rows += rows_of_seed(params, data, images, arguments.scales, seed, arguments.parent_epochs, model)
            result = {
                "command": pages.command(),
                "profile": arguments.profile,
                "seeds": sorted({row["seed"] for row in rows}),
                "parent_epochs": arguments.parent_epochs,
                "retrain": params.retrain.model_dump(),
                "recipe": params.recipe.model_dump(),
                "n": {part: len(images.indices[part]) for part in ("train", "validation", "test", "simulation")}
                | {"holdout": int(images.holdout.sum())},
                "machine": f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads, {devices.pick().type}",
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                "rows": rows,
            }
            files.write_json(RESULTS / f"retrain_rate_{name}.json", result)
    print(table(result))
    pages.write(PAGE, f"retrain_rate_{name}", table(result))


if __name__ == "__main__":
    cli.main(main)
