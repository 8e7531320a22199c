"""Which sweep a command means: one that was interrupted or is to have more trials, or a new one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flywheel.sweep.journal import Journal, Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The journal to write on, what it tells so far (None: it is new), and whether failed trials run again."""

    journal: Journal
    record: Record | None
    again: bool


def choose(folder: Path, identity: Mapping[str, Any], code: Mapping[str, str], *, force: bool) -> Choice:
    """Return the newest sweep of the same identity (params and data), or a new one, and say which and why.

    A sweep goes on unless it is complete and the code changed since, or all its trials failed, or `force`.
    A sweep that is left behind is named.
    """
    journals = [Journal(path) for path in sorted(folder.glob("sweep-*.jsonl"), reverse=True)]
    records = [(journal, record) for journal in journals if (record := journal.read()).begun]
    if not force:
        for journal, record in records:
            if record.begun["identity"] != identity:
                continue
            changed = _changed(record.begun["code"], code)
            if (record.done and changed) or (record.ended and all(t.status == "failed" for t in record.trials)):
                break
            if changed:
                log.info(
                    f"sweep: code changed since {journal.sweep_id} was interrupted ({', '.join(changed)}): trials that "
                    "ended stay as they are, those that failed run again"
                )
            return Choice(journal, record, bool(changed))
    if records and not records[0][1].done:
        journal, record = records[0]
        why = "forced" if force else _difference(record.begun["identity"], identity) or "its trials failed"
        log.info(
            f"sweep: {journal.sweep_id} is left as it is, after {record.ended} of {len(record.trials)} trials, and a "
            f"new one begins ({why}); make clean removes its checkpoints"
        )
    name, count = f"sweep-{datetime.now(UTC):%Y%m%d-%H%M%S}", 1
    path = folder / f"{name}.jsonl"
    while path.exists():
        count += 1
        path = folder / f"{name}-{count}.jsonl"
    return Choice(Journal(path), None, False)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(module for module in before.keys() | now.keys() if before.get(module) != now.get(module))


def _difference(before: Any, now: Any, path: str = "") -> str | None:
    """Return the first difference of two identities as `key: before -> now`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(before.keys() | now.keys()):
            found = _difference(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if before == now else f"{path} changed: {before} -> {now}"
