"""The append-only journal of a sweep: what happened, in the order it happened, on disk at once.

One line an event (keys: trial, event, config, epoch, metrics, at). Whatever is told about a sweep, its
reports and its best trial, is read back from here.
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
    time_s: float | None = None
    machine: dict[str, Any] | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def accuracy(self) -> float | None:
        """The best validation accuracy of any epoch, or None before the first."""
        return max((epoch["accuracy"] for epoch in self.epochs), default=None)

    def row(self) -> dict[str, Any]:
        """Return the trial as sweep.json and sweep.csv show it."""
        return {
            "id": self.id,
            "number": self.number,
            "status": self.status,
            "error": self.error,
            "epochs": len(self.epochs),
            "accuracy": self.accuracy,
            "time_s": self.time_s,
            "bayesian": self.bayesian,
            **{name: value for name, value in self.config.items() if name != "epochs"},
        }


class Journal:
    """The journal file of one sweep."""

    def __init__(self, path: Path):
        self.path = path

    def start(self, trial: Trial) -> None:
        """Record that a trial starts."""
        self._append(trial.id, "start", number=trial.number, config=trial.config, bayesian=trial.bayesian)

    def epoch(self, trial: str, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Record an epoch's metrics."""
        self._append(trial, "epoch", epoch=epoch, metrics=dict(metrics))

    def end(self, trial: Trial) -> None:
        """Record that a trial finished, was stopped or failed, and on what it ran."""
        self._append(trial.id, trial.status, time_s=trial.time_s, error=trial.error, machine=trial.machine)

    def trials(self) -> list[Trial]:
        """Return all trials, in the order in which they were proposed."""
        trials: dict[str, Trial] = {}
        for event in files.read_json_lines(self.path):
            name = event["trial"]
            if event["event"] == "start":
                trials[name] = Trial(name, event["number"], event["config"], event["bayesian"])
            elif event["event"] == "epoch":
                trials[name].epochs.append({"epoch": event["epoch"], **event["metrics"]})
            elif event["event"] in ENDINGS:
                trials[name].status = event["event"]
                for key in ("error", "time_s", "machine"):
                    setattr(trials[name], key, event[key])
        return sorted(trials.values(), key=lambda trial: trial.number)

    def _append(self, trial: str, event: str, **details: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        files.append_json_lines(self.path, {"trial": trial, "event": event, **details, "at": at})


def best(trials: Iterable[Trial]) -> Trial | None:
    """Return the trial with the highest validation accuracy (the earliest of equals) that did not fail."""
    judged = [trial for trial in trials if trial.accuracy is not None and trial.status in ("finished", "stopped")]
    return max(judged, key=lambda trial: (trial.accuracy or 0.0, -trial.number), default=None)
