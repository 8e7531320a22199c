"""Propose recipes: an Optuna study proposes points of the search space, which are mapped to recipes.

Ray's own OptunaSearch reports a trial that ASHA stopped as complete, with the value of an early epoch. Here such a
trial is pruned and keeps its intermediate values, and a failed trial is failed. A proposal depends only on the seed,
its number and the results before it, so a study that gets the same results again makes the same proposals.

The study searches every range as [0, 1], because a param with a range per architecture would drop out of multivariate
TPE. The position is mapped to the range of the architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from flywheel.params import Choices, Params, Range, Recipe, RecipeDefaults, Scalar


@dataclass(frozen=True)
class Proposal:
    """The number, complete recipe and point of a new trial; `bayesian` if a model of earlier trials proposed it."""

    number: int
    recipe: dict[str, Any]
    point: dict[str, Any]
    bayesian: bool


class Searcher:
    """Asks an Optuna study for points and reports the results of trials to it."""

    def __init__(self, params: Params):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.params = params
        self.study = optuna.create_study(direction="maximize")
        self._distributions = {name: _distribution(params, name) for name in params.sweep.searched}
        self._space = {name: one for name, one in sorted(self._distributions.items()) if not one.single()}
        self._running: dict[int, optuna.Trial] = {}
        self._next = 0  # counted here, because the study would copy all its trials
        self._reported: set[tuple[int, int]] = set()  # Optuna warns when an epoch is reported twice

    def propose(self, concurrent: int = 1) -> Proposal:
        """Return the next trial, the initial trials first. `concurrent` trials run at a time."""
        number, initial = self._next, self.params.sweep.initial_trials
        if number < len(initial):
            trial = self._ask(to_point(self.params, initial[number]))
            recipe = to_recipe(self.params, trial.params, initial[number])
            return Proposal(number, recipe.model_dump(), trial.params, False)
        self.study.sampler = sampler = make_sampler(self.params, concurrent, number)
        # All trials have the same distributions. Optuna would compare those of all trials: half of a proposal's time.
        sampler.infer_relative_search_space = lambda *_: self._space  # type: ignore[method-assign]
        trial = self.study.ask(self._distributions)
        self._running[number], self._next = trial, number + 1
        bayesian = self.params.sweep.searcher != "random" and bool(trial.relative_params)
        return Proposal(number, to_recipe(self.params, trial.params).model_dump(), trial.params, bayesian)

    def restore(
        self, point: Mapping[str, Any], status: str, accuracies: Mapping[int, float], best: float | None
    ) -> int:
        """Add an earlier trial with its accuracies by epoch; a running one continues. Returns its number."""
        if status == "running":
            number = self._ask(point).number
            for epoch, accuracy in accuracies.items():
                self.report(number, epoch, accuracy)
            return number
        state, value = _ending(status, best)
        if state == TrialState.PRUNED:
            value = accuracies[max(accuracies)]  # as study.tell does
        trial = optuna.trial.create_trial(
            state=state,
            value=value,
            params=dict(point),
            distributions=self._distributions,
            intermediate_values=dict(accuracies),
        )
        self.study.add_trial(trial)
        self._next += 1
        return self._next - 1

    def report(self, number: int, epoch: int, accuracy: float) -> None:
        """Report an epoch of a running trial; if it is repeated, the first report counts."""
        if (number, epoch) not in self._reported:
            self._reported.add((number, epoch))
            self._running[number].report(accuracy, step=epoch)

    def tell(self, number: int, status: str, best: float | None) -> None:
        """Report the end of a trial: finished (complete, with its best accuracy), stopped (pruned) or failed."""
        state, value = _ending(status, best)
        self.study.tell(self._running.pop(number), value, state=state)

    def _ask(self, point: Mapping[str, Any]) -> optuna.Trial:
        """Return a running trial of the study at a given point."""
        self.study.sampler = RandomSampler(seed=0)  # no model need be fitted
        self.study.enqueue_trial(dict(point))
        trial = self.study.ask(self._distributions)
        self._running[trial.number], self._next = trial, trial.number + 1
        return trial


def startup_trials(params: Params, concurrent: int) -> int:
    """Return how many trials must end before the model proposes.

    At most ten; together with the trials that start meanwhile, at most a third of all trials.
    """
    return max(1, min(10, params.sweep.trials // 3 - (concurrent - 1)))


def make_sampler(params: Params, concurrent: int, number: int) -> BaseSampler:
    """Return the sampler for the trial of a number when `concurrent` trials run at a time."""
    seed = int(np.random.SeedSequence([params.sweep.seed, number]).generate_state(1)[0])
    startup = startup_trials(params, concurrent)
    if params.sweep.searcher == "tpe":
        return TPESampler(n_startup_trials=startup, multivariate=True, seed=seed)
    if params.sweep.searcher == "gp":
        return GPSampler(n_startup_trials=startup, seed=seed)
    return RandomSampler(seed=seed)


def to_recipe(params: Params, point: Mapping[str, Any], initial: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe at a point; the values of `initial` take precedence, the recipe's defaults fill the rest."""
    space = params.sweep.space
    values: dict[str, Any]
    values = {name: point.get(name, domain.choices[0]) for name, domain in space.items() if isinstance(domain, Choices)}
    architecture = str(values.get("architecture", params.recipe.architecture))
    for name, domain in space.items():
        inner = domain.of(architecture)
        if inner is not None and name not in values:
            value = value_at(inner, float(point[name]))
            if isinstance(value, float) and RecipeDefaults.model_fields[name].annotation is int:
                value = round(value)  # a batch size of 64.2 is 64
            values[name] = value
    return params.complete_recipe({**values, **(initial or {})}, params.sweep.epochs)


def to_point(params: Params, initial: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the point of an initial trial; defaults outside the space move to its nearest end."""
    values = params.recipe.model_copy(update=dict(initial)).model_dump()
    architectures = params.architectures
    if values["architecture"] not in architectures:
        values["architecture"] = architectures[0]
    point: dict[str, Scalar] = {}
    for name in params.sweep.searched:
        domain = params.sweep.space[name]
        if isinstance(domain, Choices):
            point[name] = values[name] if values[name] in domain.choices else domain.choices[0]
            continue
        inner = domain.of(values["architecture"])
        if name == "weight_decay" and isinstance(inner, Range):
            values[name] = params.complete_recipe(dict(initial), epochs=1).weight_decay  # the number of `auto`
        point[name] = position_of(inner, values[name]) if inner else 0.5
    return point


def value_at(domain: Range | Choices, position: float) -> Scalar:
    """Return the value at a position in [0, 1]; each choice has an equal share."""
    if isinstance(domain, Choices):
        return domain.choices[min(int(position * len(domain.choices)), len(domain.choices) - 1)]
    if domain.log:
        value = math.exp(math.log(domain.low) + position * (math.log(domain.high) - math.log(domain.low)))
    else:
        value = domain.low + position * (domain.high - domain.low)
    value = float(f"{value:.12g}")  # exp(log(x)) differs from x by rounding
    return min(max(value, domain.low), domain.high)


def position_of(domain: Range | Choices, value: Scalar) -> float:
    """Return the position of a value in [0, 1]: the nearest end for a value outside, the middle of a choice's share."""
    if isinstance(domain, Choices):
        index = domain.choices.index(value) if value in domain.choices else 0
        return (index + 0.5) / len(domain.choices)
    number = min(max(float(value), domain.low), domain.high)
    if domain.log:
        return (math.log(number) - math.log(domain.low)) / (math.log(domain.high) - math.log(domain.low))
    return (number - domain.low) / (domain.high - domain.low)


def _ending(status: str, best: float | None) -> tuple[TrialState, float | None]:
    if status == "failed" or best is None:
        return TrialState.FAIL, None
    return (TrialState.PRUNED, None) if status == "stopped" else (TrialState.COMPLETE, best)


def _distribution(params: Params, name: str) -> BaseDistribution:
    domain = params.sweep.space[name]
    return CategoricalDistribution(domain.choices) if isinstance(domain, Choices) else FloatDistribution(0.0, 1.0)
