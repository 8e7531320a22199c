"""The data of the figure of monitoring."""

from __future__ import annotations

from typing import Any

from flywheel.traffic.monitor_report import MonitorReport


def story(report: MonitorReport) -> dict[str, Any]:
    """Return presumed accuracy by time for each model, the accuracy by labels, and the promotions."""
    first = report.change[0].start
    return {
        "models": [
            {
                "name": one.label,
                "lowest": one.alarm.lowest_accuracy,
                "rows": [[row.end, row.presumed_accuracy, row.n] for row in report.change if row.model == one.model],
            }
            for one in (report, *report.others)
            if any(row.model == one.model for row in report.change)
        ],
        "samples": [one.model_dump(include={"made", "accuracy", "interval", "n"}) for one in report.samples],
        "promotions": [move.at for move in report.promotions if move.at >= first],
    }
