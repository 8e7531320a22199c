"""The report: one HTML page that tells where the wheel stands, from the files that the stages wrote."""

from flywheel import FlywheelError


class ReportError(FlywheelError):
    """The page cannot be made; the message says why."""
