"""Predictions -> metrics, and the comparison of two models."""

from flywheel import FlywheelError


class EvaluationError(FlywheelError, ValueError):
    """Predictions cannot be judged: shapes that do not match, or values that are not finite."""
