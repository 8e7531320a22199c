"""The journal: what was written is read back, whatever was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from flywheel.sweep.journal import Journal, Trial, best


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "sweep-1.jsonl")
    endings = (("a", (0.5, 0.9), "finished"), ("b", (0.95,), "failed"), ("c", (0.9,), "stopped"))
    for number, (name, accuracies, ending) in enumerate(endings):
        journal.start(Trial(name, number, {"learning_rate": 0.1, "epochs": 2}, bayesian=name == "c"))
        for epoch, accuracy in enumerate(accuracies, start=1):
            journal.epoch(name, epoch, {"accuracy": accuracy, "loss": 1.0})
        error = "NaN" if ending == "failed" else None
        journal.end(Trial(name, 0, {}, False, ending, error, 1.235, {"threads": 1}))
    journal.start(Trial("d", 3, {"learning_rate": 0.2, "epochs": 2}, bayesian=True))
    return journal


def test_trials_are_read_back(journal: Journal) -> None:
    rows = [trial.row() for trial in journal.trials()]
    assert [row["status"] for row in rows] == ["finished", "failed", "stopped", "running"]
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
    journal.epoch("a", 1, {"accuracy": 0.9})
    assert best(journal.trials()) is None


def test_a_torn_last_line_costs_that_event_only(journal: Journal) -> None:
    text = journal.path.read_bytes()
    journal.path.write_bytes(text[:-10])
    assert [trial.id for trial in journal.trials()] == ["a", "b", "c"]


def test_of_equals_the_one_proposed_first_is_the_best_whoever_started_or_ended_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "sweep-3.jsonl")
    for number, name in ((1, "b"), (0, "a")):
        journal.start(Trial(name, number, {}, bayesian=False))
        journal.epoch(name, 1, {"accuracy": 0.9875})
    for name in ("b", "a"):
        journal.end(Trial(name, 0, {}, False, "finished"))
    found = best(journal.trials())
    assert found is not None
    assert found.id == "a"
