"""What the demo found: how much of each part of the traffic was answered rightly, as a table and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flywheel import FlywheelError
from flywheel.data import dataset, splits
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.pipeline.plotting import BAD, GOOD, GRID, INK, MUTED, drawing
from flywheel.registry import Registry
from flywheel.retraining.report import RetrainReport
from flywheel.traffic import monitor, records

WINDOW = 25  # answers of the moving average
ROW = "{:<30}{:<26}{:>7}{:>8}   {}"


@dataclass(frozen=True)
class Part:
    """A part of the traffic, one after another, and what `make monitor` said after it.

    `right` tells for each answer in turn whether it was right: only for the images on which no model ever trains.
    `alarm_after` counts the answers until the alarm, all and those in `right`: none if it was up before, None without
    an alarm.
    """

    title: str
    model: str
    right: NDArray[np.bool_]
    alarm_after: tuple[int, int] | None

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.right.mean()) if len(self.right) else float("nan")


def measure(params: Params, registry: Registry, title: str, between: tuple[float, float]) -> Part:
    """Return what the server answered in a span of time (seconds since 1970), compared with the truth.

    Raises FlywheelError if it recorded nothing.
    """
    opened = dataset.open_directory(registry.open(stage.dataset_of(params, registry)))
    rows = sorted(
        (row for row in records.read(params.store_paths) if between[0] <= _seconds(row) <= between[1]), key=_seconds
    )
    if not rows:
        raise FlywheelError("the server recorded no answer; make logs shows why")
    model = Counter(row["model"] for row in rows).most_common(1)[0][0]
    answers = [row for row in rows if row["model"] == model and row["hash"] in opened.simulation_rows]
    index = [opened.simulation_rows[row["hash"]] for row in answers]
    held = splits.is_holdout(opened.hashes[index])
    right = np.array([row["prediction"] for row in answers]) == np.array(opened.class_names)[opened.labels[index]]
    report, alarm_after = monitor.read(params), None
    if report is not None and report.alarm.since is not None:
        before = np.array([_seconds(row) for row in answers]) <= datetime.fromisoformat(report.alarm.since).timestamp()
        alarm_after = (int(before.sum()), int((before & held).sum()))
    return Part(title, registry.label(model), right[held], alarm_after)


def table(parts: Sequence[Part], retrained: RetrainReport | None) -> Iterator[str]:
    """Yield what happened to each part, the labels that the retraining had, and the other arm."""
    yield ROW.format("production traffic", "answered by", "labels", "right", "make monitor, without labels")
    for part in parts:
        labels = retrained.labels if retrained and part is parts[-1] else None
        state = _alarm(part)
        yield ROW.format(part.title, part.model, "–" if labels is None else labels, f"{part.accuracy:.1%}", state)
    if retrained and retrained.control and retrained.control.holdout.accuracy is not None:
        arm = retrained.control
        yield ROW.format(
            "  instead, with fewer labels", "not served", arm.labels or "–", f"{arm.holdout.accuracy:.1%}", "–"
        )
    yield f"right: of {len(parts[-1].right):,} production images on which no model ever trains"
    if retrained:
        decision = "promoted" if retrained.promoted else "not promoted"
        yield f"the gate: {decision}, {'; '.join(retrained.reasons)}"


def _alarm(part: Part) -> str:
    if part.alarm_after is None:
        return "quiet"
    return f"ALARM after {part.alarm_after[0]} answers" if part.alarm_after[0] else "ALARM, still"


def draw(parts: Sequence[Part], retrained: RetrainReport | None, path: Path) -> Path:
    """Draw the moving share of right answers through all parts, with the alarm and the retraining."""
    with drawing(path, 9.6, 3.8) as figure:
        axis = figure.subplots()
        start = 0
        for number, part in enumerate(parts):
            count = len(part.right)
            total = np.concatenate([[0], np.cumsum(part.right)])
            ends = np.arange(1, count + 1)
            begins = np.maximum(0, ends - WINDOW)
            if number:
                axis.axvline(start, color=MUTED, linewidth=1)
            axis.plot(start + ends, 100 * (total[ends] - total[begins]) / (ends - begins), color=GOOD, linewidth=2)
            axis.text(start + count / 2, 117, part.title, ha="center", color=INK, fontweight="bold")
            axis.text(start + count / 2, 109, f"{part.accuracy:.1%} right", ha="center", color=MUTED)
            if part.alarm_after:
                at, late = start + part.alarm_after[1], part.alarm_after[1] > count / 2
                axis.vlines(at, 0, 100, color=BAD, linewidth=2)
                axis.text(
                    at - 2 if late else at + 2, 3, f"{_alarm(part).replace('ALARM', 'alarm')},\nwithout a label",
                    color=BAD, ha="right" if late else "left", va="bottom", fontsize=9,
                )  # fmt: skip
            else:
                axis.text(start + 4, 3, "no alarm", color=MUTED, va="bottom", fontsize=9)
            start += count
        if retrained and retrained.promoted and retrained.labels:
            axis.annotate(
                f"retrained on {retrained.labels} labels,\npromoted by the gate", (start - len(parts[-1].right), 30),
                (6, 0), textcoords="offset points", color=INK, fontsize=9, va="center",
            )  # fmt: skip
        axis.set(xlim=(0, start), ylim=(0, 125), xlabel="requests with images that no model trains on, in their order")
        axis.set(ylabel=f"right, last {WINDOW} (%)", yticks=range(0, 101, 25))
        axis.grid(axis="y", color=GRID)
    return path


def _seconds(row: dict[str, object]) -> float:
    return records.time_of(row["prediction_id"]).timestamp()
