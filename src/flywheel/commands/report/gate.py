"""The scales on which the page draws intervals: of the gate's rules, and of the accuracies of a retraining."""

from __future__ import annotations

from flywheel.gate.report import GateReport
from flywheel.retraining.report import RetrainReport

WIDTH = 180  # pixels of a drawn interval
Scale = tuple[float, float]


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
