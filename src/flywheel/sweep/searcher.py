"""Proposes points: an Optuna study that is asked and told.

Ray's own OptunaSearch tells trials that ASHA stopped as complete, with the value of a low epoch; here they
are told as pruned, with their values along the way, and failed ones as failed. A proposal depends on the seed,
its number and what was told before, on nothing else: a study told the same again proposes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from flywheel.params import Params
from flywheel.sweep import space

METRIC = "accuracy"


@dataclass(frozen=True)
class Proposal:
    """A trial to be: its number, its complete recipe, its point, and whether a model of earlier ones proposed it."""

    number: int
    recipe: dict[str, Any]
    point: dict[str, Any]
    bayesian: bool


class Searcher:
    """Asks an Optuna study for points and tells it how trials went."""

    def __init__(self, params: Params):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.params = params
        self.study = optuna.create_study(direction="maximize")
        self._distributions = {name: _distribution(c) for name, c in space.dimensions(params).items()}
        self._live: dict[int, optuna.Trial] = {}
        self._next = 0  # asking the study for its trials copies them all
        self._reported: set[tuple[int, int]] = set()  # Optuna warns of an epoch that is told twice

    def propose(self, concurrent: int = 1) -> Proposal:
        """Return the next trial when so many run at a time; first those of sweep.initial_trials."""
        number, first = self._next, self.params.sweep.initial_trials
        if number < len(first):
            trial = self._take_up(space.to_point(self.params, first[number]))
            recipe = space.to_recipe(self.params, trial.params).model_dump()
            return Proposal(number, {**recipe, **first[number]}, trial.params, False)  # also what is not searched
        self.study.sampler = make_sampler(self.params, concurrent, number)
        trial = self.study.ask(self._distributions)
        self._live[number], self._next = trial, number + 1
        modelled = self.params.sweep.searcher != "random" and bool(trial.relative_params)
        return Proposal(number, space.to_recipe(self.params, trial.params).model_dump(), trial.params, modelled)

    def restore(
        self, point: Mapping[str, Any], status: str, accuracies: Mapping[int, float], best: float | None
    ) -> int:
        """Take up the next trial as it was proposed before, with its epochs; `running` lives on. Returns its number."""
        if status == "running":
            number = self._take_up(point).number
            for epoch, accuracy in accuracies.items():
                self.report(number, epoch, accuracy)
            return number
        state, value = _ending(status, best)
        if state == TrialState.PRUNED:
            value = accuracies[max(accuracies)]  # as Optuna itself does when it is told
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params=dict(point),
                distributions=self._distributions,
                intermediate_values=dict(accuracies),
            )
        )
        self._next += 1
        return self._next - 1

    def report(self, number: int, epoch: int, accuracy: float) -> None:
        """Tell an epoch of a trial; of one that is told twice the first counts."""
        if (number, epoch) not in self._reported:
            self._reported.add((number, epoch))
            self._live[number].report(accuracy, step=epoch)

    def tell(self, number: int, status: str, best: float | None) -> None:
        """Tell how a trial ended: finished (complete with its best value), stopped (pruned) or failed."""
        state, value = _ending(status, best)
        self.study.tell(self._live.pop(number), value, state=state)

    def _take_up(self, point: Mapping[str, Any]) -> optuna.Trial:
        self.study.sampler = RandomSampler(seed=0)  # the point is given: no model need be fitted
        self.study.enqueue_trial(dict(point))
        trial = self.study.ask(self._distributions)
        self._live[trial.number], self._next = trial, trial.number + 1
        return trial


def _ending(status: str, best: float | None) -> tuple[TrialState, float | None]:
    if status == "failed" or best is None:
        return TrialState.FAIL, None
    return (TrialState.PRUNED, None) if status == "stopped" else (TrialState.COMPLETE, best)


def startup_trials(params: Params, concurrent: int) -> int:
    """Return how many trials must have ended before the model proposes.

    At most ten and, with those that start meanwhile beside them, at most a third of all.
    """
    return max(1, min(10, params.sweep.trials // 3 - (concurrent - 1)))


def make_sampler(params: Params, concurrent: int, number: int) -> BaseSampler:
    """Return the sampler that the params name, for the trial of a number and so many trials at a time."""
    seed = int(np.random.SeedSequence([params.sweep.seed, number]).generate_state(1)[0])
    startup = startup_trials(params, concurrent)
    if params.sweep.searcher == "tpe":
        return TPESampler(n_startup_trials=startup, multivariate=True, seed=seed)
    if params.sweep.searcher == "gp":
        return GPSampler(n_startup_trials=startup, seed=seed)
    return RandomSampler(seed=seed)


def _distribution(choices: tuple[Any, ...] | None) -> BaseDistribution:
    return FloatDistribution(0.0, 1.0) if choices is None else CategoricalDistribution(choices)
