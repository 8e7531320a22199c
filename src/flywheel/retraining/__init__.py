"""From feedback to a candidate: new failures, their images, the training of both arms, the scores."""

from flywheel import FlywheelError


class RetrainError(FlywheelError):
    """There is nothing to continue from, or it does not fit the data set."""
