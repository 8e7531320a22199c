"""The state of a sweep, without Ray: it is the same after an interruption anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flywheel.params import Params
from flywheel.sweep.journal import Journal, Trial
from flywheel.sweep.state import MAX_WORKER_FAILURES, SweepState

Make = Callable[..., Params]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "a.jsonl")


def metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "loss": 1 - accuracy}


def accuracy_of(trial: Trial, epoch: int) -> float:
    """A smooth objective of the recipe and the epoch."""
    rate = trial.config["learning_rate"]
    return float(round((1 - abs(np.log(rate / 0.02)) / 8 - 0.1 * (trial.config["optimizer"] == "adam")) * epoch / 9, 6))


def started(state: SweepState, concurrent: int) -> Trial:
    trial = state.next_trial(concurrent)
    assert trial is not None
    return trial


def run(state: SweepState, random: np.random.Generator, epochs: int = 10_000, concurrent: int = 3) -> None:
    """Run up to so many epochs, each of a random one of the running trials."""
    while not state.is_complete and epochs:
        epochs -= 1
        while trial := state.next_trial(concurrent):
            state.on_trial_start(trial)
        trial = state.trials[str(random.choice(sorted(state.running)))]
        if trial.config["learning_rate"] > 0.15:
            state.on_trial_end(trial, "TrainingDiverged: nan")
            continue
        epoch = len(trial.epochs) + 1
        stop = state.on_trial_result(trial, epoch, metrics(accuracy_of(trial, epoch)))
        if stop or epoch == state.params.sweep.epochs:
            state.on_trial_end(trial)


def content(state: SweepState) -> object:
    """Everything in a state, except which trials run now."""
    study = [
        (t.number, t.params, None if t.state.name == "RUNNING" else t.state.name, t.value, t.intermediate_values)
        for t in state.searcher.study.trials
    ]
    trials = [(t.id, t.number, t.config, t.status, t.epochs) for t in state.trials.values()]
    return study, state.asha.rungs, trials


@pytest.mark.parametrize("epochs", [1, 5, 13, 29, 40])
def test_replaying_the_journal_rebuilds_the_state(
    make_params: Make, journal: Journal, random: np.random.Generator, epochs: int
) -> None:
    params = make_params("sweep.trials=12 sweep.epochs=9")
    before = SweepState(params, journal)
    run(before, random, epochs)
    after = SweepState(params, journal)
    assert content(after) == content(before)
    assert sorted(after.queued) == sorted(t.id for t in before.trials.values() if t.status == "running")


def test_a_sweep_cut_off_at_any_line_ends_with_exactly_its_trials(
    make_params: Make, tmp_path: Path, random: np.random.Generator
) -> None:
    """The process may die after each line of the journal, or in the middle of one."""
    params = make_params("sweep.trials=6 sweep.epochs=3")
    run(SweepState(params, Journal(tmp_path / "complete.jsonl")), random)
    lines = (tmp_path / "complete.jsonl").read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        journal = Journal(tmp_path / f"{kept}.jsonl")
        journal.path.write_text("".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        before = journal.read().trials
        state = SweepState(params, journal)
        run(state, random)
        after = {trial.id: trial for trial in journal.read().trials}
        assert len(after) == state.ended == 6
        assert sorted(trial.number for trial in after.values()) == list(range(6))
        for trial in before:
            if trial.status != "running":
                assert after[trial.id] == trial  # a trial that ended does not run again


def test_an_interruption_changes_no_proposal(make_params: Make, tmp_path: Path) -> None:
    """One trial at a time, so that the order is the same; then all results are the same, too."""
    params = make_params("sweep.trials=10 sweep.epochs=3")
    once, often = Journal(tmp_path / "once.jsonl"), Journal(tmp_path / "often.jsonl")
    run(SweepState(params, once), np.random.default_rng(0), concurrent=1)
    for _ in range(12):
        run(SweepState(params, often), np.random.default_rng(0), epochs=2, concurrent=1)
    run(SweepState(params, often), np.random.default_rng(0), concurrent=1)
    results = [
        [(t.number, t.config, t.status, t.epochs, t.bayesian) for t in journal.read().trials]
        for journal in (once, often)
    ]
    assert results[0] == results[1]


def test_a_finished_sweep_is_extended_by_more_trials_and_not_by_fewer(
    make_params: Make, journal: Journal, random: np.random.Generator
) -> None:
    run(SweepState(make_params("sweep.trials=6 sweep.epochs=3"), journal), random)
    before = journal.read().trials
    fewer = SweepState(make_params("sweep.trials=2 sweep.epochs=3"), journal)
    assert fewer.is_complete
    assert fewer.next_trial(3) is None
    more = SweepState(make_params("sweep.trials=10 sweep.epochs=3"), journal)
    assert len(more.searcher.study.trials) == 6
    run(more, random)
    after = journal.read().trials
    assert after[:6] == before
    assert [trial.bayesian for trial in after[6:]] == [True] * 4


def test_a_trial_killed_before_its_end_event_is_ended_on_replay(make_params: Make, journal: Journal) -> None:
    """The process died after the decisive epoch of a trial: it does not train further."""
    params = make_params("sweep.trials=4 sweep.epochs=3")
    state = SweepState(params, journal)
    good, bad, done = (started(state, 3) for _ in range(3))
    assert not state.on_trial_result(good, 1, metrics(0.9))
    assert state.on_trial_result(bad, 1, metrics(0.1))
    for epoch in (1, 2, 3):
        assert not state.on_trial_result(done, epoch, metrics(0.95))
    after = SweepState(params, journal)
    statuses = {trial.id: trial.status for trial in journal.read().trials}
    assert statuses == {good.id: "running", bad.id: "stopped", done.id: "finished"}
    assert list(after.queued) == [good.id]


def test_failed_trials_run_again_only_on_request(make_params: Make, journal: Journal) -> None:
    params = make_params("sweep.trials=2 sweep.epochs=1")
    state = SweepState(params, journal)
    state.on_trial_end(started(state, 1), "KeyError: 'bug'")
    trial = started(state, 1)
    state.on_trial_result(trial, 1, metrics(0.5))
    state.on_trial_end(trial)
    assert SweepState(params, journal).is_complete
    again = SweepState(params, journal, retry_failed=True)
    trial = started(again, 1)
    assert trial.number == 0
    again.on_trial_result(trial, 1, metrics(0.7))
    again.on_trial_end(trial)
    assert [t.status for t in journal.read().trials] == ["finished", "finished"]
    assert len(again.searcher.study.trials) == 2


def test_a_trial_fails_when_its_workers_die_in_a_row_without_an_epoch(make_params: Make, journal: Journal) -> None:
    state = SweepState(make_params("sweep.trials=3 sweep.epochs=9"), journal)
    trial = started(state, 1)
    for epoch in range(1, 6):
        assert state.on_worker_died(trial)
        assert state.next_trial(1) is trial
        state.on_trial_result(trial, epoch, metrics(0.5))
    assert [state.on_worker_died(trial) for _ in range(MAX_WORKER_FAILURES)] == [True, True, False]


def test_the_number_of_concurrent_trials_may_change(make_params: Make, journal: Journal) -> None:
    state = SweepState(make_params("sweep.trials=6"), journal)
    assert [bool(state.next_trial(n)) for n in (1, 1, 2, 2, 4, 4, 4)] == [True, False, True, False, True, True, False]
    assert len(journal.path.read_text().splitlines()) == 4
