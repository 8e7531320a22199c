"""Files by their content: each stored once, under its SHA-256, read-only."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from flywheel import files
from flywheel.files import Digests
from flywheel.registry.manifest import RegistryError


class Blobs:
    """The blobs below `root`; `scratch`, on the same file system, is for what is being written."""

    def __init__(self, root: Path, scratch: Path):
        self.root = root
        self.scratch = scratch

    def store(self, source: Path) -> Digests:
        """Store a copy of a file, reading it once, and return its digests. A damaged blob of that name is replaced."""
        temporary = self.scratch / secrets.token_hex(8)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            reading = source.open("rb")
        except OSError as error:
            raise RegistryError(f"{source} cannot be read ({error.strerror})") from None
        with reading, temporary.open("xb") as writing:
            digests = files.digest_stream(reading, copy_to=writing)
            writing.flush()
            os.fsync(writing.fileno())
        blob = self._path(digests)
        if blob.exists() and files.digest_file(blob) == digests:
            temporary.unlink()
        else:
            blob.parent.mkdir(parents=True, exist_ok=True)
            temporary.chmod(0o444)
            temporary.replace(blob)
        return digests

    def link(self, digests: Digests, path: Path) -> None:
        """Make a blob appear at a path: a hard link, or a copy where the file system has none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.hardlink_to(self._path(digests))
        except OSError:
            shutil.copy2(self._path(digests), path)

    def keep_only(self, needed: set[str]) -> int:
        """Remove the blobs whose SHA-256 is not in `needed`; returns the bytes freed."""
        freed = 0
        for blob in self.root.glob("*/*"):
            if blob.name not in needed:
                freed += blob.stat().st_size
                blob.unlink()
        return freed

    def _path(self, digests: Digests) -> Path:
        return self.root / digests.sha256[:2] / digests.sha256
