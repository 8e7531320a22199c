"""The append-only journal of a sweep: every event, in order, on disk before the sweep goes on.

Each line is one event with the keys trial, event and at. The reports, the best trial and a resumed sweep are all
derived from this file.

    begin      a process starts to work on the sweep: identity, code                          (trial is null)
    start      a trial was proposed: number, config, point of the search space
    run        a trial started to run; again after its worker or the sweep died
    epoch      the metrics of an epoch, and where it ran; a repeated epoch replaces it and all later ones
    finished, stopped, failed
    again      a failed trial will run again, because the code changed
    done       the best model was published                                                   (trial is null)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from flywheel import files

METRIC = "accuracy"


@dataclass
class Trial:
    """A trial. `config` is its complete recipe; `status` is running, finished, stopped or failed."""

    id: str
    number: int
    config: dict[str, Any]
    bayesian: bool
    status: str = "running"
    error: str | None = None
    time_s: float = 0.0
    machine: dict[str, Any] | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    point: dict[str, Any] = field(default_factory=dict)
    runs: int = 0
    node: str | None = None

    @property
    def accuracy(self) -> float | None:
        """The best validation accuracy of any epoch, or None before the first."""
        return max((epoch[METRIC] for epoch in self.epochs), default=None)

    @property
    def best_epoch(self) -> int | None:
        """The first epoch with the best accuracy; its weights are kept."""
        return next((epoch["epoch"] for epoch in self.epochs if epoch[METRIC] == self.accuracy), None)

    def record_epoch(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of an epoch; a repeated epoch replaces it and all later ones."""
        self.epochs = [*(one for one in self.epochs if one["epoch"] < epoch), {"epoch": epoch, **metrics}]


@dataclass(frozen=True)
class SweepRecord:
    """A sweep as its journal records it, with the trials in the order of their numbers.

    `begun` is the last begin event, `done` tells whether the best model was published and no trial ran after that,
    `results` holds (trial id, epoch, accuracy) in order of arrival, `elapsed_s` is the time during which a process
    worked on the sweep.
    """

    trials: list[Trial]
    begun: dict[str, Any]
    results: list[tuple[str, int, float]]
    elapsed_s: float
    done: bool

    @property
    def ended(self) -> int:
        """The number of trials that ended."""
        return sum(trial.status != "running" for trial in self.trials)


class Journal:
    """The journal file of one sweep."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def sweep_id(self) -> str:
        """The name of the sweep."""
        return self.path.stem

    def append(self, event: str, trial: str | None = None, **details: Any) -> None:
        """Record an event of a trial, or of the sweep as a whole."""
        files.append_json_lines(self.path, {"trial": trial, "event": event, **details, "at": files.timestamp()})

    def start(self, trial: Trial) -> None:
        """Record that a trial was proposed."""
        self.append(
            "start", trial.id, number=trial.number, config=trial.config, bayesian=trial.bayesian, point=trial.point
        )

    def epoch(self, trial: Trial, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of an epoch, the trial's time so far and its machine."""
        at = {"time_s": round(trial.time_s, 3), "machine": trial.machine, "node": trial.node}
        self.append("epoch", trial.id, epoch=epoch, metrics=dict(metrics), **at)

    def end(self, trial: Trial) -> None:
        """Record that a trial finished, was stopped or failed."""
        self.append(trial.status, trial.id, time_s=round(trial.time_s, 3), error=trial.error, machine=trial.machine)

    def read(self) -> SweepRecord:
        """Replay the journal. Events of a trial whose start event is torn are ignored."""
        trials: dict[str, Trial] = {}
        results: list[tuple[str, int, float]] = []
        begun: dict[str, Any] = {}
        done, elapsed_s, last = False, 0.0, None
        for event in files.read_json_lines(self.path):
            kind, name, at = event["event"], event["trial"], datetime.fromisoformat(event["at"])
            if kind == "begin":
                begun = event
            elif last is not None:  # the time before a begin event is a pause
                elapsed_s += (at - last).total_seconds()
            last = at
            if kind == "done":
                done = True
            elif kind == "start":
                trials[name] = Trial(
                    name, event["number"], event["config"], event["bayesian"], point=event.get("point", {})
                )
            elif name in trials:
                _apply(trials[name], kind, event)
                if kind == "run":
                    done = False  # it goes on with more trials or more time
                if kind == "epoch":
                    results.append((name, event["epoch"], event["metrics"][METRIC]))
        return SweepRecord(sorted(trials.values(), key=lambda trial: trial.number), begun, results, elapsed_s, done)


def ranking(trials: Iterable[Trial], include_running: bool = False) -> list[Trial]:
    """Return the trials that did not fail by validation accuracy, the best first; of equals the lower number first."""
    statuses = ("finished", "stopped", "running") if include_running else ("finished", "stopped")
    judged = [trial for trial in trials if trial.accuracy is not None and trial.status in statuses]
    return sorted(judged, key=lambda trial: (-(trial.accuracy or 0.0), trial.number))


def _apply(trial: Trial, kind: str, event: Mapping[str, Any]) -> None:
    if kind == "run":
        trial.runs += 1
    elif kind == "again":
        trial.status, trial.error = "running", None
    elif kind == "epoch":
        trial.record_epoch(event["epoch"], event["metrics"])
        trial.time_s, trial.machine, trial.node = event["time_s"], event["machine"], event["node"]
    elif kind in ("finished", "stopped", "failed"):
        trial.status, trial.error = kind, event["error"]
        trial.time_s, trial.machine = event["time_s"] or 0.0, event["machine"]
