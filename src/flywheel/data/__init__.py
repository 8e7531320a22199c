"""From a source of images to a versioned data set with its splits."""

from flywheel import FlywheelError


class DataError(FlywheelError):
    """A data source, an image or a data set cannot be used."""
