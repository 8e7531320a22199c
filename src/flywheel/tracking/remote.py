"""Artifacts and registered models on W&B, as the registry means them: refs, manifests, aliases. Imports wandb.

A version's metadata on W&B holds, under `flywheel`, what W&B does not keep itself (inputs, time, SHA-256 of each file),
so that its manifest can be known without its files. Nothing is believed: what arrives is checked against its digests,
what was sent is asked for again.

Known of wandb 0.31 (docs/wandb.md): `download` verifies nothing, takes a cached file by its size, and its threads keep
a process from ending, so files are fetched from their URLs; `add_file` copies unless the policy is immutable, and fills
a cache unless `skip_cache`.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flywheel.files import Digests
from flywheel.registry import manifest
from flywheel.registry.manifest import RegistryError, Version
from flywheel.tracking import transfer
from flywheel.tracking.connection import Connection, WandbError, processes, silence_or
from flywheel.tracking.run_files import Record

API_TIMEOUT_S = 10
UPLOAD_TIMEOUT_S = 24 * 3600  # of one artifact; the connection's patience ends what does not move
OWN = "flywheel"  # the key of the metadata that is ours


class Remote:
    """W&B as a registry, over a connection that is online. Every method asks the network; errors are WandbError."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self._api: Any = None

    @property
    def api(self) -> Any:
        """W&B's public API; made at the first need."""
        if self._api is None:
            import wandb

            entity = self.connection.mode.entity
            self._api = wandb.Api(
                overrides={"entity": entity, "project": self.connection.project}, timeout=API_TIMEOUT_S
            )
        return self._api

    def path(self, name: str) -> str:
        """Return the full name of something in the project."""
        return f"{self.connection.mode.entity}/{self.connection.project}/{name}"

    def registered(self, model: str) -> str:
        """Return the full name of a registered model."""
        return self.connection.params.tracking.registry or f"wandb-registry-model/{model}"

    # -- versions ---------------------------------------------------------------------------------------

    def find(self, name: str, digest: str) -> Any:
        """Return W&B's artifact of a name with that content, or None."""
        latest = self._artifact(self.path(f"{name}:latest"))
        if latest is None or latest.digest == digest:
            return latest
        return next((one for one in self._all(latest.type, name) if one.digest == digest), None)

    def versions(self, name: str) -> list[Version]:
        """Return all versions of a name that this package logged, oldest first; their numbers are W&B's."""
        latest = self._artifact(self.path(f"{name}:latest"))
        found = [] if latest is None else [_version(one) for one in self._all(latest.type, name)]
        return sorted((one for one in found if one), key=lambda one: one.created)

    def latest(self, name: str) -> Version | None:
        """Return the version that `latest` names."""
        found = self._artifact(self.path(f"{name}:latest"))
        return _version(found) if found is not None else None

    def version(self, name: str, digest: str) -> Version | None:
        """Return the version of that content."""
        found = self.find(name, digest)
        return _version(found) if found is not None else None

    def log(self, run: Any, version: Version, folder: Path) -> None:
        """Upload a version from its folder as an output of a run that is under way; the same content goes once.

        Raises WandbError when W&B did not take it whole.
        """
        import wandb

        own = {
            "inputs": {role: list(refs) for role, refs in version.inputs.items()},
            "created": version.created,
            "files": {path: [entry.sha256, entry.size] for path, entry in version.files.items()},
        }
        artifact = wandb.Artifact(version.name, version.type, metadata={**version.metadata, OWN: own})
        # W&B's manifest has the path of each file on this machine: a link in a temporary folder says nothing.
        with tempfile.TemporaryDirectory(prefix="flywheel-") as links, Errors():
            for number, path in enumerate(version.files):
                link = Path(links) / str(number)
                link.symlink_to(folder / path)
                artifact.add_file(str(link), name=path, policy="immutable", skip_cache=True)
            if artifact.digest != version.digest:
                raise WandbError(f"{version.label} is damaged: its files have the digest {artifact.digest}")
            run.log_artifact(artifact).wait(timeout=UPLOAD_TIMEOUT_S)
        if reason := self.missing(version):
            raise WandbError(reason)

    def missing(self, version: Version) -> str | None:
        """Return what W&B lacks of a version, or None: it is asked for the digest, each file, and each file's end."""
        found = self.find(version.name, version.digest)
        if found is None or found.state != "COMMITTED":
            return f"{version.label} is not on W&B"
        with Errors():
            entries = found.manifest.entries
            there = {file.name: file for file in found.files(per_page=1000)}
        if {path: entry.digest for path, entry in entries.items()} != {p: e.md5 for p, e in version.files.items()}:
            return f"{version.label}: its manifest on W&B is another"
        for path, entry in version.files.items():
            if path not in there or not transfer.is_whole(there[path].direct_url, entry):
                return f"{version.label}: {path} is not on W&B; delete that version there, then make sync"
        return None

    def use(self, run_key: str, ref: str) -> str | None:
        """Record that a run used a version. Returns what is wrong, or None."""
        name, _, digest = ref.partition("@")
        found = self.find(name, digest)
        if found is None:
            return f"{ref}, an input, is not on W&B"
        with Errors():
            self.api.run(self.path(run_key)).use_artifact(found)
        return None

    def fetch(self, version: Version, folder: Path) -> bool:
        """Download a version's files into an empty folder and verify each; False when W&B does not have it.

        Raises WandbError or RegistryError.
        """
        found = self.find(version.name, version.digest)
        if found is None:
            return False
        with Errors():
            urls = {file.name: file.direct_url for file in found.files(per_page=1000)}
        for path, entry in version.files.items():
            if path not in urls:
                raise RegistryError(f"{version.label}: {path} is not on W&B")
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            arrived = transfer.download(urls[path], place)
            if arrived != entry:
                raise RegistryError(f"{version.label}: {path} arrived damaged from W&B; nothing was kept, try again")
        return True

    # -- runs -------------------------------------------------------------------------------------------

    def run(self, key: str) -> Any:
        """Return a run as W&B has it, or None."""
        import wandb

        self.api.flush()  # what W&B said before may be old
        try:
            return self.api.run(self.path(key))
        except (wandb.errors.CommError, ValueError) as error:
            if "Could not find" in str(error):
                return None
            raise silence_or(error) from None

    def resume(self, record: Record) -> Any:
        """Go on with a run that has ended, to give it what W&B lacks; or make it. Raises WandbError."""
        import wandb

        with Errors():
            return wandb.init(
                entity=self.connection.mode.entity,
                project=self.connection.project,
                job_type=record.job_type,
                name=record.name,
                group=record.group,
                mode="online",
                id=record.key,
                resume="allow",
                config=dict(record.config),
                reinit="create_new",
                settings=wandb.Settings(init_timeout=30, finish_timeout=60, finish_timeout_raises=True),
            )

    # -- registered models ------------------------------------------------------------------------------

    def aliases(self, model: str, names: tuple[str, ...]) -> dict[str, str]:
        """Return alias -> ref, of those aliases of a registered model that W&B has."""
        found = {}
        for name in names:
            linked = self._artifact(f"{self.registered(model)}:{name}")
            if linked is not None:
                found[name] = f"{linked.source_name.partition(':')[0]}@{linked.digest}"
        return found

    def link(self, model: str, ref: str, aliases: tuple[str, ...]) -> None:
        """Link a version to a registered model there and move aliases to it."""
        name, _, digest = ref.partition("@")
        found = self.find(name, digest)
        if found is None:
            raise WandbError(f"{ref} is not on W&B")
        with Errors():
            found.link(self.registered(model), aliases=list(aliases))

    # -- inside -----------------------------------------------------------------------------------------

    def _artifact(self, path: str) -> Any:
        import wandb

        try:
            return self.api.artifact(path)
        except wandb.errors.CommError as error:
            if "not found" in str(error):
                return None
            raise silence_or(error) from None
        except (wandb.errors.AuthenticationError, ValueError) as error:
            raise silence_or(error) from None

    def _all(self, type: str, name: str) -> Iterator[Any]:
        with Errors():
            yield from self.api.artifacts(type, self.path(name))


class Errors:
    """Turn whatever wandb raises into a WandbError of one line."""

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, WandbError):
            raise silence_or(error) from None


def abandon() -> None:
    """End W&B's process, which would otherwise be waited for at exit; what it recorded lies on disk."""
    for process in processes():
        process.kill()
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        with contextlib.suppress(Exception, SystemExit):  # it exits with its process's code
            wandb.teardown(1)  # or its hook complains at exit


def _version(artifact: Any) -> Version | None:
    """Return the manifest that an artifact's metadata tells of, or None for one that this package did not log."""
    metadata = dict(artifact.metadata)
    own = metadata.pop(OWN, None)
    try:
        md5 = {path: entry.digest for path, entry in artifact.manifest.entries.items()} if own else {}
        assert isinstance(own, Mapping)
        entries = {path: Digests(size, sha256, md5[path]) for path, (sha256, size) in own["files"].items()}
        number = int(str(artifact.source_version).removeprefix("v"))
        name = str(artifact.source_name).partition(":")[0]
        made = Version(
            name,
            number,
            artifact.type,
            artifact.digest,
            entries,
            manifest.inputs_by_role(own["inputs"], artifact.type),
            own["created"],
            metadata,
        )
    except (AssertionError, KeyError, TypeError, ValueError):
        return None
    return made if manifest.digest_of(entries) == artifact.digest else None
