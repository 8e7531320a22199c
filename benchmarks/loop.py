"""What does the loop gain? Accuracy that retraining regains after drift, with all labels, with fewer and with none.

    python benchmarks/loop.py                                             (make bench-long: the demo, 20 seeds)
    python benchmarks/loop.py --profile laptop --name photographs-2 --seeds 3 --noise 0 --turns 0 \\
        --set "data.source=folder data.name=jpeg data.path=path/to/jpeg data.drift.noise=2"

For each seed: build the data set and put a parent trained with the profile's recipe into production. Then, always from
that parent: predict all simulation images, publish their labels as feedback and run the retrain stage with the gate
and all arms, for each fraction of wrong labels; and `--turns` retrainings, each after its own part of the simulation
images. There is no sweep (it would only improve the parent) and no server (it predicts the same, see tests/serving).
*Lost to drift* is the parent's accuracy on the holdout images without drift minus that with drift.

Reads   params.yaml
Writes  benchmarks/results/loop_<name>.json after every seed, and its table in docs/retraining.md
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import workers
from numpy.typing import NDArray

from flywheel import cli
from flywheel.data import dataset
from flywheel.data import stage as data_stage
from flywheel.data.dataset import Dataset
from flywheel.models import classifier
from flywheel.models import device as devices
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.retraining import stage as retraining_stage
from flywheel.retraining.examples import Arm
from flywheel.retraining.report import ARM_TITLES
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example
from flywheel.training.loop import TrainingData, fit

OTHERS: tuple[Arm, ...] = ("failures", "random", "none")
MEASURABLE_LOSS = 0.02  # a smaller loss to drift is within chance, so no share of it is told


def main() -> None:
    """Run the seeds and write the table."""
    options = harness.options(
        __doc__,
        **harness.STUDY,
        seeds=(20, "number of seeds"),
        noise=([0.0, 0.05, 0.1], "fractions of wrong labels"),
        turns=(3, "retrainings after one another, each on its own part of the traffic; 0: none"),
    )
    name = f"loop_{options.name or options.profile}"
    profile, overrides = harness.study(options)
    params = harness.params(profile, overrides)
    modules = ["flywheel.data.stage", "flywheel.retraining.stage", "flywheel.traffic.feedback"]
    origin = harness.origin(params, ["data", "recipe", "gate", "retrain"], modules, workers.machine())
    tasks = {(seed,): (options.noise, options.turns, seed) for seed in range(options.seeds)}
    path = harness.RESULTS / f"{name}.json"
    result = workers.complete(path, origin, ["seed"], tasks, run_seed, (profile, overrides))
    harness.publish(name, "retraining.md", result, table)


def run_seed(choice: tuple[str, str], noises: Sequence[float], turns: int, seed: int) -> dict[str, Any]:
    """Run the loop with one seed for everything; `choice` is the profile and the overrides."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fw-loop-") as folder:
        registry, images, parent, copy = begin(choice, seed, Path(folder))
        held = images.holdout
        everything = np.arange(len(held))
        parts = np.array_split(np.random.default_rng(seed).permutation(everything), turns) if turns else []
        several = copy("several")
        return {
            "seed": seed,
            "n": {"holdout": int(held.sum()), "test": len(images.indices["test"])},
            "clean_holdout": float(correct(registry, parent, images, "none")[held].mean()),
            "drifted_holdout": float(correct(registry, parent, images)[held].mean()),
            "noise": {str(noise): retrain(copy(f"noise-{noise}", noise), everything, OTHERS) for noise in noises},
            "turns": [retrain(several, part) for part in parts],
            "wall_s": round(time.monotonic() - started, 1),
        }


def begin(choice: tuple[str, str], seed: int, folder: Path) -> tuple[Registry, Dataset, Version, Callable[..., Params]]:
    """Build the data set and put a parent into production, in a folder.

    Returns the store, the data set, the parent, and a function from a name and a fraction of wrong labels to params
    whose store is a copy of that one.
    """
    profile, overrides = choice

    def copy(name: str, noise: float = 0.0) -> Params:
        if name != "parent":
            shutil.copytree(folder / "parent", folder / name)
        seeds = f"data.seed={seed} retrain.seed={seed} simulate.seed={seed} retrain.control=false"
        given = f"{overrides} {harness.scratch(f'{folder}/{name}')} {seeds} simulate.label_noise={noise}"
        return harness.params(profile, given)

    params = copy("parent")
    registry = Registry(params.store)
    data_stage.run(params, registry)
    version = registry.resolve(params.dataset_name)
    images = dataset.open_directory(registry.open(version))
    return registry, images, train_parent(params, registry, version, images, seed, folder / "model"), copy


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


def retrain(
    params: Params,
    part: NDArray[np.int64],
    arms: Sequence[Arm] = (),
    settle: Callable[[list[Example]], list[Example]] = list,
) -> dict[str, Any]:
    """Publish production's answers to a part of the traffic, run the retrain stage, and return what it reports.

    `settle` decides which of the labels are published.
    """
    started = time.monotonic()
    registry = Registry(params.store)
    data = registry.resolve(params.dataset_name)
    images = dataset.open_directory(registry.open(data))
    production = registry.resolve(f"{params.registered_model}:production")
    index = images.indices["simulation"][part]
    probabilities = classifier.load(registry.open(production)).predict(images.images[index])
    labelled = feedback.examples(
        images, index, probabilities.argmax(axis=1), probabilities.max(axis=1),
        label_noise=params.simulate.label_noise, seed=params.simulate.seed,
    )  # fmt: skip
    feedback.publish(params, registry, settle(labelled), {"dataset": [data.ref], "model": [production.ref]}, {})
    report = retraining_stage.run(params, registry, arms=arms)
    now = registry.resolve(f"{params.registered_model}:production")
    found: dict[str, Any] = {
        "production_holdout": float(correct(registry, now, images)[images.holdout].mean()),
        "wall_s": round(time.monotonic() - started, 1),
    }
    if report is not None:
        found |= {"promoted": report.promoted, "reasons": list(report.reasons), "failures": report.hard_examples}
        names = ["before", report.arm, *report.arms]
        found["arms"] = {
            name: {"labels": labels or 0, "test": scores.test.accuracy, "holdout": scores.holdout.accuracy}
            for name, (_, labels, scores) in zip(names, report.rows(), strict=True)
        }
    return found


def correct(registry: Registry, version: Version, images: Dataset, drift: str = "data") -> Any:
    """Return which simulation images a model predicts rightly, (n,) bool."""
    index = images.traffic(drift)
    return classifier.load(registry.open(version)).predict(images.images[index]).argmax(axis=1) == images.labels[index]


def regained(rows: Sequence[Mapping[str, Any]], holdout: Sequence[float]) -> tuple[str, str]:
    """Return the median share of the accuracy lost to drift that these accuracies regain, and its quartiles."""
    lost = [row["clean_holdout"] - row["drifted_holdout"] for row in rows]
    if statistics.median(lost) < MEASURABLE_LOSS:
        return "–", "–"
    shares = [
        (now - row["drifted_holdout"]) / loss for row, now, loss in zip(rows, holdout, lost, strict=True)
    ]  # fmt: skip
    low, _, high = statistics.quantiles(shares, n=4) if len(shares) > 1 else shares * 3
    return f"{statistics.median(shares):.0%}", f"{low:.0%} to {high:.0%}"


def arm_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each fraction of wrong labels and each arm."""
    for noise in result["rows"][0]["noise"]:
        rows = [row for row in result["rows"] if "arms" in row["noise"][noise]]
        found = [row["noise"][noise]["arms"] for row in rows]
        for arm in found[0]:
            holdout, test, labels = ([one[arm][key] for one in found] for key in ("holdout", "test", "labels"))
            ahead = sum(one["all"]["holdout"] > value for one, value in zip(found, holdout, strict=True))
            yield (
                f"{float(noise):.0%}", ARM_TITLES.get(arm, arm), f"{statistics.mean(labels):,.0f}",
                harness.spread([100 * value for value in holdout], ".1f", statistics.mean),
                "–" if arm == "before" else regained(rows, holdout)[0],
                f"{100 * statistics.mean(test):.1f}",
                "–" if arm == "all" else f"{ahead} of {len(rows)}",
            )  # fmt: skip


def turn_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each of the retrainings after one another."""
    rows = result["rows"]
    for number in range(len(rows[0]["turns"])):
        turns = [row["turns"][number] for row in rows]
        holdout = [turn["production_holdout"] for turn in turns]
        share, quartiles = regained(rows, holdout)
        yield (
            str(number + 1), harness.spread([100 * value for value in holdout], ".1f", statistics.mean),
            f"{share} ({quartiles})", f"{sum(turn.get('promoted', False) for turn in turns)} of {len(rows)}",
        )  # fmt: skip


def headline(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures of README.md: what one retraining regains with all labels, and with fewer."""
    rows = result["rows"]
    shares = {
        arm: regained(rows, [row["noise"]["0.0"]["arms"][arm]["holdout"] for row in rows])
        for arm in rows[0]["noise"]["0.0"]["arms"]
    }
    by_arm = {row[1]: row for row in arm_rows(result) if row[0] == "0%"}
    turns = list(turn_rows(result))
    return {
        "seeds": str(len(rows)),
        "labels": by_arm[ARM_TITLES["all"]][2],
        "failures": by_arm[ARM_TITLES["random"]][2],
        "all": shares["all"][0],
        "quartiles": shares["all"][1],
        "by failures": shares["failures"][0],
        "by random": shares["random"][0],
        "wins against failures": by_arm[ARM_TITLES["failures"]][-1],
        "wins against random": by_arm[ARM_TITLES["random"]][-1],
        "after the turns": turns[-1][2].partition(" ")[0] if turns else "–",
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the tables of a result in Markdown."""
    rows = result["rows"]
    lost = 100 * statistics.median(row["clean_holdout"] - row["drifted_holdout"] for row in rows)
    promoted = [turn["promoted"] for row in rows for turn in row["noise"].values() if "promoted" in turn]
    heads: tuple[str, ...] = (
        "wrong labels",
        "trained on",
        "labels",
        "holdout, %",
        "regained",
        "test, %",
        "all is ahead on holdout",
    )
    text = harness.markdown(heads, arm_rows(result))
    if rows[0]["turns"]:
        of_turns = ("retraining", "production on holdout, %", "regained (quartiles)", "promoted")
        text += f"\n\n{harness.markdown(of_turns, turn_rows(result))}"
    return text + harness.note(
        result,
        f"{len(rows)} seeds; mean (lowest to highest), regained: median. Lost to drift: {lost:.1f} points of "
        f"{rows[0]['n']['holdout']} holdout images; {rows[0]['n']['test']:,} test images. {sum(promoted)} of "
        f"{len(promoted)} candidates trained on all labels were promoted.",
    )


if __name__ == "__main__":
    cli.main(main)
