"""Which searcher finds better models? Replay sweeps over learning curves that were measured once.

    python benchmarks/searcher_table.py                  (make bench-long BENCH_LONG=searcher_table, ten minutes)

The curves are those of every recipe of a grid: the accuracy on 2,000 photographs after each epoch on 2,000 others. The
code that measured them is in git until commit 4903ddb. Our searchers and our ASHA run on sweeps of 16 trials, two at a
time, in simulated time. A learning rate between two of the grid gets the mean of their curves, weighted by the
logarithm of the rate. *Regret* is the best accuracy of the grid minus the best that the sweep saw, in points; *at equal
time* is at the end of the sweep by TPE with ASHA.

Reads   params.yaml; the curves in benchmarks/results/learning_curves.json
Writes  benchmarks/results/searcher_table.json and its table in docs/scaling.md
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
import warnings
from collections.abc import Mapping
from typing import Any

import harness
import numpy as np
from numpy.typing import NDArray

from flywheel import cli, files
from flywheel.sweep.asha import Asha
from flywheel.sweep.searcher import Searcher

CURVES = harness.RESULTS / "learning_curves.json"
EPOCHS, TRIALS, AT_A_TIME = 6, 16, 2
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
    """Replay the sweeps and write the table."""
    options = harness.options(__doc__, seeds=(200, "sweeps of each kind"))
    warnings.filterwarnings("ignore")  # GPSampler is marked experimental
    harness.publish("searcher_table", "scaling.md", replay(files.read_json(CURVES), options.seeds), table)


class Curves:
    """The measured curves, interpolated between learning rates."""

    def __init__(self, measured: Mapping[str, Any]):
        self.rows = {tuple(row[name] for name in GRID): row for row in measured["rows"]}
        self.best = max(max(row["accuracy"]) for row in self.rows.values())

    def trial(self, recipe: Mapping[str, Any]) -> tuple[NDArray[np.float64], float]:
        """Return (accuracy after each epoch, seconds per epoch) of a recipe."""
        at = np.interp(math.log(recipe["learning_rate"]), np.log(RATES), range(len(RATES)))
        low = min(int(at), len(RATES) - 2)
        key = (recipe["architecture"], recipe["optimizer"], recipe["batch_size"])
        neighbors = [self.rows[*key, RATES[low]], self.rows[*key, RATES[low + 1]]]
        weights = np.array([1 - (at - low), at - low])
        seconds = float(weights @ [row["epoch_s"] for row in neighbors])
        return weights @ [row["accuracy"] for row in neighbors], seconds


def replay(measured: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """Return the regret of every kind of sweep."""
    curves = Curves(measured)
    sweeps = {kind: [sweep(curves, *kind, seed) for seed in range(seeds)] for kind in KINDS}
    ends = [seen[-1][0] for seen in sweeps[KINDS[0]]]

    def regrets(kind: tuple[str, bool], ends: list[float]) -> list[float]:
        return [100 * (curves.best - best_at(seen, end)) for seen, end in zip(sweeps[kind], ends, strict=True)]

    rows = []
    for kind, found in sweeps.items():
        equal = regrets(kind, ends)
        worse = [own - first for own, first in zip(equal, regrets(KINDS[0], ends), strict=True)]
        rows.append(
            {
                "searcher": kind[0],
                "asha": kind[1],
                "lost_points": round(statistics.mean(regrets(kind, [math.inf] * seeds)), 2),
                "lost_at_equal_time_points": round(statistics.mean(equal), 2),
                "worse_than_tpe_with_asha_points": [round(x, 2) for x in harness.interval(worse)],
                "seconds": round(statistics.mean(seen[-1][0] for seen in found), 1),
            }
        )
    return {
        **harness.stamp("optuna"),
        "seeds": seeds, "trials": TRIALS, "at_a_time": AT_A_TIME, "epochs": measured["epochs"],
        "best_in_the_table": curves.best, "images": measured["images"], "curves": len(curves.rows),
        "rows": rows,
    }  # fmt: skip


def sweep(curves: Curves, kind: str, stopping: bool, seed: int) -> list[tuple[float, float]]:
    """Return (time in seconds, accuracy) of every epoch of a sweep of the grid's space, by time."""
    overrides = (
        f"sweep.trials={TRIALS} sweep.epochs={EPOCHS} sweep.initial_trials=[] sweep.seed={seed} sweep.searcher={kind} "
        f"sweep.early_stopping={str(stopping).lower()} {SPACE}"
    )
    searcher, asha = Searcher(harness.params("laptop", overrides)), Asha(EPOCHS)
    seen: list[tuple[float, float]] = []
    order = itertools.count()  # epochs that end at the same time are reported in the order of their start
    running: list[tuple[float, int, int, NDArray[np.float64], float, int]] = []

    def start(at: float) -> None:
        proposal = searcher.propose(AT_A_TIME)
        accuracies, seconds = curves.trial(proposal.recipe)
        heapq.heappush(running, (at + seconds, next(order), proposal.number, accuracies, seconds, 1))

    for _ in range(AT_A_TIME):
        start(0.0)
    started = AT_A_TIME
    while running:
        at, _, number, accuracies, seconds, epoch = heapq.heappop(running)
        seen.append((at, float(accuracies[epoch - 1])))
        searcher.report(number, epoch, seen[-1][1])
        stops = stopping and asha.should_stop(str(number), epoch, seen[-1][1])
        if not stops and epoch < EPOCHS:
            heapq.heappush(running, (at + seconds, next(order), number, accuracies, seconds, epoch + 1))
            continue
        searcher.tell(number, "finished" if epoch == EPOCHS else "stopped", float(max(accuracies[:epoch])))
        if started < TRIALS:
            started += 1
            start(at)
    return seen


def best_at(seen: list[tuple[float, float]], end: float) -> float:
    """Return the best accuracy seen until a time."""
    return max((accuracy for at, accuracy in seen if at <= end), default=0.0)


def table(result: Mapping[str, Any]) -> str:
    """Return the regrets in Markdown."""
    rows = []
    longest = max(row["seconds"] for row in result["rows"])
    for row in result["rows"]:
        rows.append(
            (
                f"{row['searcher']}{' with ASHA' if row['asha'] else ''}",
                f"{row['lost_points']:.2f}",
                f"{row['lost_at_equal_time_points']:.2f}",
                "" if row is result["rows"][0] else harness.spread(row["worse_than_tpe_with_asha_points"], "+.2f"),
                f"{row['seconds'] / longest:.0%}",
            )
        )
    heads = ("searcher", "regret", "regret at equal time", "minus TPE with ASHA (95 % interval)", "training time")
    return harness.markdown(heads, rows) + harness.note(
        result,
        f"Points of accuracy, means of {result['seeds']} sweeps of {result['trials']} trials and {result['epochs']} "
        f"epochs, {result['at_a_time']} at a time, over {result['curves']} measured curves ({result['images']:,} "
        f"photographs; best accuracy {result['best_in_the_table']:.1%}).",
    )


if __name__ == "__main__":
    cli.main(main)
