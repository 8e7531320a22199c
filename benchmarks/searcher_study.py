"""Our searcher and ASHA against Ray's stock coupling of OptunaSearch with ASHA, on synthetic learning curves.

    python benchmarks/searcher_study.py [--seeds 20]        (make bench-long BENCH_LONG=searcher_study)

Trials of the cifar10 profile (24 trials, 30 epochs), 4 at a time in simulated time, with the order of calls that Tune
makes. The figure is the regret: the best possible final accuracy less the final accuracy of the trial that the sweep
would publish (the one with the best accuracy seen), in points; and the epochs that were trained.

    ours        Searcher (multivariate TPE, start-up at most a third, stopped trials told as pruned) and Asha
    complete    the same, but stopped trials are told as complete with their last value: the coupling alone
    stock       ray.tune.search.optuna.OptunaSearch and AsyncHyperBandScheduler as they come
    random      our searcher set to random, and Asha

Reads   params.yaml
Writes  benchmarks/results/searcher_study.json
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import platform
import statistics
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import optuna
import pages

from flywheel import cli, files
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.params.space import Choices, Range
from flywheel.sweep.asha import Asha
from flywheel.sweep.searcher import Searcher

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "searcher_study.json"
AT_A_TIME = 4
BEST_RATE = {"standard": 0.06, "modified": 0.03, "upsample": 0.015}  # of SGD; Adam's is a tenth
CEILING = {"standard": 0.88, "modified": 0.94, "upsample": 0.93}
EPOCH_COST = {"standard": 1.0, "modified": 3.0, "upsample": 4.0}
T_95 = {20: 2.093, 10: 2.262, 5: 2.776}  # quantile of Student's t, seeds - 1 degrees of freedom


class Coupling(Protocol):
    """A searcher with its scheduler."""

    def ask(self, name: str) -> Mapping[str, Any]:
        """Return a recipe."""

    def result(self, name: str, epoch: int, accuracy: float) -> bool:
        """Take an epoch; returns whether the trial ends there."""


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, choices=sorted(T_95), default=20, help="repetitions (default: 20)")
    seeds = range(parser.parse_args().seeds)
    warnings.filterwarnings("ignore")
    params = params_file.load(ROOT / "params.yaml", "cifar10")
    kinds: dict[str, Callable[[Params, int], Coupling]] = {
        "ours": lambda p, seed: Ours(p, seed, "tpe", pruned=True),
        "complete": lambda p, seed: Ours(p, seed, "tpe", pruned=False),
        "stock": Stock,
        "random": lambda p, seed: Ours(p, seed, "random", pruned=True),
    }
    rows = []
    for curves in ("aligned", "crossing", "noisy"):
        outcomes = {
            kind: [simulate(make(params, seed), params, curves, seed) for seed in seeds] for kind, make in kinds.items()
        }
        for kind, found in outcomes.items():
            regrets = [100 * regret for regret, _ in found]
            against = [100 * (theirs - ours) for (theirs, _), (ours, _) in zip(found, outcomes["ours"], strict=True)]
            low, mean, high = pages.interval(against, T_95[len(seeds)])
            rows.append(
                {
                    "curves": curves,
                    "searcher": kind,
                    "regret_points": round(statistics.mean(regrets), 3),
                    "regret_sd": round(statistics.stdev(regrets), 3),
                    "worse_than_ours_points": [round(low, 3), round(mean, 3), round(high, 3)],
                    "epochs": round(statistics.mean(epochs for _, epochs in found), 1),
                }
            )
            print(
                f"{curves:<9} {kind:<9} regret {rows[-1]['regret_points']:6.3f} ± {rows[-1]['regret_sd']:.3f} points, "
                f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] against ours, {rows[-1]['epochs']:.0f} epochs",
                flush=True,
            )
    packages = {name: metadata.version(name) for name in ("ray", "optuna")}
    files.write_json(
        RESULT,
        {
            "command": f"python benchmarks/searcher_study.py --seeds {len(seeds)}",
            "seeds": len(seeds),
            "trials": params.sweep.trials,
            "epochs": params.sweep.epochs,
            "at_a_time": AT_A_TIME,
            "versions": {"python": platform.python_version(), **packages},
            "rows": rows,
        },
    )


def final_accuracy(recipe: Mapping[str, Any]) -> float:
    """Return the accuracy of a recipe after all epochs: a ceiling less a parabola in the decades off the best rate."""
    best = BEST_RATE[recipe["architecture"]] * (0.1 if recipe["optimizer"] == "adam" else 1.0)
    best *= math.sqrt(recipe["batch_size"] / 128)
    off = math.log10(recipe["learning_rate"] / best)
    penalty = 0.004 * (recipe["optimizer"] == "adam") + 0.003 * abs(math.log2(recipe["batch_size"] / 128))
    return float(max(0.1, CEILING[recipe["architecture"]] - 0.06 * off**2 - penalty))


def curve(recipe: Mapping[str, Any], curves: str, epochs: int, random: np.random.Generator) -> list[float]:
    """Return the accuracy of each epoch. `crossing`: what ends higher starts slower, as high learning rates do."""
    final = final_accuracy(recipe)
    slow = 4.0
    if curves == "crossing":
        slow *= 1 + 4 * max(0.0, (final - 0.8) / 0.14)
    shape = [(1 - math.exp(-epoch / slow)) / (1 - math.exp(-epochs / slow)) for epoch in range(1, epochs + 1)]
    noise = random.normal(0, 0.01 if curves == "noisy" else 0.001, epochs)
    return [0.1 + (final - 0.1) * share + float(error) for share, error in zip(shape, noise, strict=True)]


def simulate(coupling: Coupling, params: Params, curves: str, seed: int) -> tuple[float, int]:
    """Return (regret of the published trial, epochs trained) of a sweep."""
    random, order = np.random.default_rng([seed, 7]), itertools.count()
    waiting: list[tuple[float, int, str, Mapping[str, Any], list[float], int]] = []
    published = (-1.0, 0.0)
    trained, started = 0, 0

    def start(at: float) -> None:
        nonlocal started
        name = f"t{started}"
        started += 1
        recipe = coupling.ask(name)
        accuracies = curve(recipe, curves, params.sweep.epochs, random)
        heapq.heappush(waiting, (at + EPOCH_COST[recipe["architecture"]], next(order), name, recipe, accuracies, 1))

    for _ in range(AT_A_TIME):
        start(0.0)
    while waiting:
        at, _, name, recipe, accuracies, epoch = heapq.heappop(waiting)
        trained += 1
        accuracy = accuracies[epoch - 1]
        published = max(published, (accuracy, final_accuracy(recipe)))
        if coupling.result(name, epoch, accuracy):
            if started < params.sweep.trials:
                start(at)
        else:
            cost = EPOCH_COST[recipe["architecture"]]
            heapq.heappush(waiting, (at + cost, next(order), name, recipe, accuracies, epoch + 1))
    return max(CEILING.values()) - published[1], trained


class Ours:
    """Searcher and Asha; with `pruned` off, stopped trials are told as complete with their last value."""

    def __init__(self, params: Params, seed: int, kind: str, pruned: bool):
        sweep = params.sweep.model_copy(update={"seed": seed, "searcher": kind, "first": ()})
        self.params = params.model_copy(update={"sweep": sweep})
        self.searcher, self.asha = Searcher(self.params), Asha(sweep.epochs)
        self.pruned = pruned
        self.numbers: dict[str, int] = {}
        self.best: dict[str, float] = {}

    def ask(self, name: str) -> Mapping[str, Any]:
        """Return a recipe."""
        proposal = self.searcher.propose(AT_A_TIME)
        self.numbers[name] = proposal.number
        return proposal.recipe

    def result(self, name: str, epoch: int, accuracy: float) -> bool:
        """Take an epoch; returns whether the trial ends there."""
        number, last = self.numbers[name], epoch == self.params.sweep.epochs
        self.searcher.report(number, epoch, accuracy)
        self.best[name] = max(accuracy, self.best.get(name, 0.0))
        stops = self.asha.stops(name, epoch, accuracy)
        if last or (stops and not self.pruned):
            self.searcher.tell(number, "finished", self.best[name] if last else accuracy)
        elif stops:
            self.searcher.tell(number, "stopped", self.best[name])
        return stops or last


class Stock:
    """Ray's OptunaSearch and AsyncHyperBandScheduler, called in the order in which Tune's controller calls them."""

    def __init__(self, params: Params, seed: int):
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        space: dict[str, Any] = {}
        for name, domain in params.sweep.space.items():
            if isinstance(domain, Choices):
                space[name] = optuna.distributions.CategoricalDistribution(domain.choices)
            else:
                assert isinstance(domain, Range)
                space[name] = optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
        self.epochs = params.sweep.epochs
        self.search = OptunaSearch(space=space, metric="accuracy", mode="max", seed=seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.scheduler: Any = AsyncHyperBandScheduler(
            time_attr="training_iteration", metric="accuracy", mode="max", max_t=self.epochs,
            grace_period=-(-self.epochs // 3), reduction_factor=2,
        )  # fmt: skip
        self.trials: dict[str, Any] = {}

    def ask(self, name: str) -> Mapping[str, Any]:
        """Return a recipe."""
        self.trials[name] = SimpleNamespace(trial_id=name, stopping_criterion={})
        self.scheduler.on_trial_add(None, self.trials[name])
        suggested = self.search.suggest(name)
        assert suggested is not None
        return suggested

    def result(self, name: str, epoch: int, accuracy: float) -> bool:
        """Take an epoch; returns whether the trial ends there."""
        result = {"training_iteration": epoch, "accuracy": accuracy}
        if self.scheduler.on_trial_result(None, self.trials[name], result) == "STOP":
            self.scheduler.on_trial_complete(None, self.trials[name], result)
            self.search.on_trial_complete(name, result)
            return True
        self.search.on_trial_result(name, result)
        return False


if __name__ == "__main__":
    cli.main(main)
