"""Serve the production model over HTTP with Ray Serve, and load a new one when production moves."""

from flywheel import FlywheelError


class ServingError(FlywheelError):
    """The server cannot start or cannot answer; the message says why and what to do."""
