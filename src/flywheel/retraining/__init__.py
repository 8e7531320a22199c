"""From feedback to a candidate: new labels, their images, the training and the arms beside it, the scores."""

from flywheel import FlywheelError


class RetrainError(FlywheelError):
    """There is nothing to continue from, or it does not fit the data set."""
