"""The audit log of the registered models, which is also their alias table.

An alias points where the last line about it says, so a move and its record are one write and no crash can leave one
without the other. The versions of a registered model are the refs that were linked to it, in order.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flywheel import files

KEYS = {"at", "who", "model", "alias", "from", "to", "reason", "gate", "forced", "write", "moves"}
MODEL_ALIASES = ("best", "candidate", "production", "previous")


class AliasMove(NamedTuple):
    """An alias that moves from one ref to another; a link only where alias is None."""

    alias: str | None
    before: str | None
    to: str


class Audit:
    """The log at a path; a missing file is an empty log. It is read again only after it changed."""

    def __init__(self, path: Path):
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._entries: list[dict[str, Any]] = []
        self._aliases: dict[str, dict[str, str]] = {}
        self._links: dict[str, list[str]] = {}

    def entries(self, registered_model: str | None = None) -> list[dict[str, Any]]:
        """Return the log of one registered model or all, oldest first."""
        self._read()
        return [entry for entry in self._entries if registered_model in (None, entry["model"])]

    def models(self) -> list[str]:
        """Return the names of the registered models, sorted."""
        self._read()
        return sorted(self._links)

    def aliases(self, registered_model: str) -> dict[str, str]:
        """Return alias -> ref."""
        self._read()
        return dict(self._aliases.get(registered_model, {}))

    def links(self, registered_model: str) -> list[str]:
        """Return the refs of the versions, v0 first."""
        self._read()
        return self._links.get(registered_model, [])

    def _read(self) -> None:
        stamp = None
        with contextlib.suppress(FileNotFoundError):
            status = self.path.stat()
            stamp = status.st_size, status.st_mtime_ns
        if stamp == self._stamp:
            return
        entries = [entry for entry in files.read_json_lines(self.path) if entry.keys() >= KEYS]
        # A write counts only if all its lines are there: a power failure may have cut it.
        written = Counter(entry["write"] for entry in entries)
        self._entries = [entry for entry in entries if written[entry["write"]] == entry["moves"]]
        aliases: dict[str, dict[str, str]] = defaultdict(dict)
        links: dict[str, dict[str, None]] = defaultdict(dict)
        for entry in self._entries:
            links[entry["model"]][entry["to"]] = None
            if entry["alias"]:
                aliases[entry["model"]][entry["alias"]] = entry["to"]
        self._aliases, self._links = aliases, {model: list(refs) for model, refs in links.items()}
        self._stamp = stamp

    def append(
        self,
        registered_model: str,
        moves: Sequence[AliasMove],
        *,
        reason: str,
        gate: Mapping[str, Any] | None = None,
        forced: bool = False,
    ) -> None:
        """Record moves, all in one write."""
        if not moves:
            return
        who, model = {"at": files.timestamp(), "who": _user()}, {"model": registered_model}
        why = {"reason": reason, "gate": gate, "forced": forced, "write": secrets.token_hex(8), "moves": len(moves)}
        lines = [who | model | {"alias": move.alias, "from": move.before, "to": move.to} | why for move in moves]
        files.append_json_lines(self.path, *lines)


def _user() -> str:
    with contextlib.suppress(Exception):  # a container's user may have no name
        return getpass.getuser()
    return str(os.getuid())
