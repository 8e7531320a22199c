"""The search for the best recipe: space, searcher, trials on Ray Tune, and the journal that is the truth."""

from flywheel import FlywheelError


class SweepError(FlywheelError):
    """A sweep cannot run or found nothing."""
