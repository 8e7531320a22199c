"""The journal: what was written is read back, whatever was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flywheel.sweep.journal import Journal, Trial, best, ranking


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "sweep-1.jsonl")
    endings = (("a", (0.5, 0.9), "finished"), ("b", (0.95,), "failed"), ("c", (0.9,), "stopped"))
    for number, (name, accuracies, ending) in enumerate(endings):
        journal.start(Trial(name, number, {"learning_rate": 0.1, "epochs": 2}, bayesian=name == "c"))
        for epoch, accuracy in enumerate(accuracies, start=1):
            journal.epoch(Trial(name, number, {}, False), epoch, {"accuracy": accuracy, "loss": 1.0})
        error = "NaN" if ending == "failed" else None
        journal.end(Trial(name, 0, {}, False, ending, error, 1.235, {"threads": 1}))
    journal.start(Trial("d", 3, {"learning_rate": 0.2, "epochs": 2}, bayesian=True))
    return journal


def test_trials_are_read_back(journal: Journal) -> None:
    rows = [trial.row() for trial in journal.trials()]
    assert [row["status"] for row in rows] == ["finished", "failed", "stopped", "unfinished"]
    assert rows[0] == {
        "id": "a", "number": 0, "status": "finished", "error": None, "epochs": 2, "accuracy": 0.9, "time_s": 1.235,
        "bayesian": False, "learning_rate": 0.1,
    }  # fmt: skip
    assert rows[1]["error"] == "NaN"
    assert journal.trials()[0].machine == {"threads": 1}
    assert (rows[3]["accuracy"], rows[3]["epochs"]) == (None, 0)


def test_the_best_did_not_fail_and_came_first(journal: Journal) -> None:
    found = best(journal.trials())
    assert found is not None
    assert found.id == "a"


def test_no_trial_that_ended_well_is_no_best(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "sweep-2.jsonl")
    assert best(journal.trials()) is None
    journal.start(Trial("a", 0, {}, bayesian=False))
    journal.epoch(Trial("a", 0, {}, False), 1, {"accuracy": 0.9})
    assert best(journal.trials()) is None


def test_a_torn_last_line_costs_that_event_only(journal: Journal) -> None:
    text = journal.path.read_bytes()
    journal.path.write_bytes(text[:-10])
    assert [trial.id for trial in journal.trials()] == ["a", "b", "c"]


def test_of_equals_the_one_proposed_first_is_the_best_whoever_started_or_ended_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "sweep-3.jsonl")
    for number, name in ((1, "b"), (0, "a")):
        journal.start(Trial(name, number, {}, bayesian=False))
        journal.epoch(Trial(name, number, {}, False), 1, {"accuracy": 0.9875})
    for name in ("b", "a"):
        journal.end(Trial(name, 0, {}, False, "finished"))
    found = best(journal.trials())
    assert found is not None
    assert found.id == "a"


def test_an_epoch_that_is_told_again_replaces_it_and_what_came_after(tmp_path: Path) -> None:
    """A trial whose checkpoint was lost starts anew: its old epochs go as the new ones come."""
    journal, trial = Journal(tmp_path / "sweep-4.jsonl"), Trial("a", 0, {}, False)
    journal.start(trial)
    for epoch, accuracy in ((1, 0.1), (2, 0.2), (3, 0.3), (1, 0.15), (2, 0.25)):
        journal.epoch(trial, epoch, {"accuracy": accuracy})
    (read,) = journal.trials()
    assert [(epoch["epoch"], epoch["accuracy"]) for epoch in read.epochs] == [(1, 0.15), (2, 0.25)]
    assert journal.read().told == [("a", 1, 0.1), ("a", 2, 0.2), ("a", 3, 0.3), ("a", 1, 0.15), ("a", 2, 0.25)]


def test_the_time_spent_leaves_out_what_lay_between(tmp_path: Path) -> None:
    path = tmp_path / "sweep-5.jsonl"
    events = (("begin", "10:00:00"), ("begin", "11:00:00"), ("done", "11:00:30"))
    lines = [{"trial": None, "event": event, "at": f"2026-11-23T{at}+00:00"} for event, at in events]
    lines.insert(1, {"trial": "a", "event": "run", "at": "2026-11-23T10:00:20+00:00"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Journal(path).read().spent_s == 50


def test_the_best_of_a_sweep_that_was_cut_short_may_be_a_trial_that_has_not_ended(tmp_path: Path) -> None:
    trials = [
        Trial("a", 0, {}, False, "finished", epochs=[{"epoch": 1, "accuracy": 0.8}]),
        Trial("b", 1, {}, False, "running", epochs=[{"epoch": 1, "accuracy": 0.9}]),
        Trial("c", 2, {}, False, "failed", epochs=[{"epoch": 1, "accuracy": 0.99}]),
    ]
    assert [trial.id for trial in ranking(trials)] == ["a"]
    assert [trial.id for trial in ranking(trials, cut_short=True)] == ["b", "a"]
