"""The store on disk with W&B behind it: what is not here is looked up there, when this process is online.

Manifests come first and are small; files come when a version is opened. W&B is never asked for what is here, so an
up-to-date check needs no network. `refresh` takes over the aliases that others moved on W&B.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flywheel import files
from flywheel.params import RETRAINED_NAME, Params
from flywheel.registry import LocalRegistry, Registry, RegistryError, Version
from flywheel.registry.audit import MODEL_ALIASES
from flywheel.registry.manifest import NAME
from flywheel.tracking.connection import Connection, WandbError
from flywheel.tracking.remote import Remote

log = logging.getLogger(__name__)

T = TypeVar("T")


class Mirror(Registry):
    """A local registry whose lookups fall through to W&B."""

    def __init__(self, params: Params, connection: Connection | None = None):
        self.params = params
        self.connection = connection or Connection(params)
        self.local = LocalRegistry(params.store)
        self.remote = Remote(self.connection)
        self._state = params.store_paths.wandb_aliases
        self._scratch = params.store_paths.scratch("wandb")
        self._refreshed = False
        self._absent: set[str] = set()

    # -- here first, then on W&B -----------------------------------------------------------------------

    def resolve(self, reference: str) -> Version:
        """Return the version that a reference names, here or on W&B. Raises RegistryError."""
        try:
            return self.local.resolve(reference)
        except RegistryError:
            if reference in self._absent or not NAME.fullmatch(reference.partition("@")[0].partition(":")[0]):
                raise
            self._absent.add(reference)
            self._learn(reference)
            return self.local.resolve(reference)

    def aliases(self, registered_model: str) -> dict[str, str]:
        """Return alias -> ref of a registered model; W&B's where there is none here."""
        found = self.local.aliases(registered_model)
        if not found and registered_model == self.params.registered_model and not self._refreshed:
            self.refresh()
            found = self.local.aliases(registered_model)
        return found

    def open(self, version: Version) -> Path:
        """Return the directory of a version's files; those that are absent are downloaded and verified."""
        if self.incomplete(version) is not None and self.connection.online:
            self.connection.announce()
            try:
                self.connection.run(lambda: self._fetch(version), lambda: files.size_of(self._scratch))
            except WandbError as error:
                raise RegistryError(f"{version.label} is not here and W&B does not give it: {error}") from None
        return self.local.open(version)

    def link(self, version: Version, registered_model: str, aliases: tuple[str, ...] = (), **why: Any) -> None:
        """Link a version and move aliases here, after learning from W&B where they are."""
        self.aliases(registered_model)  # now, so that nobody waits for the network while the writer's lock is held
        self.local.link(version, registered_model, aliases, **why)

    # -- here only -------------------------------------------------------------------------------------

    def publish(
        self,
        name: str,
        type: str,
        contents: Path | Mapping[str, Path],
        *,
        metadata: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str | Sequence[str]] | None = None,
    ) -> Version:
        """Store files as a version here; runs upload what they made, `make sync` the rest."""
        return self.local.publish(name, type, contents, metadata=metadata, inputs=inputs)

    def set_latest(self, version: Version) -> None:
        """Make an existing version the latest of its collection here."""
        self.local.set_latest(version)

    def remove(self, versions: Sequence[Version]) -> int:
        """Remove versions here; W&B keeps them."""
        return self.local.remove(versions)

    def verify(self, version: Version) -> None:
        """Read every byte of a version here."""
        self.local.verify(version)

    def incomplete(self, version: Version) -> Path | None:
        """Return a file of a version that is absent here or of another size, or None."""
        return self.local.incomplete(version)

    def collections(self) -> list[str]:
        """Return the names of all artifacts that have a version here."""
        return self.local.collections()

    def versions(self, name: str) -> list[Version]:
        """Return all versions of an artifact that are known here."""
        return self.local.versions(name)

    def damaged(self) -> list[str]:
        """Return what is wrong with every manifest that is damaged here."""
        return self.local.damaged()

    def aliases_of(self, version: Version) -> list[str]:
        """Return what points at a version here."""
        return self.local.aliases_of(version)

    def history(self, registered_model: str | None = None) -> list[dict[str, Any]]:
        """Return the audit log of this store."""
        return self.local.history(registered_model)

    # -- aliases, both ways ----------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take over from W&B the aliases that moved there, and the manifests that they and a next round need.

        An alias that moved there and not here follows; one that moved in both places stays, with a message.
        """
        if self._refreshed:
            return
        self._refreshed = True
        if not self.connection.online:
            return
        self.connection.announce()
        self._ask(self._take_over)

    def push_aliases(self, model: str, *, ours: bool = False) -> list[str]:
        """Make W&B's registered model what it is here: links first, then aliases, unless someone else moved one there.

        Returns what is in the way; with one conflict no alias is moved, unless `ours`. Raises WandbError.
        """
        aliases = self.local.aliases(model)
        if not aliases:
            return []
        there = self.remote.aliases(model, MODEL_ALIASES)
        wanted = {alias: ref for alias, ref in aliases.items() if there.get(alias) != ref}
        clashes = [alias for alias in wanted if self._moved_by_others(model, alias, there.get(alias))]
        if clashes and not ours:
            return [
                f"{model}:{alias} is {self._label(there.get(alias))} on W&B, moved by someone else, and "
                f"{self._label(aliases[alias])} here"
                for alias in clashes
            ]
        for ref in dict.fromkeys(wanted.values()):
            self.remote.link(model, ref, tuple(alias for alias, to in wanted.items() if to == ref))
        now = self.remote.aliases(model, tuple(wanted)) if wanted else {}
        lost = [alias for alias in wanted if now.get(alias) != wanted[alias]]
        self._record_seen(model, {alias: ref for alias, ref in aliases.items() if alias not in lost})
        return [f"{model}:{alias} was moved on W&B and is not what was asked for" for alias in lost]

    def pull_aliases(self, model: str) -> None:
        """Move the aliases here to where they are on W&B. Raises WandbError."""
        there = self.remote.aliases(model, MODEL_ALIASES)
        here = self.local.aliases(model)
        left = self._follow(model, {alias: ref for alias, ref in there.items() if here.get(alias) != ref}, here)
        self._record_seen(model, {alias: ref for alias, ref in there.items() if alias not in left})

    # -- inside ----------------------------------------------------------------------------------------

    def _moved_by_others(self, model: str, alias: str, there: str | None) -> bool:
        """Tell whether someone else moved an alias on W&B since this store last saw or moved it."""
        seen = self._seen(model).get(alias)
        ours = [entry["to"] for entry in self.history(model) if entry["alias"] == alias]
        # Our own later moves count too: this store may have been killed before it recorded them as seen.
        since = ours[ours.index(seen) :] if seen in ours else []
        return there not in (seen, *(ours if seen is None else since))

    def _seen(self, model: str) -> dict[str, str]:
        """Return alias -> ref as this store last saw it on W&B."""
        return self._all_seen().get(self.connection.where, {}).get(model, {})

    def _all_seen(self) -> dict[str, dict[str, dict[str, str]]]:
        """Return W&B project -> registered model -> alias -> ref."""
        with contextlib.suppress(OSError, ValueError):
            return dict(files.read_json(self._state))
        return {}

    def _record_seen(self, model: str, aliases: dict[str, str]) -> None:
        known = self._all_seen()
        project = known.setdefault(self.connection.where, {})
        project[model] = {**project.get(model, {}), **aliases}
        files.write_json(self._state, known)

    def _take_over(self) -> None:
        model = self.params.registered_model
        there = self.remote.aliases(model, MODEL_ALIASES)
        here, seen = self.local.aliases(model), self._seen(model)
        moved = {alias: ref for alias, ref in there.items() if ref != here.get(alias) and ref != seen.get(alias)}
        clashes = {alias for alias in moved if here.get(alias) not in (None, seen.get(alias))}
        for alias in sorted(clashes):
            log.info(f"W&B: {model}:{alias} was moved there and here; make sync shows both")
        clashes |= self._follow(model, {alias: ref for alias, ref in moved.items() if alias not in clashes}, here)
        self._record_seen(model, {alias: ref for alias, ref in there.items() if alias not in clashes})
        for name in (self.params.dataset_name, self.params.feedback_name, RETRAINED_NAME):
            latest, ours = self.remote.latest(name), self.versions(name)
            if latest is None or any(one.digest == latest.digest for one in ours):
                continue  # nothing new: the versions before it were noted with it
            for version in self.remote.versions(name):
                self.local.note(version)
            if not ours:
                self.set_latest(self.local.resolve(f"{name}@{latest.digest}"))

    def _follow(self, model: str, moved: dict[str, str], here: dict[str, str]) -> set[str]:
        """Move aliases here, in one write, after noting the versions they point to. Returns those that did not move:
        another process moved them since `here` was read, or this process stopped waiting for W&B.
        """
        if not moved:
            return set()
        for ref in moved.values():
            name, _, digest = ref.partition("@")
            version = self.remote.version(name, digest)
            if version is None:
                raise WandbError(f"{ref} was not logged by this package")
            self.local.note(version)
        done = self.local.move_aliases(
            model, moved, expected=here, reason=f"as on W&B, {self.remote.path(model)}",
            wanted=lambda: self.connection.online,
        )  # fmt: skip
        if done:
            log.info(f"W&B: {model}: {', '.join(f'{alias} = {self._label(moved[alias])}' for alias in done)}")
        return set(moved) - set(done)

    def _label(self, ref: str | None) -> str:
        """Return name:vN of a ref, without asking W&B."""
        return "nothing" if ref is None else self.local.label(ref)

    def _learn(self, reference: str) -> None:
        """Note the manifest that a reference names on W&B, if it is there."""
        if not self.connection.online:
            return
        self.connection.announce()
        name, digest = reference.partition("@")[::2]
        if digest:
            version = self._ask(lambda: self.remote.version(name, digest))
            if version is not None:
                self.local.note(version)
        else:
            self.refresh()
            if name.partition(":")[0] in (self.params.registered_model, *self.collections()):
                return
            for version in self._ask(lambda: self.remote.versions(name.partition(":")[0])) or []:
                self.local.note(version)  # a model that no alias names

    def _ask(self, question: Callable[[], T]) -> T | None:
        try:
            return self.connection.run(question)
        except WandbError as error:
            self.connection.trouble(error, "going on offline with what is here, make sync uploads what is missing")
            return None

    def _fetch(self, version: Version) -> None:
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch) as directory:
            if not self.remote.fetch(version, Path(directory)):
                return  # `open` then says what is missing here
            log.info(f"W&B: downloaded {version.label} ({files.human_size(version.size)})")
            latest = self.local.resolve(version.name)
            self.publish(version.name, version.type, Path(directory))
            self.set_latest(latest)
