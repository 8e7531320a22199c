"""What a version is: its files, their digests, and the one digest that is its identity.

The identity is W&B's artifact digest (wandb/sdk/artifacts/_internal, `ArtifactManifestV1.digest`), so the
same content is the same version here and there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flywheel import FlywheelError, files
from flywheel.files import Digests

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NUMBER = re.compile(r"v(0|[1-9][0-9]*)")


class RegistryError(FlywheelError):
    """An artifact is missing, damaged or misnamed; the message says which and what to do."""


@dataclass(frozen=True)
class Version:
    """One version of an artifact. `inputs` are `name@digest` references of what it was made from."""

    name: str
    number: int
    type: str
    digest: str
    files: Mapping[str, Digests]
    inputs: tuple[str, ...]
    created: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """The name that is the same on every machine: name@digest."""
        return f"{self.name}@{self.digest}"

    @property
    def label(self) -> str:
        """The name for people: name:vN."""
        return f"{self.name}:v{self.number}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def digest_of(entries: Mapping[str, Digests]) -> str:
    """Return W&B's digest of an artifact with these files (hex MD5 of the sorted manifest)."""
    hasher = hashlib.md5(b"wandb-artifact-manifest-v1\n", usedforsecurity=False)
    for path in sorted(entries):
        hasher.update(f"{path}:{entries[path].md5}\n".encode())
    return hasher.hexdigest()


def write(path: Path, version: Version) -> None:
    """Write a version's manifest."""
    files.write_json(path, asdict(version))


def read(path: Path, name: str, number: int) -> Version:
    """Read the manifest of a version. Raises RegistryError when it is damaged or describes something else."""
    try:
        raw = files.read_json(path)
        raw["files"] = {place: Digests(**entry) for place, entry in raw["files"].items()}
        raw["inputs"] = tuple(raw["inputs"])
        version = Version(**raw)
        whole = (version.name, version.number, version.digest) == (name, number, digest_of(version.files))
    except PermissionError as error:
        raise RegistryError(f"{path}: cannot be read ({error.strerror})") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RegistryError(f"{path}: the manifest is damaged ({error}); remove its folder") from None
    if not whole:
        raise RegistryError(f"{path}: the manifest does not match its digest or its place; remove its folder")
    return version
