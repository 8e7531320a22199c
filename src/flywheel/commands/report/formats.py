"""How the page shows numbers, times and data, and where it draws them: filters of its templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from flywheel.gate.report import GateReport
from flywheel.retraining.report import RetrainReport
from flywheel.traffic.monitor_report import MonitorReport

WIDTH = 180  # pixels of a drawn interval
TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00")  # in receipts

Scale = tuple[float, float]


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as 99.8 %."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def interval(bounds: Sequence[float] | None, digits: int = 1) -> str:
    """Return an interval of fractions as 98.8 to 100.0 %."""
    return "" if bounds is None else f"{100 * bounds[0]:.{digits}f} to {100 * bounds[1]:.{digits}f} %"


def points(value: float, digits: int = 2) -> str:
    """Return a difference in percentage points with its sign."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def thousands(value: float) -> str:
    """Return a number, rounded, as 12,345."""
    return f"{value:,.0f}"


def value(of: object) -> str:
    """Return the value of a param as text."""
    return f"{of:.3g}" if isinstance(of, float) else str(of)


def minutes(at: str) -> str:
    """Return a time in ISO 8601 as 2026-11-28 10:15."""
    return at[:16].replace("T", " ")


def when(at: str) -> Markup:
    """Return a <time> for a time in ISO 8601, UTC."""
    return Markup('<time datetime="{}">{} UTC</time>').format(at, minutes(at))


def plain_times(text: str) -> str:
    """Return a text with the times in it as people write them."""
    return TIME.sub(r"\1 \2 UTC", text)


def island(data: Mapping[str, Any], kind: str) -> Markup:
    """Return the data of a chart as JSON without "<": a name with "</script>" or "<!--" would end the element."""
    return Markup(json.dumps({"kind": kind, **data}, allow_nan=False).replace("<", "\\u003c"))


def x(value: float, scale: Scale) -> float:
    """Return where a value is drawn, in pixels from the left."""
    part = (value - scale[0]) / (scale[1] - scale[0] or 1.0)
    return round(4 + (WIDTH - 8) * min(max(part, 0.0), 1.0), 1)


def symmetric(report: GateReport) -> Scale:
    """Return a scale around 0 for all differences that were judged, and the margins."""
    assert report.rules is not None
    ends = [abs(end) for rule in report.applied_rules() for end in (rule.difference.low, rule.difference.high)]
    widest = 1.05 * max(*ends, report.rules.margin, report.rules.class_margin)
    return -widest, widest


def common(report: RetrainReport) -> Scale:
    """Return a scale for the accuracies of all arms on all images."""
    found = [
        score.interval for _, _, arm in report.rows() for score in (arm.test, arm.holdout, arm.unseen) if score.interval
    ]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else (0.0, 1.0)


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
