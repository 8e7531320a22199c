"""A sweep that is cut off anywhere and opened again stands where it stood, without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flywheel.params import Params
from flywheel.sweep.journal import Journal, Trial
from flywheel.sweep.state import DEATHS, Campaign

Make = Callable[..., Params]


def metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "loss": 1 - accuracy}


def value(trial: Trial, epoch: int) -> float:
    """A smooth objective of the recipe and the epoch."""
    rate = trial.config["learning_rate"]
    return round((1 - abs(np.log(rate / 0.02)) / 8 - 0.1 * (trial.config["optimizer"] == "adam")) * epoch / 9, 6)


def turn(campaign: Campaign, concurrent: int, random: np.random.Generator) -> None:
    """Start what may start, then one epoch of one of the trials that run."""
    while trial := campaign.next(concurrent):
        campaign.runs(trial)
    trial = campaign.trials[str(random.choice(sorted(campaign.live)))]
    if trial.config["learning_rate"] > 0.15:
        campaign.end(trial, "TrainingDiverged: nan")
        return
    epoch = len(trial.epochs) + 1
    if campaign.epoch(trial, epoch, metrics(value(trial, epoch))) or epoch == campaign.params.sweep.epochs:
        campaign.end(trial)


def run(campaign: Campaign, random: np.random.Generator, turns: int = 10_000, concurrent: int = 3) -> None:
    while not campaign.over and turns:
        turn(campaign, concurrent, random)
        turns -= 1


def standing(campaign: Campaign) -> object:
    """What a campaign knows, apart from which trials run just now."""
    study = [
        (t.number, t.params, None if t.state.name == "RUNNING" else t.state.name, t.value, t.intermediate_values)
        for t in campaign.searcher.study.trials
    ]
    assert campaign.asha is not None
    trials = [(t.id, t.number, t.config, t.status, t.epochs) for t in campaign.trials.values()]
    return study, campaign.asha.rungs, trials


@pytest.mark.parametrize("turns", [1, 5, 13, 29, 40])
def test_one_that_opens_the_journal_stands_where_the_one_before_stood(
    make_params: Make, tmp_path: Path, random: np.random.Generator, turns: int
) -> None:
    params = make_params("sweep.trials=12 sweep.epochs=9")
    first = Campaign(params, Journal(tmp_path / "a.jsonl"))
    run(first, random, turns)
    again = Campaign(params, Journal(tmp_path / "a.jsonl"))
    assert standing(again) == standing(first)
    assert sorted(again.waiting) == sorted(t.id for t in first.trials.values() if t.status == "running")


def test_cut_off_at_every_line_it_ends_with_exactly_the_trials_that_were_asked_for(
    make_params: Make, tmp_path: Path, random: np.random.Generator
) -> None:
    """Each line of a journal is a moment at which the process may have died; half a line is another."""
    params = make_params("sweep.trials=6 sweep.epochs=3")
    run(Campaign(params, Journal(tmp_path / "whole.jsonl")), random)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        path = tmp_path / f"{kept}.jsonl"
        path.write_text("".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        before = Journal(path).trials()
        run(campaign := Campaign(params, Journal(path)), random)
        after = {trial.id: trial for trial in Journal(path).trials()}
        assert len(after) == campaign.ended == 6
        assert sorted(trial.number for trial in after.values()) == list(range(6))
        for trial in before:
            if trial.status != "running":
                assert after[trial.id] == trial  # a trial that ended is not run again


def test_proposals_after_an_interruption_are_those_without_it(make_params: Make, tmp_path: Path) -> None:
    """One at a time, where the order is the same: also the rest of the sweep is."""
    params = make_params("sweep.trials=10 sweep.epochs=3")
    whole = Campaign(params, Journal(tmp_path / "whole.jsonl"))
    run(whole, np.random.default_rng(0), concurrent=1)
    for _ in range(12):  # cut off after every two epochs
        run(Campaign(params, Journal(tmp_path / "cut.jsonl")), np.random.default_rng(0), turns=2, concurrent=1)
    run(cut := Campaign(params, Journal(tmp_path / "cut.jsonl")), np.random.default_rng(0), concurrent=1)
    assert [t.config for t in cut.trials.values()] == [t.config for t in whole.trials.values()]
    assert [t.row() | {"id": 0, "time_s": 0} for t in cut.trials.values()] == [
        t.row() | {"id": 0, "time_s": 0} for t in whole.trials.values()
    ]


def test_more_trials_extend_a_finished_sweep_with_all_it_learned(
    make_params: Make, tmp_path: Path, random: np.random.Generator
) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    run(Campaign(make_params("sweep.trials=6 sweep.epochs=3"), journal), random)
    before = journal.trials()
    more = Campaign(make_params("sweep.trials=10 sweep.epochs=3"), journal)
    assert len(more.searcher.study.trials) == 6
    run(more, random)
    after = journal.trials()
    assert after[:6] == before
    assert len(after) == 10
    assert all(trial.bayesian for trial in after[6:])


def test_fewer_trials_than_ended_already_are_enough(
    make_params: Make, tmp_path: Path, random: np.random.Generator
) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    run(Campaign(make_params("sweep.trials=6 sweep.epochs=3"), journal), random, turns=12)
    fewer = Campaign(make_params("sweep.trials=2 sweep.epochs=3"), journal)
    assert fewer.over
    assert fewer.next(3) is None


def test_what_was_over_without_its_last_line_is_ended_when_the_journal_is_opened(
    make_params: Make, tmp_path: Path
) -> None:
    """Killed between a trial's decisive epoch and its ending: it is not trained beyond."""
    params, journal = make_params("sweep.trials=4 sweep.epochs=3"), Journal(tmp_path / "a.jsonl")
    campaign = Campaign(params, journal)
    good, bad, done = (campaign.next(3) for _ in range(3))
    assert good is not None
    assert bad is not None
    assert done is not None
    assert not campaign.epoch(good, 1, metrics(0.9))
    assert campaign.epoch(bad, 1, metrics(0.1))
    for epoch in (1, 2, 3):
        assert not campaign.epoch(done, epoch, metrics(0.95))
    again = Campaign(params, journal)
    assert {trial.id: trial.status for trial in journal.trials()} == {
        good.id: "running", bad.id: "stopped", done.id: "finished",
    }  # fmt: skip
    assert list(again.waiting) == [good.id]


def test_failed_trials_run_again_when_the_code_was_mended_and_only_then(make_params: Make, tmp_path: Path) -> None:
    params, journal = make_params("sweep.trials=2 sweep.epochs=1"), Journal(tmp_path / "a.jsonl")
    campaign = Campaign(params, journal)
    for error in ("KeyError: 'bug'", None):
        trial = campaign.next(1)
        assert trial is not None
        if error is None:
            campaign.epoch(trial, 1, metrics(0.5))
        campaign.end(trial, error)
    assert Campaign(params, journal).over
    mended = Campaign(params, journal, again=True)
    trial = mended.next(1)
    assert trial is not None
    assert trial.number == 0
    mended.epoch(trial, 1, metrics(0.7))
    mended.end(trial)
    assert [t.status for t in journal.trials()] == ["finished", "finished"]
    assert len(mended.searcher.study.trials) == 2


def test_a_trial_whose_worker_dies_goes_on_until_it_is_its_own_fault(make_params: Make, tmp_path: Path) -> None:
    campaign = Campaign(make_params("sweep.trials=3 sweep.epochs=9"), Journal(tmp_path / "a.jsonl"))
    trial = campaign.next(1)
    assert trial is not None
    for epoch in range(1, 6):  # a node that dies now and then
        assert campaign.lost(trial)
        assert campaign.next(1) is trial
        campaign.epoch(trial, epoch, metrics(0.5))
    assert [campaign.lost(trial) or bool(campaign.next(0)) for _ in range(DEATHS)] == [True, True, False]


def test_concurrency_is_what_is_asked_for_each_time(make_params: Make, tmp_path: Path) -> None:
    campaign = Campaign(make_params("sweep.trials=6"), Journal(tmp_path / "a.jsonl"))
    assert [bool(campaign.next(n)) for n in (1, 1, 2, 2, 4, 4, 4)] == [True, False, True, False, True, True, False]
    assert len([line for line in (tmp_path / "a.jsonl").read_text().splitlines() if json.loads(line)]) == 4
