"""Does the wheel turn? Over many seeds: work found, promotions, accuracy recovered, against the control arm.

    .venv/bin/python benchmarks/wheel.py                            the demo, 20 seeds, 3 turns (make bench-long)
    .venv/bin/python benchmarks/wheel.py --set "retrain.learning_rate_scale=1" --name demo-rate-1 --turns 1

For each seed: the data set, a parent with the profile's recipe in production, then in each turn its answers to all
simulation images, the failures as feedback, `stages.retrain` with the real gate. No sweep and no server in between:
the first would make the parent better, the second answers the same (tests/serving). *Lost to drift* is the parent's
accuracy on the holdout images before they were corrupted, less that after.

Reads   params.yaml
Writes  benchmarks/results/wheel_<name>.json after every seed; its table into docs/retraining.md

A study that was cut short goes on: seeds in the result file of the same command, params, code and versions are kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pages
import workers

from flywheel import cli, files
from flywheel.data import build, dataset, sources
from flywheel.data import stage as data_stage
from flywheel.data.dataset import Dataset
from flywheel.models import classifier
from flywheel.models import device as devices
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.registry import LocalRegistry, Registry
from flywheel.retraining import stage as retraining_stage
from flywheel.simulation.result import examples
from flywheel.traffic import feedback
from flywheel.training.loop import TrainingData, fit

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "retraining.md"


def seed_row(choice: tuple[Path, str, str], turns: int, seed: int) -> dict[str, Any]:
    """Turn the wheel `turns` times with everything seeded by `seed` and return what happened.

    `choice` is the file of params, the profile and the overrides.
    """
    with tempfile.TemporaryDirectory(prefix="fw-wheel-") as folder:
        return _turned(*choice, seed, turns, Path(folder))


def _turned(source: Path, profile: str, overrides: str, seed: int, turns: int, folder: Path) -> dict[str, Any]:
    params = params_file.load(
        source, profile,
        f"{overrides} paths.store={folder / 'store'} paths.reports={folder / 'reports'} data.seed={seed} "
        f"retrain.seed={seed} tracking.wandb=disabled retrain.control=true",
    )  # fmt: skip
    registry = LocalRegistry(params.store)
    data_stage.run(params, registry)
    data = registry.resolve(params.dataset_name)
    images = dataset.open_directory(registry.open(data))
    clean = undrifted(params)
    parent = train_parent(params, images, seed, folder / "parent")
    version = registry.publish(
        f"model-{seed}",
        "model",
        folder / "parent",
        metadata={"recipe": parent.model_dump()},
        inputs={"dataset": data.ref},
    )
    registry.link(version, params.registered_model, ("best", "production"), reason="the parent")
    before = answers(registry, version, clean)[clean.holdout] == truth(clean)[clean.holdout]
    drifted = answers(registry, version, images)[images.holdout] == truth(images)[images.holdout]
    row: dict[str, Any] = {
        "seed": seed, "clean_holdout": float(before.mean()), "drifted_holdout": float(drifted.mean()), "turns": [],
    }  # fmt: skip
    for turn in range(1, turns + 1):
        started = time.monotonic()
        serving = registry.resolve(f"{params.registered_model}:production")
        wrong = np.flatnonzero(answers(registry, serving, images) != truth(images))
        inputs = {"dataset": [data.ref], "model": [serving.ref]}
        _, new = feedback.publish(params, registry, examples(images, images.indices["simulation"][wrong]), inputs, {})
        report = retraining_stage.run(params, registry)
        now = registry.resolve(f"{params.registered_model}:production")
        holdout = answers(registry, now, images)[images.holdout] == truth(images)[images.holdout]
        found: dict[str, Any] = {
            "turn": turn, "failures": len(wrong), "new": new, "worked": report is not None,
            "production_holdout": float(holdout.mean()), "wall_s": round(time.monotonic() - started, 1),
        }  # fmt: skip
        if report is not None:
            found |= {
                "promoted": report["promoted"], "reasons": report["reasons"], "hard": report["hard_examples"],
                **{
                    f"{arm}_{part}": (report[arm] or {}).get(part, {}).get("accuracy")
                    for arm in ("before", "after", "control") for part in ("test", "holdout", "unseen")
                },
            }  # fmt: skip
        row["turns"].append(found)
    row["disk_bytes"] = files.size_of(params.store)
    return row


def train_parent(params: Params, images: Dataset, seed: int, folder: Path) -> Any:
    """Train from scratch with the profile's recipe for the epochs of a trial, and save. Returns the recipe."""
    recipe = params.complete_recipe({"seed": seed}, params.sweep.epochs)
    data = TrainingData.of(images)
    model = data.classifier(recipe)
    for _ in fit(model, data, recipe, devices.pick()):
        pass
    model.save(folder, recipe.model_dump())
    return recipe


def undrifted(params: Params) -> Dataset:
    """Return the same data set without drift; the simulation images are the same ones, in the same order."""
    still = params.data.model_copy(
        update={"drift": params.data.drift.model_copy(update=dict.fromkeys(type(params.data.drift).model_fields, 0.0))}
    )
    return build.build(sources.load(still, params.cache), still)


def answers(registry: Registry, version: Any, images: Dataset) -> Any:
    """Return the predicted classes of the simulation images."""
    model = classifier.load(registry.open(version))
    return model.predict(images.images[images.indices["simulation"]]).argmax(axis=1)


def truth(images: Dataset) -> Any:
    """Return the labels of the simulation images."""
    return images.labels[images.indices["simulation"]]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the parts and medians that the project promises."""
    first = [row["turns"][0] for row in rows]
    worked = [turn for turn in first if turn["worked"]]

    def part(flags: list[bool]) -> str:
        return f"{sum(flags)} of {len(flags)}"

    def recovered(row: dict[str, Any], turn: dict[str, Any]) -> float:
        lost = row["clean_holdout"] - row["drifted_holdout"]
        return float((turn["production_holdout"] - row["drifted_holdout"]) / lost)

    result = {
        "seeds": len(rows),
        "work found": part([turn["worked"] for turn in first]),
        "promoted": part([turn["promoted"] for turn in worked]),
        "holdout accuracy rises": part([turn["after_holdout"] > turn["before_holdout"] for turn in worked]),
        "unseen accuracy rises": part([turn["after_unseen"] > turn["before_unseen"] for turn in worked]),
        "holdout: failures beat control": part([turn["after_holdout"] > turn["control_holdout"] for turn in worked]),
        "unseen: failures beat control": part([turn["after_unseen"] > turn["control_unseen"] for turn in worked]),
        "lost to drift, points, median": 100
        * statistics.median(r["clean_holdout"] - r["drifted_holdout"] for r in rows),
    }
    for number in range(len(rows[0]["turns"])):
        values = [recovered(row, row["turns"][number]) for row in rows]
        spread = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        result[f"recovered of that, in production after turn {number + 1}"] = (
            f"{statistics.median(values):.0%} (quartiles {spread[0]:.0%} to {spread[2]:.0%})"
        )
    return result


def table(result: dict[str, Any]) -> str:
    """Return the summary of a result in Markdown."""
    cells = {
        name: value if isinstance(value, str | int) else f"{value:.1f}" for name, value in result["summary"].items()
    }
    lines = ["| what | figure |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells.items())]
    return "\n".join([*lines, "", f"`{result['command']}`; {result['machine']}, torch {result['versions']['torch']}."])


def main() -> None:
    """Run the seeds, writing after each, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--set", default="", help="overrides of params.yaml")
    parser.add_argument("--name", help="of the result file (default: the profile)")
    parser.add_argument("--seeds", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--turns", type=int, default=3, help="of the wheel, for each seed (default: 3)")
    arguments = parser.parse_args()
    source = Path("params.yaml").absolute()
    params = params_file.load(source, arguments.profile, arguments.set)
    name = arguments.name or arguments.profile
    place = RESULTS / f"wheel_{name}.json"
    sections = ["data", "recipe", "gate", "retrain"]
    modules = ["flywheel.data.stage", "flywheel.retraining.stage", "flywheel.traffic.feedback"]
    origin = pages.origin(params, sections, modules, workers.machine())
    rows: list[dict[str, Any]] = pages.resumed(place, origin).get("rows", [])
    missing = [seed for seed in range(arguments.seeds) if seed not in {row["seed"] for row in rows}]
    choice = (source, arguments.profile, arguments.set)
    for last in workers.each(seed_row, choice, [(arguments.turns, seed) for seed in missing]):
        rows = sorted([*rows, last], key=lambda row: row["seed"])
        holdout = [last["clean_holdout"], last["drifted_holdout"], *(t["production_holdout"] for t in last["turns"])]
        shown = ", ".join(f"{accuracy:.1%}" for accuracy in holdout)
        print(f"seed {last['seed']}: holdout clean, drifted and after each turn {shown}", flush=True)
        files.write_json(place, {**origin, "summary": summary(rows), "rows": rows})
    print(text := table(files.read_json(place)))
    pages.write(PAGE, f"wheel_{name}", text)


if __name__ == "__main__":
    cli.main(main)
