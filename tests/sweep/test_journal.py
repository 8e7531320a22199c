"""The journal: every event is read back, wherever the file was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from flywheel.sweep import plots
from flywheel.sweep.journal import Journal, Trial, ranking
from flywheel.sweep.report import TrialReport
from flywheel.sweep.resume import resume


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "sweep-1.jsonl")


def add(journal: Journal, name: str, number: int, accuracies: tuple[float, ...], ending: str | None) -> None:
    """Write the events of a trial."""
    trial = Trial(name, number, {"learning_rate": 0.1, "epochs": 2}, name == "c", machine={"threads": 1}, time_s=1.2346)
    journal.start(trial)
    for epoch, accuracy in enumerate(accuracies, start=1):
        journal.epoch(trial, epoch, {"accuracy": accuracy, "loss": 1.0})
    if ending:
        trial.status, trial.error = ending, "NaN" if ending == "failed" else None
        journal.end(trial)


def test_trials_are_read_back_and_ranked(journal: Journal) -> None:
    add(journal, "e", 4, (0.93,), None)
    add(journal, "d", 3, (), None)
    add(journal, "c", 2, (0.9,), "stopped")
    add(journal, "a", 0, (0.5, 0.9), "finished")
    add(journal, "b", 1, (0.95,), "failed")
    trials = journal.read().trials
    reports = [TrialReport.of(trial).model_dump() for trial in trials]
    assert [report["status"] for report in reports] == ["finished", "failed", "stopped", *["unfinished"] * 2]
    assert reports[0] == {
        "id": "a", "number": 0, "status": "finished", "error": None, "epochs": 2, "accuracy": 0.9, "time_s": 1.235,
        "bayesian": False, "learning_rate": 0.1,
    }  # fmt: skip
    assert reports[1]["error"] == "NaN"
    assert trials[0].machine == {"threads": 1}
    assert (reports[3]["accuracy"], reports[3]["epochs"]) == (None, 0)
    assert [trial.id for trial in ranking(trials)] == ["a", "c"]  # of equals the lower number, whoever started first
    assert [trial.id for trial in ranking(trials, include_running=True)] == ["e", "a", "c"]
    assert ranking([]) == []


def test_a_repeated_epoch_replaces_it_and_all_later_ones(journal: Journal) -> None:
    """A trial whose checkpoint was lost starts anew."""
    trial = Trial("a", 0, {}, False)
    journal.start(trial)
    for epoch, accuracy in ((1, 0.1), (2, 0.2), (3, 0.3), (1, 0.15), (2, 0.25)):
        journal.epoch(trial, epoch, {"accuracy": accuracy})
    record = journal.read()
    assert [(epoch["epoch"], epoch["accuracy"]) for epoch in record.trials[0].epochs] == [(1, 0.15), (2, 0.25)]
    assert record.results == [("a", 1, 0.1), ("a", 2, 0.2), ("a", 3, 0.3), ("a", 1, 0.15), ("a", 2, 0.25)]


def test_the_elapsed_time_leaves_out_pauses(journal: Journal) -> None:
    events = (("begin", "10:00:00"), ("run", "10:00:20"), ("begin", "11:00:00"), ("done", "11:00:30"))
    lines = [{"trial": None, "event": event, "at": f"2026-11-23T{at}+00:00"} for event, at in events]
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert journal.read().elapsed_s == 50


def test_an_extended_sweep_that_was_interrupted_goes_on_also_with_other_code(journal: Journal) -> None:
    for event in ("begin", "done", "begin"):
        journal.append(event, identity={"epochs": 3}, code={"trial": "1"})
    assert resume(journal.path.parent, {"epochs": 3}, {"trial": "2"}, force=False)[0].path != journal.path
    journal.start(Trial("a", 0, {}, False))
    journal.append("run", "a")
    found, record, retry_failed = resume(journal.path.parent, {"epochs": 3}, {"trial": "2"}, force=False)
    assert (found.path, record is not None, retry_failed) == (journal.path, True, True)


def test_the_last_of_several_sweeps_of_a_second_is_resumed(tmp_path: Path) -> None:
    for _ in range(11):
        journal, _, _ = resume(tmp_path, {}, {}, force=True)
        journal.append("begin", identity={}, code={})
    assert resume(tmp_path, {}, {}, force=False)[0].path == journal.path


def test_the_history_shows_unfinished_trials_and_no_failed_one_as_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (figures.append(figure), path.touch()))
    ends = (("finished", 0.5), ("failed", 0.9), ("unfinished", 0.7))
    rows = [{"number": n, "status": end[0], "accuracy": end[1], "bayesian": False} for n, end in enumerate(ends)]
    plots.search_history(rows, "sweep", tmp_path / "history.png")
    (axis,) = figures[0].axes
    assert [points.get_label() for points in axis.collections] == ["finished", "unfinished", "failed"]
    (best,) = axis.lines
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([0, 2], [50, 70])
