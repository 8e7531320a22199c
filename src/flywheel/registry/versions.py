"""The version folders on disk: <root>/<name>/v3, the pointer `latest`, and the next number."""

from __future__ import annotations

import contextlib
from pathlib import Path

from flywheel import files
from flywheel.registry import manifest
from flywheel.registry.manifest import NUMBER, Version


class VersionFolders:
    """The folders of all versions below `root`."""

    def __init__(self, root: Path):
        self.root = root

    def names(self) -> list[str]:
        """Return the names that have a version, sorted."""
        names = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        return [name for name in names if self.numbers(name)]

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a name's versions, in order."""
        folder = self.root / name
        if not folder.is_dir():
            return []
        return sorted(int(path.name[1:]) for path in folder.iterdir() if NUMBER.fullmatch(path.name))

    def folder(self, name: str, number: int) -> Path:
        """Return the folder of a version."""
        return self.root / name / f"v{number}"

    def read(self, name: str, number: int) -> Version:
        """Return a version from its manifest. Raises RegistryError when that is damaged."""
        return manifest.read(self.folder(name, number) / "manifest.json", name, number)

    def latest(self, name: str, numbers: list[int]) -> int:
        """Return which of the numbers is the latest: what the pointer says, else the highest."""
        with contextlib.suppress(OSError, ValueError):
            number = int((self.root / name / "latest").read_text())
            if number in numbers:
                return number
        return numbers[-1]

    def set_latest(self, name: str, number: int) -> None:
        """Point `latest` at a version."""
        files.write_text(self.root / name / "latest", f"{number}\n")

    def next_number(self, name: str) -> int:
        """Return the number of the next version: higher than all that exist and existed."""
        following = 0
        with contextlib.suppress(OSError, ValueError):
            following = int((self.root / name / "next").read_text())
        return max([following, *(number + 1 for number in self.numbers(name))])

    def reserve_number(self, name: str) -> None:
        """Record which number comes next, before a version is removed, so that no number is used twice."""
        files.write_text(self.root / name / "next", f"{self.next_number(name)}\n")


def stamp(path: Path) -> list[int] | None:
    """Return size and modification time (ns) of a file, which change when it is written; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
