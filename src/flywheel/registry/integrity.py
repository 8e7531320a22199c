"""Check the files of a version: by size and time stamp where they were verified before, otherwise every byte."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from flywheel import files
from flywheel.registry.manifest import RegistryError, Version
from flywheel.registry.versions import stamp


def opened(folder: Path, version: Version, verify: Callable[[Version], None]) -> Path:
    """Return where a version's files lie in its folder, verified unless they are as they were when last verified."""
    stamps = {path: stamp(folder / "files" / path) for path in version.files}
    record = folder / "verified.json"
    known = {}
    with contextlib.suppress(OSError, ValueError):
        known = files.read_json(record)
    if known != stamps:
        verify(version)
        with contextlib.suppress(OSError):  # a read-only store verifies every time
            files.write_json(record, stamps)
    return folder / "files"


def verify(folder: Path, version: Version) -> None:
    """Read every byte of a version in its folder. Raises RegistryError naming the damaged or missing file."""
    for path, expected in version.files.items():
        place = folder / "files" / path
        try:
            found = files.digest_file(place)
        except OSError as error:
            raise RegistryError(f"{version.label}: {place} cannot be read ({error.strerror})") from None
        if found != expected:
            raise RegistryError(f"{version.label}: {place} is damaged; remove {folder} and make it anew")


def incomplete(folder: Path, version: Version) -> Path | None:
    """Return a file of a version that is absent from its folder or of another size, or None; reads no file."""
    for path, entry in version.files.items():
        found = stamp(folder / "files" / path)
        if found is None or found[0] != entry.size:
            return folder / "files" / path
    return None
