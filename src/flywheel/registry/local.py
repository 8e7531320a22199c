"""The registry on disk: content-addressed blobs, one folder a version, an audit log that is the alias table.

    blobs/ab/ab12…                 every file once, by SHA-256, read-only
    versions/<name>/v3/manifest.json
    versions/<name>/v3/files/…     hard links to blobs
    versions/<name>/latest         the number of the newest version
    ../audit.jsonl                 every link and alias move of the registered models, appended

A version appears by one rename, so it is complete or absent. The last line about an alias in the audit log says where
it points, so a move and its record are one write. Writers take one lock; readers need none.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flywheel import files
from flywheel.params import StorePaths
from flywheel.registry import integrity, manifest
from flywheel.registry.audit import MODEL_ALIASES, Audit, Move, now
from flywheel.registry.base import Registry
from flywheel.registry.blobs import Blobs
from flywheel.registry.manifest import NAME, NUMBER, RegistryError, Version, inputs_by_role
from flywheel.registry.versions import VersionFolders, stamp


class LocalRegistry(Registry):
    """Artifacts of one profile's store."""

    def __init__(self, store: Path):
        paths = StorePaths(store)
        self.root = paths.registry
        self._blobs = Blobs(self.root / "blobs", self.root / "tmp")
        self._folders = VersionFolders(self.root / "versions")
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
        """Store files as a version; see Registry.publish."""
        if not NAME.fullmatch(name):
            raise RegistryError(f"{name!r} is not an artifact name: letters, digits, '.', '_', '-', at most 128")
        sources = _sources(contents)
        with self._writing():
            entries = {path: self._blobs.store(source) for path, source in sources.items()}
            digest = manifest.digest_of(entries)
            version = next((v for v in self.versions(name) if v.digest == digest), None)
            if version is None:
                version = Version(
                    name, self._folders.next_number(name), type, digest, entries,
                    inputs_by_role(inputs or {}, type), now(), dict(metadata or {}),
                )  # fmt: skip
                self._commit(version)
            else:
                self._mend(version)
            self._folders.set_latest(version.name, version.number)
            return version

    def set_latest(self, version: Version) -> None:
        """Make an existing version the latest of its collection."""
        with self._writing():
            self._folders.set_latest(version.name, version.number)

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
        """Link a version and move aliases; see Registry.link."""
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

    def note(self, version: Version) -> Version:
        """Keep the manifest of a version whose files are elsewhere. Returns it with its number here."""
        with self._writing():
            known = next((one for one in self.versions(version.name) if one.digest == version.digest), None)
            if known is not None:
                return known
            noted = replace(version, number=self._folders.next_number(version.name))
            temporary = self.root / "tmp" / secrets.token_hex(8)
            manifest.write(temporary / "manifest.json", noted)
            self._place(temporary, noted)
            return noted

    def move_aliases(
        self,
        registered_model: str,
        moves: Mapping[str, str],
        *,
        expected: Mapping[str, str | None],
        reason: str,
        wanted: Callable[[], bool],
    ) -> list[str]:
        """Move aliases that still point to what is expected, in one write. Returns those that moved.

        `wanted` is asked while the writer's lock is held: a caller that was given up meanwhile moves nothing.
        `previous` comes first, since moving production by `link` moves it.
        """
        with self._writing():
            now = self.aliases(registered_model)
            changes = [
                Move(alias, expected.get(alias), moves[alias])
                for alias in MODEL_ALIASES[::-1]
                if alias in moves and now.get(alias) == expected.get(alias) and wanted()
            ]
            self._audit.append(registered_model, changes, reason=reason, gate=None, forced=False)
        return [str(change.alias) for change in changes]

    def remove(self, versions: Sequence[Version]) -> int:
        """Remove versions and the blobs only they had; returns the bytes freed. Their numbers are not used again."""
        with self._writing():
            doomed = self.root / "tmp"
            doomed.mkdir(parents=True, exist_ok=True)
            for version in versions:
                self._folders.reserve_number(version.name)
                self._folders.folder(version.name, version.number).rename(doomed / secrets.token_hex(8))
            needed = {
                entry.sha256 for name in self.collections() for v in self.versions(name) for entry in v.files.values()
            }
            return self._blobs.keep_only(needed)

    # -- reading ---------------------------------------------------------------------------------------

    def resolve(self, reference: str) -> Version:
        """Return the version that a reference names; see Registry.resolve."""
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
        numbers = self._folders.numbers(name)
        if not numbers:
            raise RegistryError(f"no artifact {name} in {self.root}")
        if alias in ("", "latest"):
            return self._folders.read(name, self._folders.latest(name, numbers))
        if NUMBER.fullmatch(alias) and int(alias[1:]) in numbers:
            return self._folders.read(name, int(alias[1:]))
        raise RegistryError(f"{name} has no version {alias}; it has {', '.join(f'v{n}' for n in numbers)}, latest")

    def open(self, version: Version) -> Path:
        """Return the directory of the files, verified unless they are as they were when last verified."""
        return integrity.opened(self._folders.folder(version.name, version.number), version, self.verify)

    def verify(self, version: Version) -> None:
        """Read every byte of a version. Raises RegistryError naming the damaged or missing file."""
        integrity.verify(self._folders.folder(version.name, version.number), version)

    def incomplete(self, version: Version) -> Path | None:
        """Return a file of a version that is absent or of another size, or None; reads no file (`verify` does)."""
        return integrity.incomplete(self._folders.folder(version.name, version.number), version)

    def refresh(self) -> None:
        """Nothing: the store on disk is up to date."""

    def collections(self) -> list[str]:
        """Return the names of all artifacts that have a version, sorted."""
        return self._folders.names()

    def versions(self, name: str) -> list[Version]:
        """Return all versions of an artifact, oldest first; those with a damaged manifest are left out (`damaged`)."""
        found = []
        for number in self._folders.numbers(name):
            with contextlib.suppress(RegistryError):
                found.append(self._folders.read(name, number))
        return found

    def damaged(self) -> list[str]:
        """Return what is wrong with every manifest that is damaged."""
        reasons = []
        for name in self.collections():
            for number in self._folders.numbers(name):
                try:
                    self._folders.read(name, number)
                except RegistryError as error:
                    reasons.append(str(error))
        return reasons

    def aliases(self, registered_model: str) -> dict[str, str]:
        """Return alias -> ref of a registered model."""
        return self._audit.aliases(registered_model)

    def aliases_of(self, version: Version) -> list[str]:
        """Return what points at a version: `latest` and `<registered model>:<alias>`."""
        numbers = self._folders.numbers(version.name)
        found = ["latest"] if numbers and self._folders.latest(version.name, numbers) == version.number else []
        for model in self.registered_models():
            found += [f"{model}:{a}" for a, ref in sorted(self.aliases(model).items()) if ref == version.ref]
        return found

    def history(self, registered_model: str | None = None) -> list[dict[str, Any]]:
        """Return the audit log, oldest first: at, who, model, alias, from, to, reason, gate, forced."""
        return self._audit.entries(registered_model)

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
        self._place(temporary, version)

    def _place(self, temporary: Path, version: Version) -> None:
        folder = self._folders.folder(version.name, version.number)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(folder)
        files.sync_directory(folder.parent)

    def _mend(self, version: Version) -> None:
        """Put the blobs, which were just written or checked, in place of damaged files of a version."""
        for path, entry in version.files.items():
            place = self._folders.folder(version.name, version.number) / "files" / path
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


def _sources(contents: Path | Mapping[str, Path]) -> dict[str, Path]:
    if isinstance(contents, Path):
        found = {p.relative_to(contents).as_posix(): p for p in sorted(contents.rglob("*")) if p.is_file()}
    else:
        found = dict(contents)
    if not found:
        raise RegistryError(f"{contents}: no files to publish")
    return found
