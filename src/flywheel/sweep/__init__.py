"""The search for the best recipe: trials on Ray Tune, recorded in a journal that makes a sweep resumable."""

from flywheel import FlywheelError


class SweepError(FlywheelError):
    """A sweep cannot run or found nothing."""
