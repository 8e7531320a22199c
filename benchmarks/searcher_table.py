"""Does the Bayesian searcher earn its place? Sweeps replayed over learning curves that were measured once.

    python benchmarks/searcher_table.py                               (make bench-long BENCH_LONG=searcher_table)
    python benchmarks/searcher_table.py --measure --set "data.source=folder data.name=… data.path=…"

`--measure` trains every recipe of a grid on 2,000 photographs with our loop and writes its accuracy on 2,000 others
after each epoch (half an hour). A replayed trial between two rates of the grid has the mean of their curves, weighted
in the logarithm of the rate. The replay (ten minutes) asks our searchers and our ASHA for sweeps of 16 trials, two at a
time, in the time that the epochs took. *Lost* is the best accuracy in the table less the best that the sweep saw, in
points; *at equal time* is when TPE with ASHA ended.

Reads   params.yaml; the curves in benchmarks/results/learning_curves.json
Writes  benchmarks/results/searcher_table.json and its table in docs/scaling.md; with --measure the curves first
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pages
import workers
from numpy.typing import NDArray
from precision import some_of
from retrain_rate import opened
from searcher_study import T_95, Ours

from flywheel import cli, files
from flywheel.models import device as devices
from flywheel.params import Params, Recipe
from flywheel.params import file as params_file
from flywheel.training.loop import TrainingData, TrainingDiverged, fit

ROOT = Path(__file__).parents[1]
CURVES = ROOT / "benchmarks" / "results" / "learning_curves.json"
RESULT = ROOT / "benchmarks" / "results" / "searcher_table.json"
IMAGES, EPOCHS, TRIALS, AT_A_TIME = 2000, 6, 16, 2
RATES = [0.003, 0.0095, 0.03, 0.095, 0.3]
GRID: dict[str, list[Any]] = {
    "architecture": ["compact", "standard"],
    "optimizer": ["sgd", "adam"],
    "batch_size": [64, 128, 256],
    "learning_rate": RATES,
}
SPACE = " ".join(f"sweep.space.{name}={choices}" for name, choices in GRID.items() if choices is not RATES)
KINDS = [("tpe", True), ("random", True), ("random", False), ("tpe", False), ("gp", False)]  # searcher, ASHA


def main() -> None:
    """Measure the curves if asked to, replay and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, choices=sorted(T_95), default=20, help="sweeps a kind (default: 20)")
    parser.add_argument("--measure", action="store_true", help="train the grid; one that was cut short goes on")
    parser.add_argument("--set", default="", help="overrides of params.yaml for --measure, such as data.source")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(params_file.load(ROOT / "params.yaml", "laptop", arguments.set))
    if not CURVES.exists() or len(files.read_json(CURVES)["rows"]) < math.prod(map(len, GRID.values())):
        parser.error("the curves are not measured yet; add --measure, and --set for the photographs")
    warnings.filterwarnings("ignore")  # GPSampler is marked experimental
    result = replay(files.read_json(CURVES), arguments.seeds)
    files.write_json(RESULT, result)
    pages.write(ROOT / "docs" / "scaling.md", "searcher_table", table(result))
    print(table(result))


def measure(params: Params) -> None:
    """Train every recipe of the grid; rows are written as they come."""
    origin = {
        **pages.origin(params, ["data", "recipe"], ["flywheel.training.loop"], workers.machine()),
        "images": IMAGES, "epochs": EPOCHS, "seed": 0,
    }  # fmt: skip
    rows: list[dict[str, Any]] = pages.resumed(CURVES, origin).get("rows", [])
    known = {tuple(row[name] for name in GRID) for row in rows}
    missing = [point for point in itertools.product(*GRID.values()) if point not in known]
    with tempfile.TemporaryDirectory() as folder:
        small = some_of(TrainingData.of(opened(params, Path(folder) / "data")), IMAGES, IMAGES)
    tasks = [(params.complete_recipe(dict(zip(GRID, point, strict=True)), EPOCHS),) for point in missing]
    for number, row in enumerate(workers.each(curve, small, tasks), 1):
        rows.append(row)
        files.write_json(CURVES, {**origin, "validation_images": len(small.validation_labels), "rows": rows})
        print(f"{number}/{len(tasks)} {row}", flush=True)


def curve(data: TrainingData, recipe: Recipe) -> dict[str, Any]:
    """Return the accuracy after each epoch and the seconds of one; after a divergence it is that of chance."""
    started, accuracies, begun = time.perf_counter(), [], EPOCHS
    try:
        for result in fit(data.classifier(recipe), data, recipe, devices.pick()):
            accuracies.append(round(result.accuracy, 4))
    except TrainingDiverged:
        begun = len(accuracies) + 1
        accuracies += [1 / len(data.class_names)] * (EPOCHS - len(accuracies))
    seconds = (time.perf_counter() - started) / begun
    return {name: getattr(recipe, name) for name in GRID} | {"accuracy": accuracies, "epoch_s": round(seconds, 2)}


class Table:
    """The measured curves, and what lies between them."""

    def __init__(self, curves: Mapping[str, Any]):
        self.rows = {tuple(row[name] for name in GRID): row for row in curves["rows"]}
        self.best = max(max(row["accuracy"]) for row in self.rows.values())

    def trial(self, recipe: Mapping[str, Any]) -> tuple[NDArray[np.float64], float]:
        """Return (accuracy after each epoch, seconds of an epoch) of a recipe."""
        at = np.interp(math.log(recipe["learning_rate"]), np.log(RATES), range(len(RATES)))
        low = min(int(at), len(RATES) - 2)
        key = (recipe["architecture"], recipe["optimizer"], recipe["batch_size"])
        ends = [self.rows[*key, RATES[low]], self.rows[*key, RATES[low + 1]]]
        shares = np.array([1 - (at - low), at - low])
        return shares @ [row["accuracy"] for row in ends], float(shares @ [row["epoch_s"] for row in ends])


def replay(curves: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """Return what every kind of sweep finds in the table."""
    lies = Table(curves)
    sweeps: dict[tuple[str, bool], list[list[tuple[float, float]]]] = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        for kind in KINDS:
            sweeps[kind].append(sweep(lies, *kind, seed))
    ends = [found[-1][0] for found in sweeps[KINDS[0]]]
    rows = []
    for (searcher, stopping), found in sweeps.items():
        lost = [100 * (lies.best - best_at(seen, math.inf)) for seen in found]
        equal = [100 * (lies.best - best_at(seen, end)) for seen, end in zip(found, ends, strict=True)]
        first = [100 * (lies.best - best_at(seen, end)) for seen, end in zip(sweeps[KINDS[0]], ends, strict=True)]
        against = [one - other for one, other in zip(equal, first, strict=True)]
        rows.append(
            {
                "searcher": searcher,
                "asha": stopping,
                "lost_points": round(statistics.mean(lost), 2),
                "lost_at_equal_time_points": round(statistics.mean(equal), 2),
                "worse_than_tpe_with_asha_points": [round(x, 2) for x in pages.interval(against, T_95[seeds])],
                "seconds": round(statistics.mean(seen[-1][0] for seen in found), 1),
            }
        )
    return {
        "command": pages.command(),
        "seeds": seeds, "trials": TRIALS, "at_a_time": AT_A_TIME, "epochs": curves["epochs"],
        "best_in_the_table": lies.best, "images": curves["images"], "curves": len(lies.rows),
        "versions": {"python": platform.python_version(), "optuna": metadata.version("optuna")},
        "rows": rows,
    }  # fmt: skip


def sweep(lies: Table, searcher: str, stopping: bool, seed: int) -> list[tuple[float, float]]:
    """Return (time in seconds, accuracy) of every epoch of a sweep of the grid's space, by time."""
    params = params_file.load(ROOT / "params.yaml", "laptop", f"sweep.trials={TRIALS} sweep.epochs={EPOCHS} {SPACE}")
    coupling, order = Ours(params, seed, searcher, pruned=True), itertools.count()
    seen: list[tuple[float, float]] = []
    if not stopping:
        coupling.asha.rungs.clear()
    running: list[tuple[float, int, str, NDArray[np.float64], float, int]] = []
    started = 0

    def start(at: float) -> None:
        nonlocal started
        name = f"t{started}"
        started += 1
        accuracies, seconds = lies.trial(coupling.ask(name))
        heapq.heappush(running, (at + seconds, next(order), name, accuracies, seconds, 1))

    for _ in range(AT_A_TIME):
        start(0.0)
    while running:
        at, _, name, accuracies, seconds, epoch = heapq.heappop(running)
        seen.append((at, float(accuracies[epoch - 1])))
        if not coupling.result(name, epoch, float(accuracies[epoch - 1])):
            heapq.heappush(running, (at + seconds, next(order), name, accuracies, seconds, epoch + 1))
        elif started < TRIALS:
            start(at)
    return seen


def best_at(seen: list[tuple[float, float]], end: float) -> float:
    """Return the best accuracy seen until a time."""
    return max((accuracy for at, accuracy in seen if at <= end), default=0.0)


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = [
        "| searcher | lost after all trials | at equal time | against TPE with ASHA (95 % interval) | training time |",
        "|---|---|---|---|---|",
    ]
    longest = max(row["seconds"] for row in result["rows"])
    for row in result["rows"]:
        low, mean, high = row["worse_than_tpe_with_asha_points"]
        name = f"{row['searcher']}{' with ASHA' if row['asha'] else ''}"
        against = "" if row is result["rows"][0] else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        cells = f"{row['lost_points']:.2f} | {row['lost_at_equal_time_points']:.2f} | {against}"
        lines.append(f"| {name} | {cells} | {row['seconds'] / longest:.0%} |")
    note = (
        f"Points of accuracy, means of {result['seeds']} sweeps of {result['trials']} trials and {result['epochs']} "
        f"epochs, {result['at_a_time']} at a time, over {result['curves']} measured curves ({result['images']:,} "
        f"photographs; best {result['best_in_the_table']:.1%}). `{result['command']}`; optuna "
        f"{result['versions']['optuna']}."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    cli.main(main)
