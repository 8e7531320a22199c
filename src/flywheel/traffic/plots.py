"""The picture of `make monitor`: what production did over time."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

from flywheel.pipeline.plotting import BAD, INK, MUTED, PALETTE, drawing, short_name
from flywheel.traffic.monitor_report import MonitorReport

MAX_MODELS = 5  # the production model and the newest others


def story(report: MonitorReport, path: Path) -> Path:
    """Draw presumed accuracy, the alarm's line, accuracy by labels, promotions, and below the alarm's evidence."""
    newest = {row.model: row.start for row in report.change}
    found = [one for one in (report, *report.others) if one.model in newest]
    shown = sorted(found, key=lambda one: (one is report, newest[str(one.model)]))[-MAX_MODELS:][::-1]
    limit = report.alarm.limit or (shown[0].alarm.limit if shown else None)
    ceiling = 2 * limit if limit else 1.0  # evidence grows without bound after an alarm
    with drawing(path, 9.6, 5.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
        for one, colour in zip(shown, PALETTE, strict=False):
            rows = [row for row in report.change if row.model == one.model]
            times = [_middle(row.start, row.end) for row in rows]
            style = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 2}
            name = short_name(one.label) + (", in production" if one is report else "")
            top.plot(times, [100 * row.presumed_accuracy for row in rows], label=f"presumed: {name}", **style)
            bottom.plot(times, [min(row.evidence, ceiling) for row in rows], **style)
            ends = [_time(rows[0].start), _time(rows[-1].end)]
            assert one.alarm.lowest_accuracy is not None
            top.plot(ends, [100 * one.alarm.lowest_accuracy] * 2, color=colour, linewidth=1, linestyle=(0, (4, 3)))
            labelled = [sample for sample in report.samples if sample.model == one.model]
            if labelled:
                values = [100 * sample.accuracy for sample in labelled]
                spread = [[100 * abs(sample.interval[end] - sample.accuracy) for sample in labelled] for end in (0, 1)]
                top.errorbar(
                    [_time(sample.made) for sample in labelled], values, yerr=spread, fmt="D", color=colour,
                    markeredgecolor=INK, ecolor=INK, markersize=7, capsize=4, linewidth=1.5, zorder=4,
                    label=f"by labels, 95 %: {name}",
                )  # fmt: skip
            if one.alarm.since:
                _mark(top, bottom, one.alarm.since, f"alarm: {short_name(one.label)}", BAD)
        names = {one.model: one.label for one in found}
        if report.change:
            first, last = report.change[0].start, max(row.end for row in report.change)
            for move in report.promotions:
                if first <= move.at <= last:
                    _mark(top, bottom, move.at, f"promoted: {short_name(names.get(move.model, move.model))}", MUTED)
        if limit is not None:
            bottom.axhline(limit, color=BAD, linewidth=1.5)
            bottom.set_ylim(0, 1.05 * ceiling)
            bottom.text(1, limit, "alarm", transform=bottom.get_yaxis_transform(), ha="right", va="bottom", color=BAD)
        bottom.set(xlabel="time (UTC)", ylabel="evidence")
        top.set(ylabel="accuracy (%)", title=_title(report))
        top.yaxis.set_major_locator(mpl.ticker.MaxNLocator(6))
        for axis in (top, bottom):
            axis.grid(axis="y")
            axis.set_axisbelow(True)
        if shown:
            figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return path


def _title(report: MonitorReport) -> str:
    state = f"alarm since {(report.alarm.since or '')[:16].replace('T', ' ')}" if report.alarm.since else "no alarm"
    return f"{short_name(report.label) or 'Production'}: {state}; lower than the dashed line is harm"


def _mark(top: mpl.axes.Axes, bottom: mpl.axes.Axes, at: str, text: str, colour: str) -> None:
    for axis in (top, bottom):
        axis.axvline(_time(at), color=colour, linewidth=1, linestyle=(0, (1, 2)))
    top.text(
        _time(at), 0.02, f" {text}", transform=top.get_xaxis_transform(), color=colour, fontsize=8, rotation=90,
        ha="right", va="bottom", bbox={"color": "white", "alpha": 0.8, "pad": 0},
    )  # fmt: skip


def _middle(start: str, end: str) -> Any:
    return _time(start) + (_time(end) - _time(start)) / 2


def _time(at: str) -> Any:
    """Return a time as matplotlib draws it; its type annotations know numbers only."""
    return datetime.fromisoformat(at)
