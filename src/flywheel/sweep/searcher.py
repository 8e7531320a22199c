"""Proposes points: a Ray Tune searcher over an Optuna study that is asked and told.

Ray's own OptunaSearch tells trials that ASHA stopped as complete, with the value of a low epoch; here they
are told as pruned, with their values along the way, and failed ones as failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from flywheel.params import Params
from flywheel.sweep import space

METRIC = "accuracy"


class StudySearcher(Searcher):
    """Asks an Optuna study for points and tells it how trials went.

    `numbers` has the order in which trials were proposed (they may start in another), `bayesian` whether a model
    of the earlier ones proposed them.
    """

    def __init__(self, params: Params, concurrent: int = 1):
        super().__init__(metric=METRIC, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.params = params
        self.numbers: dict[str, int] = {}
        self.bayesian: dict[str, bool] = {}
        self.study = optuna.create_study(direction="maximize", sampler=make_sampler(params, concurrent))
        self._distributions = {name: _distribution(c) for name, c in space.dimensions(params).items()}
        self._live: dict[str, optuna.Trial] = {}
        self._values: dict[str, dict[int, float]] = {}
        for first in params.sweep.first:
            self.study.enqueue_trial(space.to_point(params, first))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the complete recipe of the next trial."""
        trial = self.study.ask(self._distributions)
        self._live[trial_id], self._values[trial_id] = trial, {}
        self.numbers[trial_id] = trial.number
        recipe = space.to_recipe(self.params, trial.params).model_dump()
        if trial.number < len(self.params.sweep.first):
            self.bayesian[trial_id] = False
            return {**recipe, **self.params.sweep.first[trial.number]}  # also what the space does not search
        modelled = self.params.sweep.searcher != "random" and bool(trial.relative_params)
        self.bayesian[trial_id] = modelled
        return recipe

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Take the value of an epoch; Tune repeats the last one when a trial ends, or gives it at the end only."""
        epoch, values = int(result["epoch"]), self._values[trial_id]
        if epoch not in values:
            values[epoch] = float(result[METRIC])
            self._live[trial_id].report(values[epoch], step=epoch)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell how a trial ended: complete with its best value, pruned with the values it had, or failed."""
        if result is not None and METRIC in result:
            self.on_trial_result(trial_id, result)
        trial, values = self._live.pop(trial_id), self._values.pop(trial_id)
        if error or not values:
            self.study.tell(trial, state=TrialState.FAIL)
        elif max(values) < self.params.sweep.epochs:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, max(values.values()))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None:
        """Keep nothing for Tune's own resume: a sweep's journal is the truth."""


def startup_trials(params: Params, concurrent: int) -> int:
    """Return how many trials must have ended before the model proposes.

    At most ten and, with those that start meanwhile beside them, at most a third of all.
    """
    return max(1, min(10, params.sweep.trials // 3 - (concurrent - 1)))


def make_sampler(params: Params, concurrent: int) -> BaseSampler:
    """Return the sampler that the params name, for so many trials at a time."""
    seed, startup = params.sweep.seed, startup_trials(params, concurrent)
    if params.sweep.searcher == "tpe":
        return TPESampler(n_startup_trials=startup, multivariate=True, seed=seed)
    if params.sweep.searcher == "gp":
        return GPSampler(n_startup_trials=startup, seed=seed)
    return RandomSampler(seed=seed)


def _distribution(choices: tuple[Any, ...] | None) -> BaseDistribution:
    return FloatDistribution(0.0, 1.0) if choices is None else CategoricalDistribution(choices)
