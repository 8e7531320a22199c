"""What W&B lacks of a run, found by asking for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel.tracking import media
from flywheel.tracking.remote import Errors, Remote
from flywheel.tracking.run_files import STEP, Medium, Record, plain

SETTLING_S = 5  # what W&B just took it may show a little later


def missing(remote: Remote, record: Record, settling_s: float = SETTLING_S) -> list[str]:
    """Return what W&B lacks of a run: rows, final values, config, media, inputs, outputs. Raises WandbError."""
    until = time.monotonic() + settling_s
    while True:
        found = _missing(remote, record)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.5)


def unlogged(rows: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows that are not, in their order, among those that are there."""
    left = iter(there)
    for index, row in enumerate(rows):
        if not any(_holds(other, row) for other in left):
            return list(rows[index:])
    return []


def history(run: Any, rows: int) -> list[dict[str, Any]]:
    """Return the rows that W&B has of a run, which are few: one an epoch."""
    with Errors():
        found = run.history(samples=10 * rows + 1000, pandas=False)
    return [dict(row) for row in found]


def unshown(run: Any, record: Record) -> list[Medium]:
    """Return the pictures and tables of a record that a run on W&B does not have."""
    if not record.media:
        return []
    with Errors():
        summary = dict(run.summary_metrics)
        paths = [str(there["path"]) for there in summary.values() if isinstance(there, Mapping) and "path" in there]
        sizes = {file.name: file.size for file in run.files(names=paths, per_page=1000)} if paths else {}
        logged = [one.source_name.partition(":")[0] for one in run.logged_artifacts() if one.type == "run_table"]
    return [medium for medium in record.media if not media.whole(medium, summary, sizes, logged)]


def _missing(remote: Remote, record: Record) -> list[str]:
    run = remote.run(record.key)
    if run is None:
        return [f"run {record.key} is not on W&B"]
    found = []
    if lost := unlogged(record.rows, history(run, len(record.rows)) if record.rows else []):
        found.append(f"run {record.key}: {len(lost)} of {len(record.rows)} rows")
    with Errors():
        summary, config = dict(run.summary_metrics), dict(run.config)
        used = {f"{one.source_name.partition(':')[0]}@{one.digest}" for one in run.used_artifacts()}
        made = {f"{one.source_name.partition(':')[0]}@{one.digest}" for one in run.logged_artifacts()}
        ended = run.state not in ("running", "pending")
    for name, wanted, there in (("final values", record.summary, summary), ("config", record.config, config)):
        if lacking := [key for key, value in wanted.items() if not _same(there.get(key), value)]:
            found.append(f"run {record.key}: {name} {', '.join(lacking)}")
    found += [f"run {record.key}: its {medium.kind} {medium.name}" for medium in unshown(run, record)]
    found += [f"run {record.key}: its input {ref}" for ref in record.used if ref not in used]
    found += [f"run {record.key}: its output {ref}" for ref in record.made if ref not in made]
    if not ended:
        found.append(f"run {record.key}: its end")
    return found


def _holds(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(_same(row.get(key), value) for key, value in wanted.items() if key != STEP)


def _same(there: Any, wanted: Any) -> bool:
    """Compare what W&B has with a JSON value: it drops keys whose value is null and writes 2.0 as 2."""
    there = plain(there)  # NaN and infinity become text, as they are in the file
    if isinstance(wanted, Mapping) and isinstance(there, Mapping):
        return all(_same(there.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(there, list):
        return len(there) == len(wanted) and all(map(_same, there, wanted))
    return bool(there == wanted) and isinstance(there, bool) == isinstance(wanted, bool)
