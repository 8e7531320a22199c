"""The version folders on disk: <root>/<name>/v3, the pointer `latest`, the next number, and the files' integrity."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from flywheel import files
from flywheel.registry import manifest
from flywheel.registry.manifest import NUMBER, RegistryError, Version

INDEX_FROM = 100  # manifests that had to be read to find a digest; it takes 20 ms


class VersionFolders:
    """The folders of all versions below `root`."""

    def __init__(self, root: Path):
        self.root = root
        self._numbers: dict[str, dict[str, int]] = {}  # name -> digest -> number

    def names(self) -> list[str]:
        """Return the names that have a version, sorted."""
        names = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        return [name for name in names if self.numbers(name)]

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a name's versions, in order."""
        try:
            return sorted(int(path.name[1:]) for path in (self.root / name).iterdir() if NUMBER.fullmatch(path.name))
        except OSError:
            return []

    def folder(self, version: Version) -> Path:
        """Return the folder of a version."""
        return self.root / version.name / f"v{version.number}"

    def read(self, name: str, number: int) -> Version:
        """Return a version from its manifest. Raises RegistryError when that is damaged."""
        return manifest.read(self.root / name / f"v{number}" / "manifest.json", name, number)

    def find(self, name: str, digest: str) -> Version | None:
        """Return the version with a digest, or None."""
        for _ in range(2):
            number = self.number(name, digest)
            if number is None:
                return None
            with contextlib.suppress(RegistryError):
                version = self.read(name, number)
                if version.digest == digest:
                    return version
            self._forget_index(name)  # it is wrong, or that version was removed meanwhile
        return None

    def number(self, name: str, digest: str) -> int | None:
        """Return the number of the version with a digest, or None."""
        known = self._numbers.get(name, {}).get(digest)
        if known is None or not (self.root / name / f"v{known}").is_dir():  # it may have been removed meanwhile
            self._numbers[name] = self._index(name)
        return self._numbers[name].get(digest)

    def with_fingerprint(self, prefix: str, fingerprint: str) -> list[Version]:
        """Return the versions that record a stage's fingerprint, of the names that start with a prefix.

        As in `_index`, a file remembers the fingerprints where they are many.
        """
        path, found = self.root / "fingerprints.json", list[Version]()
        recorded: dict[str, list[Any]] = {}  # name/v3 -> when its manifest was written, fingerprint
        with contextlib.suppress(OSError, ValueError):
            recorded = files.read_json(path)
        unread = 0
        for name in sorted(path.name for path in self.root.glob(f"{prefix}*")):
            for number in self.numbers(name):
                key = f"{name}/v{number}"
                with contextlib.suppress(OSError, RegistryError):
                    written = (self.root / key / "manifest.json").stat().st_mtime_ns
                    known = recorded.get(key, [None, None])
                    if known[0] != written or known[1] == fingerprint:
                        version = self.read(name, number)
                        unread += known[0] != written
                        recorded[key] = [written, version.metadata.get("fingerprint")]
                        if recorded[key][1] == fingerprint:
                            found.append(version)
        if unread >= INDEX_FROM:
            with contextlib.suppress(OSError):
                files.write_json(path, recorded)
        return found

    def _index(self, name: str) -> dict[str, int]:
        """Return digest -> number. A file remembers them where they are many; it is a cache and may be deleted."""
        numbers, path = set(self.numbers(name)), self.root / name / "index.json"
        recorded: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            recorded = files.read_json(path)
        found = {digest: number for digest, number in recorded.items() if number in numbers}
        unread = sorted(numbers.difference(found.values()))
        for number in unread:
            with contextlib.suppress(RegistryError):
                found.setdefault(self.read(name, number).digest, number)
        if len(unread) >= INDEX_FROM:
            with contextlib.suppress(OSError):  # a read-only store reads them every time
                files.write_json(path, found)
        return found

    def _forget_index(self, name: str) -> None:
        self._numbers.pop(name, None)
        with contextlib.suppress(OSError):
            (self.root / name / "index.json").unlink()

    # -- integrity -------------------------------------------------------------------------------------

    def open(self, version: Version) -> Path:
        """Return the directory of a version's files, verified unless they are as they were when last verified."""
        record, stamps = self.folder(version) / "verified.json", self.stamps(version)
        known = {}
        with contextlib.suppress(OSError, ValueError):
            known = files.read_json(record)
        if known != stamps:
            self.verify(version)
            with contextlib.suppress(OSError):  # a read-only store verifies every time
                files.write_json(record, stamps)
        return self.folder(version) / "files"

    def verify(self, version: Version) -> None:
        """Read every byte of a version. Raises RegistryError naming the damaged or missing file."""
        for name, expected in version.files.items():
            path = self.folder(version) / "files" / name
            try:
                digests = files.digest_file(path)
            except OSError as error:
                raise RegistryError(f"{version.label}: {path} cannot be read ({error.strerror})") from None
            if digests != expected:
                folder = self.folder(version)
                raise RegistryError(f"{version.label}: {path} is damaged; remove {folder} and create it again")

    def has_files(self, version: Version) -> bool:
        """Tell whether the files of a version were ever here."""
        return any((self.folder(version) / name).exists() for name in ("files", "verified.json"))

    def missing_file(self, version: Version) -> Path | None:
        """Return a file that is absent or of another size, or None; reads no file."""
        for name, stamp in self.stamps(version).items():
            if stamp is None or stamp[0] != version.files[name].size:
                return self.folder(version) / "files" / name
        return None

    def stamps(self, version: Version, folder: Path | None = None) -> dict[str, list[int] | None]:
        """Return size and modification time (ns) of each file, which change when it is written; None if absent."""
        return {name: _stamp((folder or self.folder(version)) / "files" / name) for name in version.files}

    # -- numbers ---------------------------------------------------------------------------------------

    def latest(self, name: str, numbers: list[int]) -> int:
        """Return which of the numbers is the latest: what the pointer says, else the highest."""
        with contextlib.suppress(OSError, ValueError):
            number = int((self.root / name / "latest").read_text())
            if number in numbers:
                return number
        return numbers[-1]

    def set_latest(self, version: Version) -> None:
        """Point `latest` at a version."""
        files.write_text(self.root / version.name / "latest", f"{version.number}\n")

    def next_number(self, name: str) -> int:
        """Return the number of the next version: higher than all that exist and existed."""
        recorded = 0
        with contextlib.suppress(OSError, ValueError):
            recorded = int((self.root / name / "next").read_text())
        return max([recorded, *(number + 1 for number in self.numbers(name))])

    def reserve_number(self, name: str) -> None:
        """Record which number comes next, before a version is removed, so that no number is used twice."""
        files.write_text(self.root / name / "next", f"{self.next_number(name)}\n")


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
