"""Compare a run on W&B with its record, by asking W&B for each part."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel.tracking import media
from flywheel.tracking.remote import Remote, ref_of, wandb_errors
from flywheel.tracking.run_files import STEP, TIME, MediaFile, RunRecord, plain

SETTLING_S = 5  # W&B may show an upload a little later


def missing_parts(remote: Remote, record: RunRecord, settling_s: float = SETTLING_S) -> list[str]:
    """Return what W&B lacks of a run: rows, final values, config, media, inputs, outputs. Raises WandbError."""
    until = time.monotonic() + settling_s
    while True:
        missing = _missing_parts(remote, record)
        if not missing or time.monotonic() > until:
            return missing
        time.sleep(0.5)


def missing_rows(rows: Sequence[Mapping[str, Any]], run: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a record that a run on W&B does not have, in this order. They are few: one an epoch."""
    with wandb_errors():
        uploaded = run.history(samples=10 * len(rows) + 1000, pandas=False) if rows else []
    return rows_after(rows, uploaded)


def rows_after(rows: Sequence[Mapping[str, Any]], uploaded: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows from the first one on that does not follow its predecessor among the uploaded ones."""
    remaining = iter(uploaded)
    for index, row in enumerate(rows):
        wanted = {key: value for key, value in row.items() if key not in (STEP, TIME)}
        if not any(_equal(other, wanted) for other in remaining):
            return list(rows[index:])
    return []


def missing_media(record: RunRecord, run: Any) -> list[MediaFile]:
    """Return the pictures and tables of a record that a run on W&B does not have."""
    if not record.media:
        return []
    with wandb_errors():
        summary = dict(run.summary_metrics)
        paths = [str(value["path"]) for value in summary.values() if isinstance(value, Mapping) and "path" in value]
        sizes = {file.name: file.size for file in run.files(names=paths, per_page=1000)} if paths else {}
        tables = [one.source_name.partition(":")[0] for one in run.logged_artifacts() if one.type == "run_table"]
    return [one for one in record.media if not media.is_complete(one, summary, sizes, tables)]


def _missing_parts(remote: Remote, record: RunRecord) -> list[str]:
    run = remote.run(record.key)
    if run is None:
        return [f"run {record.key} is not on W&B"]
    missing = []
    if rows := missing_rows(record.rows, run):
        missing.append(f"{len(rows)} of {len(record.rows)} rows")
    with wandb_errors():
        summary, config = dict(run.summary_metrics), dict(run.config)
        used = {ref_of(artifact) for artifact in run.used_artifacts()}
        made = {ref_of(artifact) for artifact in run.logged_artifacts()}
        running = run.state in ("running", "pending")
    for name, expected, uploaded in (("final values", record.summary, summary), ("config", record.config, config)):
        if keys := [key for key, value in expected.items() if not _equal(uploaded.get(key), value)]:
            missing.append(f"{name} {', '.join(keys)}")
    missing += [f"its {one.kind} {one.name}" for one in missing_media(record, run)]
    missing += [f"its input {ref}" for ref in record.used if ref not in used]
    missing += [f"its output {ref}" for ref in record.made if ref not in made]
    missing += ["its end"] if running else []
    return [f"run {record.key}: {part}" for part in missing]


def _equal(uploaded: Any, expected: Any) -> bool:
    """Compare W&B's value with a JSON value: W&B drops keys whose value is null, adds keys, and writes 2.0 as 2."""
    uploaded = plain(uploaded)  # NaN and infinity become text, as they are in the file
    if isinstance(expected, Mapping) and isinstance(uploaded, Mapping):
        return all(_equal(uploaded.get(key), value) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(uploaded, list):
        return len(uploaded) == len(expected) and all(map(_equal, uploaded, expected))
    return bool(uploaded == expected) and isinstance(uploaded, bool) == isinstance(expected, bool)
