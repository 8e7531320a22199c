"""The store with W&B behind it: what is not here is looked for there, when this process is online.

Manifests come first and are small; files come when a version is opened. What is here is never asked for, so an
up-to-date check needs no network. `refresh` takes over the aliases that others moved.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from flywheel import files
from flywheel.params import RETRAINED_NAME, Params
from flywheel.registry import manifest
from flywheel.registry.audit import MODEL_ALIASES, Move
from flywheel.registry.local import Registry
from flywheel.registry.manifest import RegistryError, Version
from flywheel.tracking.connection import Connection, WandbError
from flywheel.tracking.remote import Remote

log = logging.getLogger(__name__)

T = TypeVar("T")


class SharedRegistry(Registry):
    """A registry whose readers fall through to W&B."""

    def __init__(self, params: Params, connection: Connection | None = None):
        super().__init__(params.store)
        self.params = params
        self.connection = connection or Connection(params)
        self.remote = Remote(self.connection)
        self._state = params.store_paths.wandb_aliases
        self._scratch = params.store_paths.scratch("wandb")
        self._refreshed = False
        self._absent: set[str] = set()

    # -- reading ---------------------------------------------------------------------------------------

    def resolve(self, reference: str) -> Version:
        """Return the version that a reference names, here or on W&B. Raises RegistryError."""
        try:
            return super().resolve(reference)
        except RegistryError:
            if reference in self._absent or not manifest.NAME.fullmatch(reference.partition("@")[0].partition(":")[0]):
                raise
            self._absent.add(reference)
            self._learn(reference)
            return super().resolve(reference)

    def aliases(self, registered_model: str) -> dict[str, str]:
        """Return alias -> ref of a registered model; W&B's where there is none here."""
        found = super().aliases(registered_model)
        if not found and registered_model == self.params.registered_model and not self._refreshed:
            self.refresh()
            found = super().aliases(registered_model)
        return found

    def open(self, version: Version) -> Path:
        """Return the directory of a version's files; those that are absent are downloaded and verified."""
        if self.incomplete(version) is not None and self.connection.online:
            self.connection.announce()
            try:
                self.connection.run(lambda: self._fetch(version), lambda: files.size_of(self._scratch))
            except WandbError as error:
                raise RegistryError(f"{version.label} is not here and W&B does not give it: {error}") from None
        return super().open(version)

    def link(self, version: Version, registered_model: str, aliases: tuple[str, ...] = (), **why: Any) -> None:
        """Link a version and move aliases, as Registry.link does, after asking W&B where they are."""
        self.aliases(registered_model)  # now: while the writer's lock is held nobody is asked
        super().link(version, registered_model, aliases, **why)

    # -- W&B -------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take over from W&B the aliases that moved there, and the manifests of what they and a next turn need.

        An alias that moved there and not here follows; one that moved in both places stays, and is said.
        """
        if self._refreshed:
            return
        self._refreshed = True
        if not self.connection.online:
            return
        self.connection.announce()
        self._ask(self._take_over)

    def note(self, version: Version) -> Version:
        """Keep the manifest of a version without its files; returns it with its number here."""
        with self._writing():
            known = next((one for one in self.versions(version.name) if one.digest == version.digest), None)
            if known is not None:
                return known
            noted = replace(version, number=self._shelf.next_number(version.name))
            temporary = self.root / "tmp" / secrets.token_hex(8)
            manifest.write(temporary / "manifest.json", noted)
            folder = self._shelf.folder(noted.name, noted.number)
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary.rename(folder)
            files.sync_directory(folder.parent)
            return noted

    def seen(self, model: str) -> dict[str, str]:
        """Return alias -> ref as this store last saw it on W&B."""
        return self._seen().get(self.connection.where, {}).get(model, {})

    def saw(self, model: str, aliases: dict[str, str]) -> None:
        """Record what aliases were seen on W&B."""
        known, where = self._seen(), self.connection.where
        there = known.setdefault(where, {})
        there[model] = {**there.get(model, {}), **aliases}
        files.write_json(self._state, known)

    def follows(self, model: str, alias: str, there: str | None) -> bool:
        """Tell whether nobody else moved an alias on W&B since this store last saw or moved it."""
        seen = self.seen(model).get(alias)
        ours = [entry["to"] for entry in self.history(model) if entry["alias"] == alias]
        # What this store itself made of the alias since then counts too: it may have been killed before recording it.
        since = ours[ours.index(seen) :] if seen in ours else []
        return there in (seen, *(ours if seen is None else since))

    def mirror(self, model: str, *, ours: bool = False) -> list[str]:
        """Make W&B's registered model what it is here: links first, then aliases, each only if it `follows`.

        Returns what is in the way; with one conflict no alias is moved, unless `ours`. Raises WandbError.
        """
        aliases = Registry.aliases(self, model)
        if not aliases:
            return []
        there = self.remote.aliases(model, MODEL_ALIASES)
        wanted = {alias: ref for alias, ref in aliases.items() if there.get(alias) != ref}
        clashes = [alias for alias in wanted if not self.follows(model, alias, there.get(alias))]
        if clashes and not ours:
            return [
                f"{model}:{alias} is {self._name(there.get(alias))} on W&B, moved by someone else, and "
                f"{self._name(aliases[alias])} here"
                for alias in clashes
            ]
        for ref in dict.fromkeys(wanted.values()):
            self.remote.link(model, ref, tuple(alias for alias, to in wanted.items() if to == ref))
        now = self.remote.aliases(model, tuple(wanted)) if wanted else {}
        lost = [alias for alias in wanted if now.get(alias) != wanted[alias]]
        self.saw(model, {alias: ref for alias, ref in aliases.items() if alias not in lost})
        return [f"{model}:{alias} was moved on W&B and is not what was asked for" for alias in lost]

    def take(self, model: str) -> list[str]:
        """Move the aliases here to where they are on W&B. Returns those that moved. Raises WandbError."""
        there = self.remote.aliases(model, MODEL_ALIASES)
        here = Registry.aliases(self, model)
        moved = {alias: ref for alias, ref in there.items() if here.get(alias) != ref}
        left = self._follow(model, moved, here)
        self.saw(model, {alias: ref for alias, ref in there.items() if alias not in left})
        return [alias for alias in moved if alias not in left]

    # -- inside ----------------------------------------------------------------------------------------

    def _seen(self) -> dict[str, dict[str, dict[str, str]]]:
        """Return place -> registered model -> alias -> ref."""
        with contextlib.suppress(OSError, ValueError):
            return dict(files.read_json(self._state))
        return {}

    def _take_over(self) -> None:
        model = self.params.registered_model
        there = self.remote.aliases(model, MODEL_ALIASES)
        here, seen = Registry.aliases(self, model), self.seen(model)
        moved = {alias: ref for alias, ref in there.items() if ref != here.get(alias) and ref != seen.get(alias)}
        clashes = {alias for alias in moved if here.get(alias) not in (None, seen.get(alias))}
        for alias in sorted(clashes):
            log.info(f"W&B: {model}:{alias} was moved there and here; make sync shows both")
        follow = {alias: ref for alias, ref in moved.items() if alias not in clashes}
        clashes |= self._follow(model, follow, here)
        self.saw(model, {alias: ref for alias, ref in there.items() if alias not in clashes})
        for name in (self.params.dataset_name, self.params.feedback_name, RETRAINED_NAME):
            latest = self.remote.latest(name)
            if latest is None or any(one.digest == latest.digest for one in self.versions(name)):
                continue  # nothing new: the versions before it were noted with it
            ours = self.versions(name)
            for version in self.remote.versions(name):
                self.note(version)
            if not ours:
                self.set_latest(super().resolve(f"{name}@{latest.digest}"))

    def _follow(self, model: str, moved: dict[str, str], here: dict[str, str]) -> set[str]:
        """Move aliases here, in one write, after noting what they point to. `previous` first: production moves it.

        Returns those that stay, since another process moved them since `here` was read, or patience ended meanwhile.
        """
        if not moved:
            return set()
        for ref in moved.values():
            name, _, digest = ref.partition("@")
            version = self.remote.version(name, digest)
            if version is None:
                raise WandbError(f"{ref} was not logged by this package")
            self.note(version)
        with self._writing():
            now = Registry.aliases(self, model) if self.connection.online else None
            moves = [
                Move(alias, here.get(alias), moved[alias])
                for alias in MODEL_ALIASES[::-1]
                if alias in moved and now is not None and now.get(alias) == here.get(alias)
            ]
            reason = f"as on W&B, {self.remote.path(model)}"
            self._audit.append(model, moves, reason=reason, gate=None, forced=False)
        if moves:
            log.info(f"W&B: {model}: {', '.join(f'{move.alias} = {self._name(move.to)}' for move in moves)}")
        return set(moved) - {str(move.alias) for move in moves}

    def _name(self, ref: str | None) -> str:
        """Return what people call a ref, without asking W&B."""
        try:
            return "nothing" if ref is None else Registry.resolve(self, ref).label
        except RegistryError:
            return str(ref)

    def _learn(self, reference: str) -> None:
        """Note the manifest that a reference names on W&B, if it is there."""
        if not self.connection.online:
            return
        self.connection.announce()
        name, digest = reference.partition("@")[::2]
        if digest:
            version = self._ask(lambda: self.remote.version(name, digest))
            if version is not None:
                self.note(version)
        else:
            self.refresh()
            if name.partition(":")[0] in (self.params.registered_model, *self.collections()):
                return
            for version in self._ask(lambda: self.remote.versions(name.partition(":")[0])) or []:
                self.note(version)  # a model that no alias names

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
                return  # and what is wrong here is said as ever
            log.info(f"W&B: downloaded {version.label} ({files.human_size(version.size)})")
            latest = Registry.resolve(self, version.name)
            self.publish(version.name, version.type, Path(directory))
            self.set_latest(latest)
