"""The reports of a sweep: sweep.json, sweep.csv and pictures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from flywheel import files
from flywheel.params import Params
from flywheel.sweep.journal import Trial


class TrialReport(BaseModel, frozen=True, extra="allow"):
    """A trial; the params of its recipe are further fields."""

    id: str
    number: int
    status: Literal["finished", "stopped", "failed", "unfinished"]
    error: str | None
    epochs: int
    accuracy: float | None
    time_s: float
    bayesian: bool

    @classmethod
    def of(cls, trial: Trial) -> TrialReport:
        """Return the report of a trial."""
        recipe = {name: value for name, value in trial.config.items() if name != "epochs"}
        status: Any = "unfinished" if trial.status == "running" else trial.status
        return cls(
            id=trial.id, number=trial.number, status=status, error=trial.error, epochs=len(trial.epochs),
            accuracy=trial.accuracy, time_s=round(trial.time_s, 3), bayesian=trial.bayesian, **recipe,
        )  # fmt: skip

    def param(self, name: str) -> Any:
        """Return the value of a recipe param, or None if the recipe has no such param."""
        return (self.model_extra or {}).get(name)


class BestTrial(BaseModel, frozen=True):
    """The trial whose model was published as `best`."""

    trial: str
    accuracy: float
    model: str
    config: dict[str, Any]


class SweepReport(BaseModel, frozen=True):
    """The content of sweep.json."""

    version: Literal[1] = 1
    sweep_id: str
    dataset: str
    best: BestTrial
    bayesian_trials: int
    wall_s: float
    peak_disk_bytes: int = 0
    trials: tuple[TrialReport, ...]


def write(params: Params, report: SweepReport) -> list[Path]:
    """Write sweep.json, sweep.csv and the pictures into the reports folder. Returns their paths."""
    from flywheel.sweep import plots

    folder, rows = params.reports, [trial.model_dump() for trial in report.trials]
    files.write_json(folder / "sweep.json", report.model_dump(mode="json"))
    with files.atomic(folder / "sweep.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    title = f"{report.dataset.partition('@')[0]}: {len(rows)} trials"
    return [
        folder / "sweep.json",
        folder / "sweep.csv",
        plots.search_history(rows, f"{title}, search history", folder / "sweep_history.png"),
        plots.params_against_accuracy(
            rows, params.sweep.searched, params.sweep.logarithmic, f"{title}, params against accuracy",
            folder / "sweep_params.png",
        ),
    ]  # fmt: skip
