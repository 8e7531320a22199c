"""The registry on disk: content-addressed blobs, one folder a version, an audit log that is the alias table.

    blobs/ab/ab12…                 every file once, by SHA-256, read-only
    versions/<name>/v3/manifest.json
    versions/<name>/v3/files/…     hard links to blobs
    versions/<name>/latest         the number of the newest version
    ../audit.jsonl                 every link and alias move of the registered models, appended

A version appears by one rename, so it is whole or absent. An alias is what the last line about it in the
audit log says, so a move and its record are one write. Writers take one lock; readers need none.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flywheel import files
from flywheel.params import StorePaths
from flywheel.registry import integrity, manifest
from flywheel.registry.audit import MODEL_ALIASES, Audit, Move, now
from flywheel.registry.blobs import Blobs
from flywheel.registry.manifest import NAME, NUMBER, RegistryError, Version, inputs_by_role
from flywheel.registry.versions import Shelf, stamp

__all__ = ["Registry", "RegistryError", "Version"]


class Ancestor(NamedTuple):
    """A version in a lineage: its depth, its role for the version above it, and None where it is not here."""

    depth: int
    role: str
    ref: str
    version: Version | None


class Registry:
    """Artifacts of one profile's store."""

    def __init__(self, store: Path):
        paths = StorePaths(store)
        self.root = paths.registry
        self._blobs = Blobs(self.root / "blobs", self.root / "tmp")
        self._shelf = Shelf(self.root / "versions")
        self._audit = Audit(paths.audit_log)

    # -- publishing ------------------------------------------------------------------------------------

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
        if not NAME.fullmatch(name):
            raise RegistryError(f"{name!r} is not an artifact name: letters, digits, '.', '_', '-', at most 128")
        sources = _sources(contents)
        with self._writing():
            entries = {path: self._blobs.store(source) for path, source in sources.items()}
            digest = manifest.digest_of(entries)
            version = next((v for v in self.versions(name) if v.digest == digest), None)
            if version is None:
                version = Version(
                    name, self._shelf.next_number(name), type, digest, entries,
                    inputs_by_role(inputs or {}, type), now(), dict(metadata or {}),
                )  # fmt: skip
                self._commit(version)
            else:
                self._mend(version)
            self._shelf.set_latest(version.name, version.number)
            return version

    def set_latest(self, version: Version) -> None:
        """Make an existing version the latest of its collection."""
        with self._writing():
            self._shelf.set_latest(version.name, version.number)

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
        RegistryError says so. When `production` moves, `previous` moves to what it was. An alias that already
        points there stays.
        """
        unknown = set(aliases) - set(MODEL_ALIASES)
        if unknown:
            raise RegistryError(f"unknown alias {', '.join(sorted(unknown))}; one of {', '.join(MODEL_ALIASES)}")
        with self._writing():
            before = self.aliases(registered_model)
            for alias, ref in (expected or {}).items():
                if before.get(alias) != ref:
                    raise RegistryError(
                        f"{registered_model}:{alias} was moved meanwhile to {before.get(alias) or 'nothing'}; "
                        "nothing was changed, try again"
                    )
            after = dict.fromkeys(aliases, version.ref)
            if "production" in aliases and before.get("production") not in (None, version.ref):
                after["previous"] = before["production"]  # whatever else was asked of it
            moves = [Move(alias, before.get(alias), ref) for alias, ref in after.items() if before.get(alias) != ref]
            if not moves and version.ref not in self._audit.links(registered_model):
                moves = [Move(None, None, version.ref)]
            self._audit.append(registered_model, moves, reason=reason, gate=gate, forced=forced)

    def remove(self, versions: Sequence[Version]) -> int:
        """Remove versions and the blobs only they had; returns the bytes freed. Their numbers are not used again."""
        with self._writing():
            grave = self.root / "tmp"
            grave.mkdir(parents=True, exist_ok=True)
            for version in versions:
                self._shelf.spend_numbers(version.name)
                self._shelf.folder(version.name, version.number).rename(grave / secrets.token_hex(8))
            needed = {
                entry.sha256 for name in self.collections() for v in self.versions(name) for entry in v.files.values()
            }
            return self._blobs.keep_only(needed)

    # -- reading ---------------------------------------------------------------------------------------

    def resolve(self, reference: str) -> Version:
        """Return the version that `name`, `name:alias`, `name:vN` or `name@digest` names.

        A registered model's versions and aliases resolve to the version they link to. Raises RegistryError.
        """
        name, digest = reference.partition("@")[::2]
        name, alias = name.partition(":")[::2]
        if not NAME.fullmatch(name):
            raise RegistryError(f"{reference!r} is not of the form name, name:alias, name:vN or name@digest")
        if digest:
            for version in self.versions(name):
                if version.digest == digest:
                    return version
            raise RegistryError(f"no artifact {reference} in {self.root}")
        links = self._audit.links(name)
        if links:
            return self._resolve_link(name, alias or "latest", links)
        numbers = self._shelf.numbers(name)
        if not numbers:
            raise RegistryError(f"no artifact {name} in {self.root}")
        if alias in ("", "latest"):
            return self._shelf.read(name, self._shelf.latest(name, numbers))
        if NUMBER.fullmatch(alias) and int(alias[1:]) in numbers:
            return self._shelf.read(name, int(alias[1:]))
        raise RegistryError(f"{name} has no version {alias}; it has {', '.join(f'v{n}' for n in numbers)}, latest")

    def open(self, version: Version) -> Path:
        """Return the directory of a version's files, after checking that they are whole (do not write there).

        Files whose size and time stamp are those last verified are taken as whole; others are read again. Raises
        RegistryError naming the damaged or missing file.
        """
        return integrity.opened(self._shelf.folder(version.name, version.number), version, self.verify)

    def verify(self, version: Version) -> None:
        """Read every byte of a version. Raises RegistryError naming the damaged or missing file."""
        integrity.verify(self._shelf.folder(version.name, version.number), version)

    def has(self, reference: str) -> bool:
        """Tell whether a reference names a version that is here."""
        try:
            self.resolve(reference)
        except RegistryError:
            return False
        return True

    def label(self, reference: str) -> str:
        """Return name:vN for people, or the reference itself where its version is not here."""
        return self.resolve(reference).label if self.has(reference) else reference

    def incomplete(self, version: Version) -> Path | None:
        """Return a file of a version that is absent or of another size, or None; reads no file (`verify` does)."""
        return integrity.incomplete(self._shelf.folder(version.name, version.number), version)

    def refresh(self) -> None:
        """Learn what others did: nothing here, see SharedRegistry."""

    def collections(self) -> list[str]:
        """Return the names of all artifacts that have a version, sorted."""
        return self._shelf.names()

    def versions(self, name: str) -> list[Version]:
        """Return all versions of an artifact, oldest first; those with a damaged manifest are left out (`damaged`)."""
        found = []
        for number in self._shelf.numbers(name):
            with contextlib.suppress(RegistryError):
                found.append(self._shelf.read(name, number))
        return found

    def damaged(self) -> list[str]:
        """Return what is wrong with every manifest that is damaged."""
        reasons = []
        for name in self.collections():
            for number in self._shelf.numbers(name):
                try:
                    self._shelf.read(name, number)
                except RegistryError as error:
                    reasons.append(str(error))
        return reasons

    def registered_models(self) -> list[str]:
        """Return the names of the registered models, sorted."""
        return sorted({entry["model"] for entry in self.history()})

    def aliases(self, registered_model: str) -> dict[str, str]:
        """Return alias -> ref of a registered model."""
        return self._audit.aliases(registered_model)

    def aliases_of(self, version: Version) -> list[str]:
        """Return what points at a version: `latest` and `<registered model>:<alias>`."""
        numbers = self._shelf.numbers(version.name)
        found = ["latest"] if numbers and self._shelf.latest(version.name, numbers) == version.number else []
        for model in self.registered_models():
            found += [f"{model}:{a}" for a, ref in sorted(self.aliases(model).items()) if ref == version.ref]
        return found

    def history(self, registered_model: str | None = None) -> list[dict[str, Any]]:
        """Return the audit log, oldest first: at, who, model, alias, from, to, reason, gate, forced."""
        return self._audit.entries(registered_model)

    def lineage(self, version: Version) -> Iterator[Ancestor]:
        """Yield a version and all it was made from, depth first. A version's own inputs follow its first mention."""
        yield from self._ancestors("", version.ref, 0, set())

    # -- inside ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the writer's lock, after removing what a killed writer left; a failing write is a RegistryError."""
        try:
            with files.lock(self.root / "writer.lock", wait=True):
                shutil.rmtree(self.root / "tmp", ignore_errors=True)
                for half_written in [*self.root.glob("versions/*/.*"), *self.root.glob("versions/*/*/.*")]:
                    half_written.unlink(missing_ok=True)
                yield
        except OSError as error:
            place = f"{error.filename or self.root}: " if str(self.root) not in str(error.filename) else ""
            raise RegistryError(f"cannot change {self.root}: {place}{error.strerror}{files.advice(error)}") from None

    def _commit(self, version: Version) -> None:
        temporary = self.root / "tmp" / secrets.token_hex(8)
        for path, entry in version.files.items():
            self._blobs.link(entry, temporary / "files" / path)
        stamps = {path: stamp(temporary / "files" / path) for path in version.files}
        files.write_json(temporary / "verified.json", stamps)
        manifest.write(temporary / "manifest.json", version)
        folder = self._shelf.folder(version.name, version.number)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(folder)
        files.sync_directory(folder.parent)

    def _mend(self, version: Version) -> None:
        """Put the blobs, which were just written or checked, in place of damaged files of a version."""
        for path, entry in version.files.items():
            place = self._shelf.folder(version.name, version.number) / "files" / path
            if not place.exists() or files.digest_file(place) != entry:
                place.unlink(missing_ok=True)
                self._blobs.link(entry, place)

    def _resolve_link(self, model: str, alias: str, links: list[str]) -> Version:
        if alias == "latest":
            return self.resolve(links[-1])
        if NUMBER.fullmatch(alias) and int(alias[1:]) < len(links):
            return self.resolve(links[int(alias[1:])])
        target = self.aliases(model).get(alias)
        if target is None:
            raise RegistryError(f"{model} has no {alias} yet; it has {', '.join(self.aliases(model)) or 'no aliases'}")
        return self.resolve(target)

    def _ancestors(self, role: str, ref: str, depth: int, followed: set[str]) -> Iterator[Ancestor]:
        version = self.resolve(ref) if self.has(ref) else None
        yield Ancestor(depth, role, ref, version)
        if version is not None and ref not in followed:
            followed.add(ref)
            for of, parents in version.inputs.items():
                for parent in parents:
                    yield from self._ancestors(of, parent, depth + 1, followed)


def _sources(contents: Path | Mapping[str, Path]) -> dict[str, Path]:
    if isinstance(contents, Path):
        found = {p.relative_to(contents).as_posix(): p for p in sorted(contents.rglob("*")) if p.is_file()}
    else:
        found = dict(contents)
    if not found:
        raise RegistryError(f"{contents}: no files to publish")
    return found
