"""Networks and the classifier around them."""

from flywheel import FlywheelError


class ModelError(FlywheelError):
    """A model cannot be made or loaded."""
