"""Keep records, images and labels within the bounds of the section `traffic`, and forget images on request."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from flywheel import files
from flywheel.params import StorePaths, Traffic
from flywheel.traffic import records

IMAGE = ".png"
HOUR = timedelta(hours=1)
LOW = 0.9  # of the limit: after a removal there is room for a while
STALE_S = 3600  # a temporary file older than this is nobody's


@dataclass(frozen=True)
class Kept:
    """What is kept: bytes of records and images, number of images, start of the oldest hour with records.

    `has_room` tells whether as much of the disk is free as images need.
    """

    size_bytes: int
    images: int
    oldest: datetime | None
    has_room: bool = True


class _File(NamedTuple):
    path: str
    size: int
    time: float  # of records: the end of their hour
    hour: datetime | None = None  # of records

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def measure(paths: StorePaths) -> Kept:
    """Return what is kept."""
    return _kept(_files(paths))


def tidy(paths: StorePaths, options: Traffic) -> Kept:
    """Remove what is too old or too much, and return what is left.

    While the disk has less free space than `min_free_fraction`, images without a label go, too. Several replicas may do
    this at the same time: a file that is gone already is no error.
    """
    oldest = datetime.now(UTC) - timedelta(days=options.max_age_days)
    for hour, of_labels in records.by_hour(paths.traffic_labels).items():
        if hour + HOUR < oldest:
            for path in of_labels:
                path.unlink(missing_ok=True)
    found = _files(paths)
    paths.traffic.mkdir(parents=True, exist_ok=True, mode=0o700)
    disk = shutil.disk_usage(paths.traffic)
    missing = int(options.min_free_fraction * disk.total) - disk.free
    has_room = missing <= 0
    excess = sum(file.size for file in found) - options.max_bytes
    if excess > 0:
        excess += int((1 - LOW) * options.max_bytes)
    labelled = _labelled(paths) if max(excess, missing) > 0 else set()
    left = []
    for file in sorted(found, key=lambda file: (file.name in labelled, file.time)):
        image = file.hour is None and file.name not in labelled
        if file.time < oldest.timestamp() or excess > 0 or (missing > 0 and image):
            Path(file.path).unlink(missing_ok=True)
            excess, missing = excess - file.size, missing - file.size
        else:
            left.append(file)
    return replace(_kept(left), has_room=has_room)


def _kept(found: Sequence[_File]) -> Kept:
    hours = [file.hour for file in found if file.hour is not None]
    return Kept(sum(file.size for file in found), len(found) - len(hours), min(hours, default=None))


def _labelled(paths: StorePaths) -> set[str]:
    """Return the names of the images that have a label, and of the files with their records."""
    found: set[str] = set()
    of_records = records.by_hour(paths.traffic_records)
    for hour, of_labels in records.by_hour(paths.traffic_labels).items():
        wanted = {row["prediction_id"] for path in of_labels for row in records.read_file(path)}
        for path in of_records.get(hour, ()):
            if hashes := {row["hash"] for row in records.read_file(path, wanted)}:
                found |= {path.name, *(f"{content}{IMAGE}" for content in hashes)}
    return found


def forgotten(paths: StorePaths) -> frozenset[str]:
    """Return the content hashes of the images that `make forget` removed; nothing may keep or train on them."""
    try:
        status = paths.forgotten.stat()
    except OSError:
        return frozenset()
    return _read_forgotten(paths.forgotten, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)  # by time and size, and so again only when the list has grown
def _read_forgotten(path: Path, _time_ns: int, _size: int) -> frozenset[str]:
    return frozenset(row["hash"] for row in files.read_json_lines(path))


def _files(paths: StorePaths) -> list[_File]:
    """Return the files of images and records; remove temporary files that a killed writer left.

    There may be a million images, and this runs in each replica: 6 us and 360 bytes for each, without a Path.
    """
    found = []
    for folder in paths.traffic_images.glob("*/"):
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                if entry.name.endswith(IMAGE):
                    found.append(_File(entry.path, status.st_size, status.st_mtime))
                elif time.time() - status.st_mtime > STALE_S:
                    Path(entry.path).unlink()
    for hour, of_hour in records.by_hour(paths.traffic_records).items():
        for path in of_hour:
            with contextlib.suppress(FileNotFoundError):
                found.append(_File(str(path), path.stat().st_size, (hour + HOUR).timestamp(), hour))
    return found
