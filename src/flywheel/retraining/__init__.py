"""From feedback to a candidate: new failures, their images, the training and its control arm, the scores."""

from flywheel import FlywheelError


class RetrainError(FlywheelError):
    """There is nothing to continue from, or it does not fit the data set."""
