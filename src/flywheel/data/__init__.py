"""From images anywhere to one versioned data set with its splits, and from there to batches."""

from flywheel import FlywheelError


class DataError(FlywheelError):
    """A data source, an image or a data set is not as it must be."""
