"""Ray Serve answers /predict with the production model, and follows it when it moves."""

from flywheel import FlywheelError


class ServingError(FlywheelError):
    """The server cannot start, or an answer cannot be given; the message says why and what to do."""
