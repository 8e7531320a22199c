"""W&B behind the local registry: versions that the store lacks are looked up there.

Manifests are fetched first and are small; files are downloaded when a version is opened. W&B is never asked for a
version that is stored locally, so an up-to-date check needs no network. `refresh` takes over the aliases that others
moved on W&B.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flywheel import files
from flywheel.params import RETRAINED_NAME, Params
from flywheel.registry import Registry, RegistryError, Version
from flywheel.registry.audit import MODEL_ALIASES
from flywheel.tracking.connection import Connection, WandbError
from flywheel.tracking.remote import Remote

log = logging.getLogger(__name__)

T = TypeVar("T")


def mirrored(params: Params) -> Registry:
    """Return the registry of a profile; its lookups continue on W&B when this process is online."""
    return Registry(params.store, Mirror(params))


class Mirror:
    """Takes over from W&B into the local registry what is asked for (`registry.Upstream`), and aliases in both ways."""

    def __init__(self, params: Params, connection: Connection | None = None):
        self.params = params
        self.connection = connection or Connection(params)
        self.local = Registry(params.store)
        self.remote = Remote(self.connection)
        self._seen_file = params.store_paths.wandb_aliases
        self._refreshed = False
        self._absent: set[str] = set()

    # -- what the store lacks --------------------------------------------------------------------------

    def find(self, reference: str) -> None:
        """Add the manifest that a reference names on W&B, if there is one. Asks once for each reference."""
        if reference in self._absent or not self.connection.online:
            return
        self._absent.add(reference)
        self.connection.log_mode()
        versions: list[Version] | None
        if "@" in reference:
            version = self._ask(lambda: self.remote.version(reference))
            versions = [version] if version else None
        else:
            self.refresh()
            name = reference.partition(":")[0]
            if name in (self.params.registered_model, *self.local.collections()):
                return
            versions = self._ask(lambda: self.remote.versions(name))  # a model without an alias
        for version in versions or []:
            self.local.add_manifest(version)

    def delete(self, version: Version) -> bool:
        """Delete a version on W&B, with its aliases. Returns False when offline. Raises RegistryError."""
        if not self.connection.online:
            return False
        self.connection.log_mode()
        try:
            self.connection.run(lambda: self.remote.delete(version.ref))
        except WandbError as error:
            raise RegistryError(f"{version.label} is not deleted on W&B: {error}; run the command again") from None
        return True

    def fetch(self, version: Version) -> None:
        """Download a version's files and verify them. Raises RegistryError."""
        if not self.connection.online:
            return
        self.connection.log_mode()
        scratch = self.params.store_paths.scratch("wandb")
        scratch.mkdir(parents=True, exist_ok=True)
        # The thread of a download that was given up may still write there while it is removed.
        with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as name:
            folder = Path(name)
            try:
                found = self.connection.run(lambda: self.remote.fetch(version, folder), lambda: files.size_of(folder))
            except WandbError as error:
                raise RegistryError(f"{version.label} is not here and W&B does not give it: {error}") from None
            if not found:
                return  # `open` then names the missing file
            log.info(f"W&B: downloaded {version.label} ({files.human_size(version.size)})")
            self.local.publish(version.name, version.type, folder, latest=False)

    # -- aliases, in both directions -------------------------------------------------------------------

    def refresh(self) -> None:
        """Take over from W&B the aliases that moved there, and the manifests that they and the next stages need.

        An alias that moved only on W&B moves here, too; one that moved in both stays, with a message.
        """
        if self._refreshed:
            return
        self._refreshed = True
        if self.connection.online:
            self.connection.log_mode()
            self._ask(self._pull_changes)

    def push_aliases(self, model: str, *, ours: bool = False) -> list[str]:
        """Link on W&B what is linked here, then move the aliases, unless someone else moved one on W&B.

        Returns what is in the way; with one conflict no alias is moved, unless `ours`. Raises WandbError.
        """
        aliases = self.local.aliases(model)
        if not aliases:
            return []
        on_wandb = self.remote.aliases(model, MODEL_ALIASES)
        wanted = {alias: ref for alias, ref in aliases.items() if on_wandb.get(alias) != ref}
        conflicts = [alias for alias in wanted if self._moved_by_others(model, alias, on_wandb.get(alias))]
        if conflicts and not ours:
            return [
                f"{model}:{alias} is {self._label(on_wandb.get(alias))} on W&B, moved by someone else, and "
                f"{self._label(aliases[alias])} here"
                for alias in conflicts
            ]
        for ref in dict.fromkeys(wanted.values()):
            self.remote.link(model, ref, tuple(alias for alias, to in wanted.items() if to == ref))
        moved = self.remote.aliases(model, tuple(wanted)) if wanted else {}
        lost = [alias for alias in wanted if moved.get(alias) != wanted[alias]]
        self._record_seen(model, {alias: ref for alias, ref in aliases.items() if alias not in lost})
        return [f"{model}:{alias} was moved on W&B to another version meanwhile" for alias in lost]

    def pull_aliases(self, model: str, *, theirs: bool = False) -> None:
        """Move the aliases here to where they were moved on W&B, after adding the manifests of their versions.

        One that moved here, too, stays, with a message, unless `theirs`. So does one that another process moves
        meanwhile, and all of them once this process stopped waiting for W&B. Raises WandbError.
        """
        on_wandb, here, seen = self.remote.aliases(model, MODEL_ALIASES), self.local.aliases(model), self._seen(model)
        moved = {a: ref for a, ref in on_wandb.items() if ref != here.get(a) and (theirs or ref != seen.get(a))}
        kept = set() if theirs else {alias for alias in moved if here.get(alias) not in (None, seen.get(alias))}
        for alias in sorted(kept):
            log.info(f"W&B: {model}:{alias} was moved both here and on W&B; make sync shows both")
            del moved[alias]
        for ref in moved.values():
            version = self.remote.version(ref)
            if version is None:
                raise WandbError(f"{ref} was not logged by this package")
            self.local.add_manifest(version)
        if moved:
            why, allowed = f"as on W&B, {self.remote.path(model)}", lambda: self.connection.online
            done = self.local.move_aliases(model, moved, expected=here, reason=why, allowed=allowed)
            kept |= moved.keys() - done
            for alias in done:
                log.info(f"W&B: {model}: {alias} = {self._label(moved[alias])}")
        self._record_seen(model, {alias: ref for alias, ref in on_wandb.items() if alias not in kept})

    # -- inside ----------------------------------------------------------------------------------------

    def _moved_by_others(self, model: str, alias: str, on_wandb: str | None) -> bool:
        """Tell whether someone else moved an alias on W&B since this store last saw or moved it."""
        seen = self._seen(model).get(alias)
        ours = [entry["to"] for entry in self.local.history(model) if entry["alias"] == alias]
        # Our own later moves count too: this store may have been killed before it recorded them as seen.
        since = ours[ours.index(seen) :] if seen in ours else []
        return on_wandb not in (seen, *(ours if seen is None else since))

    def _seen(self, model: str) -> dict[str, str]:
        """Return alias -> ref as this store last saw it on W&B."""
        return self._all_seen().get(self.connection.project_url, {}).get(model, {})

    def _all_seen(self) -> dict[str, dict[str, dict[str, str]]]:
        """Return W&B project -> registered model -> alias -> ref."""
        with contextlib.suppress(OSError, ValueError):
            return dict(files.read_json(self._seen_file))
        return {}

    def _record_seen(self, model: str, aliases: dict[str, str]) -> None:
        known = self._all_seen()
        project = known.setdefault(self.connection.project_url, {})
        project[model] = {**project.get(model, {}), **aliases}
        files.write_json(self._seen_file, known)

    def _pull_changes(self) -> None:
        self.pull_aliases(self.params.registered_model)
        for name in (self.params.dataset_name, self.params.feedback_name, RETRAINED_NAME):
            latest, versions = self.remote.latest(name), self.local.versions(name)
            if latest is None or any(version.digest == latest.digest for version in versions):
                continue  # nothing new: the manifests before it were added with it
            for version in self.remote.versions(name):
                self.local.add_manifest(version)
            if not versions:
                self.local.set_latest(self.local.resolve(latest.ref))

    def _label(self, ref: str | None) -> str:
        """Return name:vN of a ref, without asking W&B."""
        return "nothing" if ref is None else self.local.label(ref)

    def _ask(self, question: Callable[[], T]) -> T | None:
        try:
            return self.connection.run(question)
        except WandbError as error:
            self.connection.give_up(error, "continuing offline with the local store; make sync uploads the rest")
            return None
