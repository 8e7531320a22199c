"""The audit log of the registered models, which is also their alias table.

An alias is what the last line about it says, so a move and its record are one write and no crash can leave one
without the other. A registered model's versions are what was linked to it, in order.
"""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from flywheel import files

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
        return [e for e in files.read_json_lines(self.path) if registered_model in (None, e["model"])]

    def aliases(self, registered_model: str) -> dict[str, str]:
        """Return alias -> ref."""
        return {entry["alias"]: entry["to"] for entry in self.entries(registered_model) if entry["alias"]}

    def links(self, registered_model: str) -> list[str]:
        """Return the refs of the versions, v0 first."""
        return list(dict.fromkeys(entry["to"] for entry in self.entries(registered_model)))

    def append(
        self,
        registered_model: str,
        moves: Sequence[Move],
        *,
        reason: str,
        gate: Mapping[str, Any] | None,
        forced: bool,
    ) -> None:
        """Record moves, all in one write."""
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
