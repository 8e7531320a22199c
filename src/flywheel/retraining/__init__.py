"""From hard examples to a candidate: what is new, which images count, the training of both arms, the figures."""

from flywheel import FlywheelError


class RetrainError(FlywheelError):
    """There is nothing to continue from, or it does not fit the data set."""
