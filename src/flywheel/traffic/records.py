"""The records of production traffic: one JSON line for each image that the server answered.

records/<replica>-<hour>.jsonl   {prediction_id, at, hash, group, model, prediction, probabilities, latency_ms}
images/<hh>/<hash>.png           the pixels of some of them, as the model saw them

An id carries its time, and a record lies in the file of its id's hour, so a lookup opens only the files of one hour.
Each replica writes files of its own; readers skip a line that a killed process cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.params.paths import StorePaths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HOUR_FORMAT = "%Y%m%dT%H"
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
VERSION_AND_VARIANT = 0xF << 76 | 0b11 << 62  # of an id
ID_START, ID_LENGTH = b'{"prediction_id": "', 36  # of a line
HASH_START, HASH_LENGTH, NO_GROUP = b'"hash": "', 64, b'"group": null'


def new_id() -> str:
    """Return a UUIDv7: 48 bits of time in milliseconds, then 74 random bits (RFC 9562, section 5.7)."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    text = f"{value & ~VERSION_AND_VARIANT | 0x7 << 76 | 0b10 << 62:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def time_of(prediction_id: object) -> datetime:
    """Return when an id was made, in UTC. Raises ValueError for what is no UUIDv7 in its usual spelling."""
    if isinstance(prediction_id, str) and UUID7.fullmatch(prediction_id):
        with contextlib.suppress(ValueError, OverflowError, OSError):  # thousands of years ahead
            return datetime.fromtimestamp(int(prediction_id[:8] + prediction_id[9:13], 16) / 1000, UTC)
    raise ValueError(f"not a prediction_id: {prediction_id!r:.50}")


def hour_of(prediction_id: str) -> str:
    """Return the hour of an id as it stands in names of files: 20261128T15. Raises ValueError."""
    return f"{time_of(prediction_id):{HOUR_FORMAT}}"


def file_time(path: Path) -> datetime | None:
    """Return the start of the hour that a file of records or labels covers, or None for other files."""
    with contextlib.suppress(ValueError):
        return datetime.strptime(path.stem.rpartition("-")[2], HOUR_FORMAT).replace(tzinfo=UTC)
    return None


def image_path(paths: StorePaths, content: str) -> Path:
    """Return where the pixels with a content hash (hex) are kept."""
    return paths.traffic_images / content[:2] / f"{content}.png"


def by_hour(folder: Path) -> dict[datetime, list[Path]]:
    """Return the files of records or labels in a folder by their hour, the oldest first."""
    found: dict[datetime, list[Path]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        if (hour := file_time(path)) is not None:
            found.setdefault(hour, []).append(path)
    return dict(sorted(found.items()))


def read(paths: StorePaths) -> Iterator[dict[str, Any]]:
    """Yield every record, hour by hour; the memory needed does not grow with their number."""
    for of_hour in by_hour(paths.traffic_records).values():
        yield from chain.from_iterable(map(read_file, of_hour))


def newest_hours(paths: StorePaths) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield for each hour, the newest first, its records in any order."""
    for of_hour in reversed(by_hour(paths.traffic_records).values()):
        yield chain.from_iterable(map(read_file, of_hour))


def groups(paths: StorePaths, contents: Collection[str]) -> dict[str, set[str]]:
    """Return the groups (hashes) of those images (hashes) that were ever sent with one."""
    found: dict[str, set[str]] = {}
    for path in paths.traffic_records.glob("*.jsonl"):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
            for line in lines:
                content = line.partition(HASH_START)[2][:HASH_LENGTH].decode("ascii", "replace")
                if content in contents and NO_GROUP not in line:
                    with contextlib.suppress(ValueError, KeyError):  # a line that was cut off
                        found.setdefault(content, set()).add(json.loads(line)["group"])
    return found


def read_image(paths: StorePaths, content: str) -> NDArray[np.uint8] | None:
    """Return the pixels (s, s, 3) that are kept under a content hash, or None if they are gone or damaged."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(image_path(paths, content)) as kept:
            pixels = np.asarray(kept, np.uint8)
    except Exception:  # Pillow raises any exception on damaged files
        return None
    return pixels if hashlib.sha256(pixels.tobytes()).hexdigest() == content else None


def line_id(line: bytes) -> str:
    """Return the id with which a line starts, or what stands there; parsing the line takes ten times as long."""
    return line[len(ID_START) : len(ID_START) + ID_LENGTH].decode("ascii", "replace")


def read_file(path: Path, wanted: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the records or labels of a file, all or those of the ids in `wanted`.

    Lines that are cut off are skipped, and a file that vanishes is empty.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
        for line in lines:
            if wanted is not None and line_id(line) not in wanted:
                continue
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("prediction_id"), str):
                    yield row


def cut_off(paths: StorePaths) -> int:
    """Return how many files of records and labels end in a line that a killed process cut off; readers skip it."""
    count = 0
    for path in (*paths.traffic_records.glob("*.jsonl"), *paths.traffic_labels.glob("*.jsonl")):
        with contextlib.suppress(OSError), path.open("rb") as file:  # empty or gone
            file.seek(-1, os.SEEK_END)
            count += file.read() != b"\n"
    return count
