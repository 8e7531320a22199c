"""Simulated production traffic: the client, its results and their plots."""

from flywheel import FlywheelError


class SimulationError(FlywheelError):
    """There is no server, it serves something else, or too many requests failed."""
