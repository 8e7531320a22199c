"""Networks, and the classifier that adds preprocessing and class names."""

from flywheel import FlywheelError


class ModelError(FlywheelError):
    """A model cannot be built or loaded."""
