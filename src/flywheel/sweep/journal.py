"""The append-only journal of a sweep: what happened, in the order it happened, on disk at once.

One line an event (keys: trial, event, config, epoch, metrics, at). Whatever is told about a sweep, its
reports, its best trial, and how it goes on after an interruption, is read back from here.

    begin      a process works on the sweep from here on: what identifies the sweep, and the code  (no trial)
    start      a trial is proposed: its number, recipe and point of the search space
    run        it runs; again after its worker or the sweep died
    epoch      an epoch's metrics, and where it ran; one that is told again replaces it and what came after
    finished, stopped, failed
    again      a trial that failed is to run again: its code was mended
    done       the best model is published                                                         (no trial)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flywheel import files

ENDINGS = ("finished", "stopped", "failed")


@dataclass
class Trial:
    """One trial as the journal tells it; `status` is running until it ended."""

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
        return max((epoch["accuracy"] for epoch in self.epochs), default=None)

    @property
    def best_epoch(self) -> int | None:
        """The first epoch of the best accuracy: its weights are kept."""
        return next((epoch["epoch"] for epoch in self.epochs if epoch["accuracy"] == self.accuracy), None)

    def take(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Take an epoch's metrics; one that is told again replaces it and what came after it."""
        self.epochs = [*(one for one in self.epochs if one["epoch"] < epoch), {"epoch": epoch, **metrics}]

    def row(self) -> dict[str, Any]:
        """Return the trial as sweep.json and sweep.csv show it."""
        return {
            "id": self.id,
            "number": self.number,
            "status": "unfinished" if self.status == "running" else self.status,
            "error": self.error,
            "epochs": len(self.epochs),
            "accuracy": self.accuracy,
            "time_s": round(self.time_s, 3),
            "bayesian": self.bayesian,
            **{name: value for name, value in self.config.items() if name != "epochs"},
        }


@dataclass(frozen=True)
class Record:
    """What a journal tells: its trials in the order in which they were proposed, and the sweep as a whole.

    `begun` are the details of the last begin, `told` the epochs as (trial, epoch, accuracy) in the order in which
    they came, `spent_s` the seconds that processes worked on it, `done` those of the last done.
    """

    trials: list[Trial]
    begun: dict[str, Any]
    told: list[tuple[str, int, float]]
    spent_s: float
    done: dict[str, Any] | None

    @property
    def ended(self) -> int:
        """How many trials ended."""
        return sum(trial.status != "running" for trial in self.trials)


class Journal:
    """The journal file of one sweep."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def sweep_id(self) -> str:
        """The sweep's name."""
        return self.path.stem

    def begin(self, **details: Any) -> None:
        """Record that this process works on the sweep from now on."""
        self._append(None, "begin", **details)

    def start(self, trial: Trial) -> None:
        """Record that a trial is proposed."""
        self._append(
            trial.id, "start", number=trial.number, config=trial.config, bayesian=trial.bayesian, point=trial.point
        )

    def run(self, trial: Trial) -> None:
        """Record that a trial runs."""
        self._append(trial.id, "run")

    def epoch(self, trial: Trial, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Record an epoch's metrics, the trial's time so far and on what it runs."""
        at = {"time_s": round(trial.time_s, 3), "machine": trial.machine, "node": trial.node}
        self._append(trial.id, "epoch", epoch=epoch, metrics=dict(metrics), **at)

    def end(self, trial: Trial) -> None:
        """Record that a trial finished, was stopped or failed."""
        self._append(trial.id, trial.status, time_s=round(trial.time_s, 3), error=trial.error, machine=trial.machine)

    def again(self, trial: Trial) -> None:
        """Record that a trial that failed is to run again."""
        self._append(trial.id, "again")

    def done(self, **details: Any) -> None:
        """Record that the sweep's best model is published."""
        self._append(None, "done", **details)

    def trials(self) -> list[Trial]:
        """Return all trials, in the order in which they were proposed."""
        return self.read().trials

    def read(self) -> Record:
        """Return all that the journal tells. Events of a trial whose start is torn away are left out."""
        trials: dict[str, Trial] = {}
        told: list[tuple[str, int, float]] = []
        begun: dict[str, Any] = {}
        done: dict[str, Any] | None = None
        spent_s, since, last = 0.0, None, None
        for event in files.read_json_lines(self.path):
            kind, name, at = event["event"], event["trial"], datetime.fromisoformat(event["at"])
            if kind == "begin":
                spent_s += _seconds(since, last)
                begun, since = event, at
            last = at
            if kind == "done":
                done = event
            elif kind == "start":
                trials[name] = Trial(
                    name, event["number"], event["config"], event["bayesian"], point=event.get("point", {})
                )
            elif name in trials:
                _apply(trials[name], kind, event)
                if kind == "epoch":
                    told.append((name, event["epoch"], event["metrics"]["accuracy"]))
        spent_s += _seconds(since, last)
        return Record(sorted(trials.values(), key=lambda trial: trial.number), begun, told, spent_s, done)

    def _append(self, trial: str | None, event: str, **details: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        files.append_json_lines(self.path, {"trial": trial, "event": event, **details, "at": at})


def best(trials: Iterable[Trial], cut_short: bool = False) -> Trial | None:
    """Return the trial with the highest validation accuracy (the earliest of equals) that did not fail.

    Trials that have not ended count only if the sweep is cut short.
    """
    return next(iter(ranking(trials, cut_short)), None)


def ranking(trials: Iterable[Trial], cut_short: bool = False) -> list[Trial]:
    """Return the trials that did not fail, best first."""
    allowed = ("finished", "stopped", "running") if cut_short else ("finished", "stopped")
    judged = [trial for trial in trials if trial.accuracy is not None and trial.status in allowed]
    return sorted(judged, key=lambda trial: (-(trial.accuracy or 0.0), trial.number))


def _apply(trial: Trial, kind: str, event: Mapping[str, Any]) -> None:
    if kind == "run":
        trial.runs += 1
    elif kind == "again":
        trial.status, trial.error = "running", None
    elif kind == "epoch":
        trial.take(event["epoch"], event["metrics"])
        trial.time_s, trial.machine, trial.node = event["time_s"], event["machine"], event["node"]
    elif kind in ENDINGS:
        trial.status, trial.error = kind, event["error"]
        trial.time_s, trial.machine = event["time_s"] or 0.0, event["machine"]


def _seconds(start: datetime | None, end: datetime | None) -> float:
    return (end - start).total_seconds() if start and end else 0.0
