"""The registry on disk: content-addressed blobs, one folder per version, an audit log that is the alias table.

    blobs/ab/ab12…                 every file once, by SHA-256, read-only
    versions/<name>/v3/manifest.json
    versions/<name>/v3/files/…     hard links to blobs
    versions/<name>/latest         the number of the newest version
    ../audit.jsonl                 every link and alias move of the registered models, appended

A version appears by one rename, so it is complete or absent. An alias points where the last line about it in the audit
log says, so a move and its record are one write. Writers take one lock; readers need none.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flywheel import files
from flywheel.params import StorePaths
from flywheel.registry import manifest
from flywheel.registry.audit import MODEL_ALIASES, AliasMove, Audit
from flywheel.registry.blobs import Blobs
from flywheel.registry.manifest import NAME, NUMBER, RegistryError, Version, inputs_by_role
from flywheel.registry.versions import VersionFolders


class Ancestor(NamedTuple):
    """A version in a lineage: its depth, its role for the version above it; `version` is None if it is not stored."""

    depth: int
    role: str
    ref: str
    version: Version | None


class Upstream(Protocol):
    """A registry elsewhere, asked for what the store lacks; it adds what it finds to the store."""

    def find(self, reference: str) -> None:
        """Add the manifests that a reference names there, if there are any."""

    def fetch(self, version: Version) -> None:
        """Add the files of a version. Raises RegistryError."""

    def delete(self, version: Version) -> bool:
        """Delete a version there. Returns False if it cannot be reached. Raises RegistryError if it refuses."""

    def refresh(self) -> None:
        """Take over what others published and moved; only the first call asks."""


class Registry:
    """Versioned artifacts, and registered models whose versions are links and whose aliases are logged.

    They are in one profile's store; what it lacks is looked up in `upstream`, if there is one.
    """

    def __init__(self, store: Path, upstream: Upstream | None = None):
        paths = StorePaths(store)
        self.root = paths.registry
        self.upstream = upstream
        self._tmp = self.root / "tmp"
        self._blobs = Blobs(self.root / "blobs", self._tmp)
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
        latest: bool = True,
    ) -> Version:
        """Store files as a version of `name`; identical content gives the existing version. Makes it `latest`.

        `contents` is a directory or maps paths inside the artifact to files. `inputs` are role -> refs
        (`name@digest`). Raises RegistryError for a bad name or no files.
        """
        if not NAME.fullmatch(name):
            raise RegistryError(f"{name!r} is not an artifact name: letters, digits, '.', '_', '-', at most 128")
        sources = _sources(contents)
        with self._write_lock():
            entries = {path: self._blobs.store(source) for path, source in sources.items()}
            digest = manifest.digest_of(entries)
            if (version := self._folders.find(name, digest)) is None:
                version = Version(
                    name, self._folders.next_number(name), type, digest, entries,
                    inputs_by_role(inputs or {}, type), files.timestamp(), dict(metadata or {}),
                )  # fmt: skip
                self._add(version)
            else:
                self._repair(version)
            if latest:
                self._folders.set_latest(version)
            return version

    def set_latest(self, version: Version) -> None:
        """Make an existing version the latest of its collection."""
        with self._write_lock():
            self._folders.set_latest(version)

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
        if unknown := set(aliases) - set(MODEL_ALIASES):
            raise RegistryError(f"unknown alias {', '.join(sorted(unknown))}; one of {', '.join(MODEL_ALIASES)}")
        self.aliases(registered_model)  # asks upstream now: nobody waits for a network with the writer's lock held
        with self._write_lock():
            before = self._audit.aliases(registered_model)
            for alias, ref in (expected or {}).items():
                if before.get(alias) != ref:
                    raise RegistryError(
                        f"{registered_model}:{alias} was moved meanwhile to {before.get(alias) or 'nothing'}; "
                        "nothing was changed, try again"
                    )
            after = dict.fromkeys(aliases, version.ref)
            if "production" in aliases and before.get("production") not in (None, version.ref):
                after["previous"] = before["production"]  # even if `previous` was asked for, too
            moves = [AliasMove(a, before.get(a), ref) for a, ref in after.items() if before.get(a) != ref]
            if not moves and version.ref not in self._audit.links(registered_model):
                moves = [AliasMove(None, None, version.ref)]
            self._audit.append(registered_model, moves, reason=reason, gate=gate, forced=forced)

    def add_manifest(self, version: Version) -> Version:
        """Add a version without its files, which are on W&B. Returns it with its number in this store."""
        with self._write_lock():
            if known := self._folders.find(version.name, version.digest):
                return known
            added = replace(version, number=self._folders.next_number(version.name))
            self._add(added, with_files=False)
            return added

    def move_aliases(
        self,
        registered_model: str,
        moves: Mapping[str, str],
        *,
        expected: Mapping[str, str | None],
        reason: str,
        allowed: Callable[[], bool],
    ) -> list[str]:
        """Move aliases that still point to the expected refs, in one write. Returns those that moved.

        `allowed` is called while the writer's lock is held, so that a caller that timed out meanwhile moves nothing.
        `previous` comes first, since moving production by `link` moves it.
        """
        with self._write_lock():
            current = self._audit.aliases(registered_model)
            changes = [
                AliasMove(alias, expected.get(alias), moves[alias])
                for alias in MODEL_ALIASES[::-1]
                if alias in moves and current.get(alias) == expected.get(alias) and allowed()
            ]
            self._audit.append(registered_model, changes, reason=reason)
        return [str(change.alias) for change in changes]

    def remove(self, versions: Sequence[Version]) -> int:
        """Remove versions and the blobs only they had; returns the bytes freed. Their numbers are not used again."""
        with self._write_lock():
            self._tmp.mkdir(parents=True, exist_ok=True)
            for version in versions:
                self._folders.reserve_number(version.name)
                self._folders.folder(version).rename(self._tmp / secrets.token_hex(8))
            kept = (version for name in self.collections() for version in self.versions(name))
            freed = self._blobs.keep_only({entry.sha256 for version in kept for entry in version.files.values()})
            shutil.rmtree(self._tmp)  # until then the files are there, and so is the space that they take
            return freed

    # -- reading ---------------------------------------------------------------------------------------

    def resolve(self, reference: str) -> Version:
        """Return the version that `name`, `name:alias`, `name:vN` or `name@digest` names.

        A registered model's versions and aliases resolve to the version they link to. Raises RegistryError.
        """
        if not NAME.fullmatch(reference.partition("@")[0].partition(":")[0]):
            raise RegistryError(f"{reference!r} is not of the form name, name:alias, name:vN or name@digest")
        try:
            return self._resolve(reference)
        except RegistryError:
            if self.upstream is None:
                raise
            self.upstream.find(reference)
            return self._resolve(reference)

    def open(self, version: Version) -> Path:
        """Return the directory of a version's files, after checking their integrity (do not write there).

        Files whose size and modification time have not changed since they were verified are trusted; others are read
        again. Raises RegistryError naming the damaged or missing file.
        """
        if self.upstream is not None and self.missing_file(version) is not None:
            self.upstream.fetch(version)
        return self._folders.open(version)

    def verify(self, version: Version) -> bool:
        """Read every byte of a version. Returns False for one of which only the manifest was ever in this store.

        Raises RegistryError naming the damaged or missing file.
        """
        if here := self._folders.has_files(version):
            self._folders.verify(version)
        return here

    def missing_file(self, version: Version) -> Path | None:
        """Return a file of a version that is absent or of another size, or None; reads no file (`verify` does)."""
        return self._folders.missing_file(version)

    def refresh(self) -> None:
        """Take over what others published and moved upstream."""
        if self.upstream is not None:
            self.upstream.refresh()

    def collections(self) -> list[str]:
        """Return the names of all artifacts that have a version, sorted."""
        return self._folders.names()

    def count(self, name: str) -> int:
        """Return how many versions of an artifact are in this store; reads no manifest."""
        return len(self._folders.numbers(name))

    def versions(self, name: str) -> list[Version]:
        """Return all versions of an artifact, oldest first; those with a damaged manifest are left out (`damaged`)."""
        return [read for read in self._read_all(name) if isinstance(read, Version)]

    def with_fingerprint(self, prefix: str, fingerprint: str) -> list[Version]:
        """Return the versions that record a stage's fingerprint, of the artifacts whose names start with a prefix."""
        return self._folders.with_fingerprint(prefix, fingerprint)

    def damaged(self) -> list[str]:
        """Return the reason why each damaged manifest cannot be read."""
        read = (read for name in self.collections() for read in self._read_all(name))
        return [str(error) for error in read if isinstance(error, RegistryError)]

    def aliases(self, registered_model: str) -> dict[str, str]:
        """Return alias -> ref of a registered model; those upstream if there are none in the store."""
        found = self._audit.aliases(registered_model)
        if not found and self.upstream is not None:
            self.upstream.refresh()
            found = self._audit.aliases(registered_model)
        return found

    def aliases_by_ref(self) -> dict[str, list[str]]:
        """Return for each version that has aliases: ref -> `latest` and `<registered model>:<alias>`."""
        found: dict[str, list[str]] = {}
        for name in self.collections():
            with contextlib.suppress(RegistryError):
                latest = self._folders.read(name, self._folders.latest(name, self._folders.numbers(name)))
                found[latest.ref] = ["latest"]
        for model in self.registered_models():
            for alias, ref in sorted(self._audit.aliases(model).items()):
                found.setdefault(ref, []).append(f"{model}:{alias}")
        return found

    def history(self, registered_model: str | None = None) -> list[dict[str, Any]]:
        """Return the audit log, oldest first: at, who, model, alias, from, to, reason, gate, forced."""
        return self._audit.entries(registered_model)

    def registered_models(self) -> list[str]:
        """Return the names of the registered models, sorted."""
        return self._audit.models()

    def has(self, reference: str) -> bool:
        """Tell whether a reference names a version that can be resolved."""
        return self._found(reference) is not None

    def label(self, reference: str) -> str:
        """Return name:vN for people, or the reference itself if it cannot be resolved."""
        name, digest = reference.partition("@")[::2]
        if digest and NAME.fullmatch(name) and (number := self._folders.number(name, digest)) is not None:
            return f"{name}:v{number}"
        version = self._found(reference)
        return reference if version is None else version.label

    def lineage(self, version: Version) -> Iterator[Ancestor]:
        """Yield a version and its ancestors, depth first. The inputs of a version follow its first mention only."""
        followed, waiting = set[str](), [(0, "", version.ref)]
        while waiting:
            depth, role, ref = waiting.pop()
            found = self._found(ref)
            yield Ancestor(depth, role, ref, found)
            if found is not None and ref not in followed:
                followed.add(ref)
                parents = [(depth + 1, of, parent) for of, refs in found.inputs.items() for parent in refs]
                waiting += reversed(parents)

    # -- inside ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _write_lock(self) -> Iterator[None]:
        """Hold the writer's lock, after removing what a killed writer left; a failing write is a RegistryError."""
        try:
            with files.lock(self.root / "writer.lock", wait=True):
                shutil.rmtree(self._tmp, ignore_errors=True)
                for folder in ("versions", "versions/*", "versions/*/*"):
                    for unfinished in self.root.glob(f"{folder}/.*"):
                        unfinished.unlink(missing_ok=True)
                yield
        except OSError as error:
            path = f"{error.filename or self.root}: " if str(self.root) not in str(error.filename) else ""
            raise RegistryError(f"cannot change {self.root}: {path}{error.strerror}{files.advice(error)}") from None

    def _found(self, reference: str) -> Version | None:
        """Return the version that a reference names, None if it cannot be resolved."""
        with contextlib.suppress(RegistryError):
            return self.resolve(reference)
        return None

    def _resolve(self, reference: str) -> Version:
        name, digest = reference.partition("@")[::2]
        name, alias = name.partition(":")[::2]
        if digest:
            if (version := self._folders.find(name, digest)) is None:
                raise RegistryError(f"no artifact {reference} in {self.root}")
            return version
        if self._audit.links(name):
            return self._resolve(self._linked_ref(name, alias or "latest"))
        numbers = self._folders.numbers(name)
        if not numbers:
            raise RegistryError(f"no artifact {name} in {self.root}")
        if alias in ("", "latest"):
            return self._folders.read(name, self._folders.latest(name, numbers))
        if NUMBER.fullmatch(alias) and int(alias[1:]) in numbers:
            return self._folders.read(name, int(alias[1:]))
        raise RegistryError(f"{name} has no version {alias}; it has {', '.join(f'v{n}' for n in numbers)}, latest")

    def _read_all(self, name: str) -> Iterator[Version | RegistryError]:
        """Yield each version, oldest first, or the reason why its manifest cannot be read."""
        for number in self._folders.numbers(name):
            try:
                yield self._folders.read(name, number)
            except RegistryError as error:
                yield error

    def _add(self, version: Version, *, with_files: bool = True) -> None:
        """Write a version's folder elsewhere, then rename it into `versions`."""
        temporary = self._tmp / secrets.token_hex(8)
        if with_files:
            for path, entry in version.files.items():
                self._blobs.link(entry, temporary / "files" / path)
            files.write_json(temporary / "verified.json", self._folders.stamps(version, temporary))
        manifest.write(temporary / "manifest.json", version)
        folder = self._folders.folder(version)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(folder)
        files.sync_directory(folder.parent)

    def _repair(self, version: Version) -> None:
        """Replace the damaged files of a version by the blobs, which were just written or checked."""
        for name, entry in version.files.items():
            path = self._folders.folder(version) / "files" / name
            if not path.exists() or files.digest_file(path) != entry:
                path.unlink(missing_ok=True)
                self._blobs.link(entry, path)

    def _linked_ref(self, model: str, alias: str) -> str:
        """Return the ref that an alias or version number of a registered model links to."""
        links, aliases = self._audit.links(model), self._audit.aliases(model)
        if alias == "latest":
            return links[-1]
        if NUMBER.fullmatch(alias) and int(alias[1:]) < len(links):
            return links[int(alias[1:])]
        if alias not in aliases:
            raise RegistryError(f"{model} has no {alias} yet; it has {', '.join(aliases) or 'no aliases'}")
        return aliases[alias]


def _sources(contents: Path | Mapping[str, Path]) -> dict[str, Path]:
    if isinstance(contents, Path):
        found = {p.relative_to(contents).as_posix(): p for p in sorted(contents.rglob("*")) if p.is_file()}
    else:
        found = dict(contents)
    if not found:
        raise RegistryError(f"{contents}: no files to publish")
    return found
