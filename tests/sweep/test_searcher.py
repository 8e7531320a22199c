"""What the Optuna study is told: the truth about finished, stopped and failed trials."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.trial import TrialState

from flywheel.params import Params
from flywheel.sweep.searcher import StudySearcher, startup_trials

Make = Callable[..., Params]


def epoch(number: int, accuracy: float) -> dict[str, float]:
    return {"epoch": number, "accuracy": accuracy}


@pytest.fixture
def searcher(make_params: Make) -> StudySearcher:
    return StudySearcher(make_params("sweep.trials=12 sweep.epochs=3"))


def test_a_finished_trial_is_complete_with_its_best_value(searcher: StudySearcher) -> None:
    searcher.suggest("a")
    for number, accuracy in ((1, 0.5), (2, 0.9), (3, 0.8)):
        searcher.on_trial_result("a", epoch(number, accuracy))
    searcher.on_trial_complete("a", epoch(3, 0.8))  # Tune gives the last result again
    trial = searcher.study.trials[0]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.9)
    assert trial.intermediate_values == {1: 0.5, 2: 0.9, 3: 0.8}


def test_the_last_epoch_counts_when_tune_gives_it_at_the_end_only(searcher: StudySearcher) -> None:
    """ASHA ends a trial at its full length too, and Tune then skips on_trial_result."""
    searcher.suggest("a")
    searcher.on_trial_result("a", epoch(1, 0.5))
    searcher.on_trial_result("a", epoch(2, 0.6))
    searcher.on_trial_complete("a", epoch(3, 0.95))
    assert (searcher.study.trials[0].state, searcher.study.trials[0].value) == (TrialState.COMPLETE, 0.95)


def test_a_stopped_trial_is_pruned_with_its_values(searcher: StudySearcher) -> None:
    searcher.suggest("a")
    searcher.on_trial_complete("a", epoch(1, 0.4))
    trial = searcher.study.trials[0]
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.4})


@pytest.mark.parametrize("had_an_epoch", [True, False])
def test_a_failed_trial_is_failed(searcher: StudySearcher, had_an_epoch: bool) -> None:
    searcher.suggest("a")
    if had_an_epoch:
        searcher.on_trial_result("a", epoch(1, 0.9))
    searcher.on_trial_complete("a", error=True)
    assert searcher.study.trials[0].state == TrialState.FAIL


def test_a_trial_without_a_result_is_failed(searcher: StudySearcher) -> None:
    searcher.suggest("a")
    searcher.on_trial_complete("a")
    assert searcher.study.trials[0].state == TrialState.FAIL


def test_the_defaults_come_first(searcher: StudySearcher) -> None:
    recipe = searcher.suggest("a")
    expected = searcher.params.complete_recipe({}, epochs=3).model_dump()
    assert recipe == expected


def test_several_first_trials_come_in_order(make_params: Make) -> None:
    searcher = StudySearcher(make_params("sweep.first=[{architecture: standard},{batch_size: 32, momentum: 0.5}]"))
    proposed = [searcher.suggest(str(index)) for index in range(3)]
    assert [(p["architecture"], p["batch_size"]) for p in proposed[:2]] == [("standard", 64), ("compact", 32)]
    assert [p["momentum"] for p in proposed] == [0.9, 0.5, 0.9]  # also what is not searched


def run_sequentially(searcher: StudySearcher, trials: int) -> list[bool]:
    for index in range(trials):
        recipe = searcher.suggest(str(index))
        quality = 1 - abs(recipe["learning_rate"] - 0.02) - 0.1 * (recipe["optimizer"] == "adam")
        for number in (1, 2, 3):
            searcher.on_trial_result(str(index), epoch(number, quality * number / 3))
        searcher.on_trial_complete(str(index), epoch(3, quality))
    return [searcher.bayesian[str(index)] for index in range(trials)]


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_exactly_the_startup_trials_are_random(make_params: Make, kind: str) -> None:
    searcher = StudySearcher(
        make_params(f"sweep.trials=9 sweep.epochs=3 sweep.searcher={kind} sweep.early_stopping=false")
    )
    assert startup_trials(searcher.params, 1) == 3
    assert run_sequentially(searcher, 9) == [False] * 3 + [True] * 6


def test_random_search_is_never_called_bayesian(make_params: Make) -> None:
    searcher = StudySearcher(make_params("sweep.trials=9 sweep.epochs=3 sweep.searcher=random"))
    assert run_sequentially(searcher, 9) == [False] * 9


@pytest.mark.parametrize("concurrent", [1, 2, 4])
def test_at_most_a_third_is_not_bayesian_also_side_by_side(make_params: Make, concurrent: int) -> None:
    searcher = StudySearcher(make_params("sweep.trials=24 sweep.epochs=3"), concurrent)
    running: list[str] = []
    for index in range(24):
        if len(running) == concurrent:
            ended = running.pop(0)
            searcher.on_trial_complete(ended, epoch(3, 0.5 + int(ended) / 100))
        searcher.suggest(str(index))
        running.append(str(index))
    assert sum(not bayesian for bayesian in searcher.bayesian.values()) == 8


def test_startup_is_at_most_a_third_and_at_most_ten(make_params: Make) -> None:
    assert {n: startup_trials(make_params(f"sweep.trials={n}"), 1) for n in (1, 3, 8, 24, 300)} == {
        1: 1, 3: 1, 8: 2, 24: 8, 300: 10,
    }  # fmt: skip


def test_the_same_seed_proposes_the_same(make_params: Make) -> None:
    def proposals(seed: int) -> list[dict[str, object]]:
        searcher = StudySearcher(make_params(f"sweep.epochs=3 sweep.seed={seed}"))
        run_sequentially(searcher, 6)
        return [trial.params for trial in searcher.study.trials]

    assert proposals(1) == proposals(1)
    assert proposals(1) != proposals(2)


def test_the_model_beats_random_search_on_a_smooth_objective(make_params: Make) -> None:
    """Mean best of 10 seeds after 20 trials: the point of a Bayesian searcher."""

    def best(kind: str, seed: int) -> float:
        searcher = StudySearcher(make_params(f"sweep.trials=20 sweep.epochs=3 sweep.searcher={kind} sweep.seed={seed}"))
        run_sequentially(searcher, 20)
        return max(trial.value or 0.0 for trial in searcher.study.trials[1:])

    tpe, random = ([best(kind, seed) for seed in range(10)] for kind in ("tpe", "random"))
    assert sum(tpe) > sum(random)
