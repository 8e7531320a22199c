"""Accuracy and its intervals, calibration, and the paired comparison of two models."""

from flywheel import FlywheelError


class MetricsError(FlywheelError, ValueError):
    """Predictions cannot be scored: shapes that do not match, or values that are not finite."""
