"""A version: its files, their digests, and the one digest that identifies it.

That digest is W&B's artifact digest (wandb/sdk/artifacts/_internal, `ArtifactManifestV1.digest`), so the same
content is the same version in the local store and on W&B.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flywheel import FlywheelError, files
from flywheel.files import Digests

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NUMBER = re.compile(r"v(0|[1-9][0-9]*)")

Inputs = Mapping[str, tuple[str, ...]]  # role -> refs


class RegistryError(FlywheelError):
    """An artifact is missing, damaged or misnamed; the message names it and says what to do."""


@dataclass(frozen=True)
class Version:
    """One version of an artifact. `inputs` are the versions it was made from: role -> refs (`name@digest`)."""

    name: str
    number: int
    type: str
    digest: str
    files: Mapping[str, Digests]
    inputs: Inputs
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

    def input(self, role: str) -> str | None:
        """Return the ref of the one input of a role, or None when there is none."""
        return next(iter(self.inputs.get(role, ())), None)

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


def inputs_by_role(inputs: Mapping[str, str | Sequence[str]] | Sequence[str], type: str) -> Inputs:
    """Return inputs as role -> refs. Stores older than roles have a list: its roles follow from type and names."""
    if isinstance(inputs, Mapping):
        return {role: (refs,) if isinstance(refs, str) else tuple(refs) for role, refs in inputs.items() if refs}
    found: dict[str, tuple[str, ...]] = {}
    for ref in inputs:
        name = ref.partition("@")[0]
        if name.endswith("_dataset"):
            role = "dataset"
        elif name.endswith("-feedback"):
            role = "previous" if type == "feedback" else "feedback"
        else:
            role = "parent" if type == "model" else "model"
        found[role] = (*found.get(role, ()), ref)
    return found


def write(path: Path, version: Version) -> None:
    """Write a version's manifest."""
    files.write_json(path, asdict(version))


def read(path: Path, name: str, number: int) -> Version:
    """Read the manifest of a version. Raises RegistryError when it is damaged or describes something else."""
    try:
        raw = files.read_json(path)
        raw["files"] = {name: Digests(**entry) for name, entry in raw["files"].items()}
        raw["inputs"] = inputs_by_role(raw["inputs"], raw["type"])
        version = Version(**raw)
        matches = (version.name, version.number, version.digest) == (name, number, digest_of(version.files))
    except PermissionError as error:
        raise RegistryError(f"{path}: cannot be read ({error.strerror})") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RegistryError(f"{path}: the manifest is damaged ({error}); remove its folder") from None
    if not matches:
        raise RegistryError(f"{path}: the manifest does not match its digest or its folder; remove its folder")
    return version
