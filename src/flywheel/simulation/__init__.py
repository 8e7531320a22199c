"""Production traffic, played: the client, what came of it, and its pictures."""

from flywheel import FlywheelError


class SimulationError(FlywheelError):
    """There is no server, it serves something else, or too many requests failed."""
