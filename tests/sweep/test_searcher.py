"""Proposals, and the results that the Optuna study gets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.trial import TrialState

from flywheel.params import Params
from flywheel.sweep.searcher import Proposal, Searcher, make_sampler, startup_trials

Make = Callable[..., Params]


@pytest.fixture
def searcher(make_params: Make) -> Searcher:
    return Searcher(make_params("sweep.trials=12 sweep.epochs=3"))


@pytest.mark.parametrize(
    ("status", "accuracies", "state", "value"),
    [
        ("finished", (0.5, 0.9, 0.8), TrialState.COMPLETE, 0.9),  # its best
        ("stopped", (0.5, 0.4), TrialState.PRUNED, 0.4),  # its last
        ("failed", (0.9,), TrialState.FAIL, None),
        ("failed", (), TrialState.FAIL, None),
        ("stopped", (), TrialState.FAIL, None),
    ],
)
def test_the_study_gets_how_a_trial_ended_and_its_values(
    searcher: Searcher, status: str, accuracies: tuple[float, ...], state: TrialState, value: float | None
) -> None:
    searcher.propose()
    reported = dict(enumerate(accuracies, start=1))
    for epoch, accuracy in (*reported.items(), *reported.items()):  # repeated epochs do not count
        searcher.report(0, epoch, accuracy)
    searcher.tell(0, status, max(accuracies, default=None))
    trial = searcher.study.trials[0]
    assert (trial.state, trial.value, trial.intermediate_values) == (state, value, reported)


def test_the_default_recipe_comes_first(searcher: Searcher) -> None:
    assert searcher.propose().recipe == searcher.params.complete_recipe({}, epochs=3).model_dump()


def test_initial_trials_come_in_order(make_params: Make) -> None:
    searcher = Searcher(make_params("sweep.initial_trials=[{architecture: standard},{batch_size: 64, momentum: 0.5}]"))
    proposed = [searcher.propose().recipe for _ in range(3)]
    assert [(p["architecture"], p["batch_size"]) for p in proposed[:2]] == [("standard", 32), ("compact", 64)]
    default = searcher.params.recipe.momentum
    assert [p["momentum"] for p in proposed] == [default, 0.5, default]  # also what is not searched
    assert default != 0.5


def quality(recipe: dict[str, object]) -> float:
    rate = float(str(recipe["learning_rate"]))
    return 1 - abs(rate - 0.02) - 0.1 * (recipe["optimizer"] == "adam")


def conclude(searcher: Searcher, proposal: Proposal) -> None:
    for epoch in (1, 2, 3):
        searcher.report(proposal.number, epoch, quality(proposal.recipe) * epoch / 3)
    searcher.tell(proposal.number, "finished", quality(proposal.recipe))


def run_sequentially(searcher: Searcher, trials: int) -> list[Proposal]:
    proposals = []
    for _ in range(trials):
        proposals.append(searcher.propose())
        conclude(searcher, proposals[-1])
    return proposals


@pytest.mark.parametrize(("kind", "bayesian"), [("tpe", 6), ("gp", 6), ("random", 0)])
def test_only_the_startup_trials_are_random(make_params: Make, kind: str, bayesian: int) -> None:
    searcher = Searcher(make_params(f"sweep.trials=9 sweep.epochs=3 sweep.searcher={kind} sweep.early_stopping=false"))
    assert startup_trials(searcher.params, 1) == 3
    proposals = run_sequentially(searcher, 9)
    assert [proposal.bayesian for proposal in proposals] == [False] * (9 - bayesian) + [True] * bayesian
    assert len({str(proposal.point) for proposal in proposals}) == 9


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_optuna_gets_the_space_that_it_would_gather_from_all_trials(
    make_params: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    searcher = Searcher(make_params(f"sweep.trials=9 sweep.epochs=3 sweep.searcher={kind} sweep.early_stopping=false"))
    last = run_sequentially(searcher, 4)[-1].number
    gathered = make_sampler(searcher.params, 1, last).infer_relative_search_space(
        searcher.study, searcher.study.trials[last]
    )
    monkeypatch.delattr("optuna.search_space.intersection._calculate")
    given = searcher.study.sampler.infer_relative_search_space(searcher.study, searcher.study.trials[last])
    assert list(given.items()) == list(gathered.items())
    assert searcher.propose().bayesian


@pytest.mark.parametrize("concurrent", [1, 2, 4])
def test_at_most_a_third_is_not_bayesian_also_with_concurrent_trials(make_params: Make, concurrent: int) -> None:
    searcher = Searcher(make_params("sweep.trials=24 sweep.epochs=3"))
    running: list[Proposal] = []
    proposals = []
    for _ in range(24):
        if len(running) == concurrent:
            conclude(searcher, running.pop(0))
        proposals.append(searcher.propose(concurrent))
        running.append(proposals[-1])
    assert sum(not proposal.bayesian for proposal in proposals) == 8


def test_startup_is_at_most_a_third_and_at_most_ten(make_params: Make) -> None:
    assert {n: startup_trials(make_params(f"sweep.trials={n}"), 1) for n in (1, 3, 8, 24, 300)} == {
        1: 1, 3: 1, 8: 2, 24: 8, 300: 10,
    }  # fmt: skip


def test_the_same_seed_proposes_the_same(make_params: Make) -> None:
    def points(seed: int) -> list[dict[str, object]]:
        searcher = Searcher(make_params(f"sweep.epochs=3 sweep.seed={seed}"))
        return [proposal.point for proposal in run_sequentially(searcher, 6)]

    assert points(1) == points(1)
    assert points(1) != points(2)


@pytest.mark.parametrize("kind", ["tpe", "gp", "random"])
def test_a_searcher_with_the_same_results_makes_the_same_proposals(make_params: Make, kind: str) -> None:
    params = make_params(f"sweep.trials=12 sweep.epochs=3 sweep.searcher={kind} sweep.early_stopping=false")
    one, other = Searcher(params), Searcher(params)
    for proposal in run_sequentially(one, 7):
        value = quality(proposal.recipe)
        accuracies = {epoch: value * epoch / 3 for epoch in (1, 2, 3)}
        assert other.restore(proposal.point, "finished", accuracies, value) == proposal.number
    assert [p.point for p in run_sequentially(one, 3)] == [p.point for p in run_sequentially(other, 3)]


def test_the_model_beats_random_search_on_a_smooth_objective(make_params: Make) -> None:
    """Mean best of 10 seeds after 20 trials: the point of a Bayesian searcher."""

    def best(kind: str, seed: int) -> float:
        searcher = Searcher(make_params(f"sweep.trials=20 sweep.epochs=3 sweep.searcher={kind} sweep.seed={seed}"))
        return max(quality(proposal.recipe) for proposal in run_sequentially(searcher, 20)[1:])

    tpe, random = ([best(kind, seed) for seed in range(10)] for kind in ("tpe", "random"))
    assert sum(tpe) > sum(random)
