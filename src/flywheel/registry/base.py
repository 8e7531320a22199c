"""The interface of a registry: `LocalRegistry` is the store on disk, `tracking.mirror.Mirror` adds W&B to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flywheel.registry.manifest import RegistryError, Version


class Ancestor(NamedTuple):
    """A version in a lineage: its depth, its role for the version above it; `version` is None if it is not stored."""

    depth: int
    role: str
    ref: str
    version: Version | None


class Registry(ABC):
    """Versioned artifacts, and registered models whose versions are links and whose aliases are logged."""

    # -- publishing ------------------------------------------------------------------------------------

    @abstractmethod
    def publish(
        self,
        name: str,
        type: str,
        contents: Path | Mapping[str, Path],
        *,
        metadata: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str | Sequence[str]] | None = None,
    ) -> Version:
        """Store files as a version of `name`; identical content gives the existing version. Moves `latest`.

        `contents` is a directory or maps paths inside the artifact to files. `inputs` are role -> refs
        (`name@digest`). Raises RegistryError for a bad name or no files.
        """

    @abstractmethod
    def set_latest(self, version: Version) -> None:
        """Make an existing version the latest of its collection."""

    @abstractmethod
    def link(
        self,
        version: Version,
        registered_model: str,
        aliases: tuple[str, ...] = (),
        *,
        reason: str,
        expected: Mapping[str, str | None] | None = None,
        gate: Mapping[str, Any] | None = None,
        forced: bool = False,
    ) -> None:
        """Link a version to a registered model and move aliases of that model to it, all logged in one write.

        `expected` maps aliases to the ref each must still point to (None: to nothing): otherwise nothing moves and
        RegistryError says so. When `production` moves, `previous` moves to the former production. An alias that
        already points to the version stays.
        """

    @abstractmethod
    def remove(self, versions: Sequence[Version]) -> int:
        """Remove versions and the blobs only they had; returns the bytes freed. Their numbers are not used again."""

    # -- reading ---------------------------------------------------------------------------------------

    @abstractmethod
    def resolve(self, reference: str) -> Version:
        """Return the version that `name`, `name:alias`, `name:vN` or `name@digest` names.

        A registered model's versions and aliases resolve to the version they link to. Raises RegistryError.
        """

    @abstractmethod
    def open(self, version: Version) -> Path:
        """Return the directory of a version's files, after checking their integrity (do not write there).

        Files whose size and modification time have not changed since they were verified are trusted; others are read
        again. Raises RegistryError naming the damaged or missing file.
        """

    @abstractmethod
    def verify(self, version: Version) -> None:
        """Read every byte of a version. Raises RegistryError naming the damaged or missing file."""

    @abstractmethod
    def missing_file(self, version: Version) -> Path | None:
        """Return a file of a version that is absent or of another size, or None; reads no file (`verify` does)."""

    @abstractmethod
    def collections(self) -> list[str]:
        """Return the names of all artifacts that have a version, sorted."""

    @abstractmethod
    def versions(self, name: str) -> list[Version]:
        """Return all versions of an artifact, oldest first; those with a damaged manifest are left out (`damaged`)."""

    @abstractmethod
    def damaged(self) -> list[str]:
        """Return the reason why each damaged manifest cannot be read."""

    @abstractmethod
    def aliases(self, registered_model: str) -> dict[str, str]:
        """Return alias -> ref of a registered model."""

    @abstractmethod
    def aliases_of(self, version: Version) -> list[str]:
        """Return the aliases of a version: `latest` and `<registered model>:<alias>`."""

    @abstractmethod
    def history(self, registered_model: str | None = None) -> list[dict[str, Any]]:
        """Return the audit log, oldest first: at, who, model, alias, from, to, reason, gate, forced."""

    @abstractmethod
    def refresh(self) -> None:
        """Take over what others published and moved, if the registry is shared."""

    def registered_models(self) -> list[str]:
        """Return the names of the registered models, sorted."""
        return sorted({entry["model"] for entry in self.history()})

    def has(self, reference: str) -> bool:
        """Tell whether a reference names a version that can be resolved."""
        try:
            self.resolve(reference)
        except RegistryError:
            return False
        return True

    def label(self, reference: str) -> str:
        """Return name:vN for people, or the reference itself if it cannot be resolved."""
        return self.resolve(reference).label if self.has(reference) else reference

    def lineage(self, version: Version) -> Iterator[Ancestor]:
        """Yield a version and its ancestors, depth first. The inputs of a version follow its first mention only."""
        yield from self._ancestors("", version.ref, 0, set())

    def _ancestors(self, role: str, ref: str, depth: int, followed: set[str]) -> Iterator[Ancestor]:
        version = self.resolve(ref) if self.has(ref) else None
        yield Ancestor(depth, role, ref, version)
        if version is not None and ref not in followed:
            followed.add(ref)
            for of, parents in version.inputs.items():
                for parent in parents:
                    yield from self._ancestors(of, parent, depth + 1, followed)
