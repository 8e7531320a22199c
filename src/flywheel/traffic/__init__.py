"""Real traffic: records of what the server answered, labels for them, the feedback artifact, and monitoring."""

from flywheel import FlywheelError


class TrafficError(FlywheelError):
    """Traffic cannot be labelled, collected or forgotten; the message says why and what to do."""
