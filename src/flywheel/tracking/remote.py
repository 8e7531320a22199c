"""Artifacts, runs and registered models on W&B, in the registry's terms: refs, manifests, aliases.

A version's metadata on W&B holds, under `flywheel`, what W&B does not keep itself (inputs, time, SHA-256 of each file),
so its manifest is known without its files. Downloads are checked against their digests; uploads are read back.

wandb 0.31 (docs/wandb.md): `download` verifies nothing, accepts a cached file by its size, and its threads keep a
process from ending, so files are downloaded from their URLs; `add_file` copies unless the policy is immutable, and
fills a cache unless `skip_cache`.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel.files import Digests
from flywheel.registry import Registry, RegistryError, Version, manifest
from flywheel.tracking import transfer
from flywheel.tracking.connection import Connection, WandbError, as_wandb_error, wandb_processes
from flywheel.tracking.run_files import RunRecord

API_TIMEOUT_S, START_TIMEOUT_S, FINISH_TIMEOUT_S = 10, 10, 10
UPLOAD_TIMEOUT_S = 24 * 3600  # of one artifact; the connection's stall budget ends a stalled one much earlier
METADATA_KEY = "flywheel"


class Remote:
    """The registry on W&B. Every method uses the network and raises WandbError."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self._api: Any = None

    @property
    def api(self) -> Any:
        """W&B's public API, created at the first access."""
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

    def find(self, ref: str) -> Any:
        """Return W&B's artifact of a ref, or None."""
        name, _, digest = ref.partition("@")
        latest = self._latest(name)
        if latest is None or latest.digest == digest:
            return latest
        return next((one for one in self._all(latest.type, name) if one.digest == digest), None)

    def delete(self, ref: str) -> None:
        """Delete W&B's artifact of a ref, if there is one. Raises WandbError."""
        found = self.find(ref)
        if found is not None:
            with wandb_errors():
                found.delete(delete_aliases=True)

    def versions(self, name: str) -> list[Version]:
        """Return all versions of a name that this package logged, oldest first; their numbers are W&B's."""
        latest = self._latest(name)
        found = [] if latest is None else [_version(one) for one in self._all(latest.type, name)]
        return sorted((one for one in found if one), key=lambda one: one.created)

    def latest(self, name: str) -> Version | None:
        """Return the version that `latest` names, or None."""
        return _version(self._latest(name))

    def version(self, ref: str) -> Version | None:
        """Return the version of a ref, or None."""
        return _version(self.find(ref))

    def upload(self, run: Any, version: Version, registry: Registry) -> None:
        """Upload a version of a local registry as an output of a run in progress; W&B stores the same content once.

        Raises WandbError when W&B does not have all of it afterwards.
        """
        import wandb

        own = {
            "inputs": {role: list(refs) for role, refs in version.inputs.items()},
            "created": version.created,
            "files": {path: [entry.sha256, entry.size] for path, entry in version.files.items()},
        }
        artifact = wandb.Artifact(version.name, version.type, metadata={**version.metadata, METADATA_KEY: own})
        # W&B's manifest has the path of each file on this machine: a link in a temporary folder reveals nothing.
        with tempfile.TemporaryDirectory(prefix="flywheel-") as links, wandb_errors():
            with self.connection.computing():  # both may read each file for its digest
                folder = registry.open(version)
                for number, path in enumerate(version.files):
                    link = Path(links) / str(number)
                    link.symlink_to(folder / path)
                    artifact.add_file(str(link), name=path, policy="immutable", skip_cache=True)
            if artifact.digest != version.digest:
                raise WandbError(f"{version.label} is damaged: its files have the digest {artifact.digest}")
            run.log_artifact(artifact).wait(timeout=UPLOAD_TIMEOUT_S)
        if reason := self.why_incomplete(version):
            raise WandbError(reason)

    def why_incomplete(self, version: Version) -> str | None:
        """Return what W&B lacks of a version, or None. Checks its digest, each file, and each file's last byte."""
        found = self.find(version.ref)
        if found is None or found.state != "COMMITTED":
            return f"{version.label} is not on W&B"
        with wandb_errors():
            digests = {path: entry.digest for path, entry in found.manifest.entries.items()}
        urls = _urls(found)
        if digests != {path: entry.md5 for path, entry in version.files.items()}:
            return f"{version.label}: its manifest on W&B is another"
        for path, entry in version.files.items():
            if path not in urls or not transfer.is_complete(urls[path], entry):
                return f"{version.label}: {path} is not on W&B; delete that version there, then make sync"
        return None

    def fetch(self, version: Version, folder: Path) -> bool:
        """Download a version's files into an empty folder and verify each; False when W&B does not have it.

        Raises WandbError or RegistryError.
        """
        found = self.find(version.ref)
        if found is None:
            return False
        urls = _urls(found)
        for name, entry in version.files.items():
            if name not in urls:
                raise RegistryError(f"{version.label}: {name} is not on W&B")
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if transfer.download(urls[name], path) != entry:
                raise RegistryError(f"{version.label}: {name} arrived damaged from W&B; nothing was kept, try again")
        return True

    # -- runs -------------------------------------------------------------------------------------------

    def run(self, key: str) -> Any:
        """Return a run as W&B has it, or None."""
        self.api.flush()  # its cache may be out of date
        return _found(lambda: self.api.run(self.path(key)), "Could not find")

    def init_run(
        self,
        record: RunRecord,
        *,
        start_timeout_s: int = START_TIMEOUT_S,
        finish_timeout_s: int = FINISH_TIMEOUT_S,
        resume: str | None = None,
    ) -> Any:
        """Start the W&B run of a record, or resume it with `resume="allow"`. Raises what wandb raises."""
        import wandb

        settings = wandb.Settings(
            init_timeout=start_timeout_s, finish_timeout=finish_timeout_s, finish_timeout_raises=True
        )
        return wandb.init(
            entity=self.connection.mode.entity or None,
            project=self.connection.project,
            id=record.key,
            job_type=record.job_type,
            name=record.name,
            group=record.group,
            config=dict(record.config),
            resume=resume,  # type: ignore[arg-type]
            mode="online",  # explicit: make sync uploads whatever WANDB_MODE says
            reinit="create_new",
            settings=settings,
        )

    def add_inputs(self, run_key: str, refs: Sequence[str]) -> list[str]:
        """Record the versions that a run used. Returns the reasons why some could not be."""
        missing = []
        for ref in refs:
            found = self.find(ref)
            if found is None:
                missing.append(f"{ref}, an input, is not on W&B")
            else:
                with wandb_errors():
                    self.api.run(self.path(run_key)).use_artifact(found)
        return missing

    # -- registered models ------------------------------------------------------------------------------

    def aliases(self, model: str, names: tuple[str, ...]) -> dict[str, str]:
        """Return alias -> ref, of those aliases of a registered model that W&B has."""
        linked = {name: self._artifact(f"{self.registered(model)}:{name}") for name in names}
        return {name: ref_of(artifact) for name, artifact in linked.items() if artifact is not None}

    def link(self, model: str, ref: str, aliases: tuple[str, ...]) -> None:
        """Link a version to a registered model on W&B and move aliases to it."""
        found = self.find(ref)
        if found is None:
            raise WandbError(f"{ref} is not on W&B")
        with wandb_errors():
            found.link(self.registered(model), aliases=list(aliases))

    # -- inside -----------------------------------------------------------------------------------------

    def _latest(self, name: str) -> Any:
        return self._artifact(self.path(f"{name}:latest"))

    def _artifact(self, path: str) -> Any:
        return _found(lambda: self.api.artifact(path), "not found")

    def _all(self, type: str, name: str) -> Iterator[Any]:
        with wandb_errors():
            yield from self.api.artifacts(type, self.path(name))


@contextlib.contextmanager
def wandb_errors() -> Iterator[None]:
    """Turn whatever wandb raises into a WandbError of one line."""
    try:
        yield
    except WandbError:
        raise
    except Exception as error:
        raise as_wandb_error(error) from None


def ref_of(artifact: Any) -> str:
    """Return the ref of W&B's artifact: name@digest."""
    return f"{artifact.source_name.partition(':')[0]}@{artifact.digest}"


def kill_wandb() -> None:
    """Kill W&B's process, so that Python does not wait for it at exit."""
    import psutil

    for process in wandb_processes():
        with contextlib.suppress(psutil.Error):  # it has just ended
            process.kill()
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        with contextlib.suppress(Exception, SystemExit):  # it exits with its process's code
            wandb.teardown(1)  # or its hook complains at exit


def _found(ask: Callable[[], Any], absent: str) -> Any:
    """Return W&B's answer, or None when its error says that the item does not exist."""
    import wandb

    try:
        return ask()
    except Exception as error:
        if isinstance(error, wandb.errors.CommError | ValueError) and absent in str(error):
            return None
        raise as_wandb_error(error) from None


def _urls(artifact: Any) -> dict[str, str]:
    """Return the URL of each file of W&B's artifact."""
    with wandb_errors():
        return {file.name: file.direct_url for file in artifact.files(per_page=1000)}


def _version(artifact: Any) -> Version | None:
    """Return the version that an artifact's metadata describes, or None for one that this package did not log.

    Raises WandbError when W&B does not give its manifest.
    """
    metadata = {} if artifact is None else dict(artifact.metadata)
    own = metadata.pop(METADATA_KEY, None)
    if not isinstance(own, Mapping):
        return None
    with wandb_errors():
        md5 = {path: entry.digest for path, entry in artifact.manifest.entries.items()}
    try:
        entries = {path: Digests(size, sha256, md5[path]) for path, (sha256, size) in own["files"].items()}
        name, number = str(artifact.source_name).partition(":")[0], int(str(artifact.source_version).removeprefix("v"))
        inputs = manifest.inputs_by_role(own["inputs"], artifact.type)
        version = Version(name, number, artifact.type, artifact.digest, entries, inputs, own["created"], metadata)
    except (KeyError, TypeError, ValueError):
        return None
    if any(path.startswith("/") or ".." in path.split("/") for path in entries):
        return None  # it was made to be written elsewhere
    return version if manifest.digest_of(entries) == artifact.digest else None
