"""The audit log of the registered models, which is also their alias table.

An alias is what the last line about it says, so a move and its record are one write and no crash can leave one
without the other. A registered model's versions are what was linked to it, in order.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from flywheel import files

KEYS = {"at", "who", "model", "alias", "from", "to", "reason", "gate", "forced", "write", "moves"}
MODEL_ALIASES = ("best", "candidate", "production", "previous")


class Move(NamedTuple):
    """An alias that moves from one ref to another; without an alias, a link alone."""

    alias: str | None
    before: str | None
    to: str


class Audit:
    """The log at a path; absent means empty."""

    def __init__(self, path: Path):
        self.path = path

    def entries(self, registered_model: str | None = None) -> list[dict[str, Any]]:
        """Return the log of one registered model or all, oldest first."""
        found = [entry for entry in files.read_json_lines(self.path) if entry.keys() >= KEYS]
        # Moves that were written together hold together: of a write that a power failure cut, none counts.
        written = Counter(entry["write"] for entry in found)
        return [
            entry
            for entry in found
            if written[entry["write"]] == entry["moves"] and registered_model in (None, entry["model"])
        ]

    def aliases(self, registered_model: str) -> dict[str, str]:
        """Return alias -> ref."""
        return {entry["alias"]: entry["to"] for entry in self.entries(registered_model) if entry["alias"]}

    def links(self, registered_model: str) -> list[str]:
        """Return the refs of the versions, v0 first."""
        return list(dict.fromkeys(entry["to"] for entry in self.entries(registered_model)))

    def append(
        self, registered_model: str, moves: Sequence[Move], *, reason: str, gate: Mapping[str, Any] | None, forced: bool
    ) -> None:
        """Record moves, all in one write."""
        write = secrets.token_hex(8)
        entries = [
            {
                "at": now(),
                "who": _user(),
                "model": registered_model,
                "alias": move.alias,
                "from": move.before,
                "to": move.to,
                "reason": reason,
                "gate": gate,
                "forced": forced,
                "write": write,
                "moves": len(moves),
            }
            for move in moves
        ]
        if entries:
            files.append_json_lines(self.path, *entries)


def now() -> str:
    """Return the time as the registry records it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _user() -> str:
    with contextlib.suppress(Exception):  # a container's user may have no name
        return getpass.getuser()
    return str(os.getuid())
