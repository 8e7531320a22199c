"""Decide whether a sweep continues an earlier one, interrupted or with more trials now, or begins anew."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flywheel.pipeline.stage import changes, first_change
from flywheel.sweep.journal import Journal, SweepRecord

log = logging.getLogger(__name__)


def resume(
    folder: Path, identity: Mapping[str, Any], code: Mapping[str, str], *, force: bool
) -> tuple[Journal, SweepRecord | None, bool]:
    """Return the newest sweep with the same identity (params and data), or a new one; log which and why.

    The result is the journal to write, its record so far (None for a new sweep), and whether failed trials run again.
    A new sweep begins with `force`, when the earlier one is complete and the code changed since, or when all its
    trials failed. An incomplete sweep that is not continued is named.
    """
    journals = [Journal(path) for path in sorted(folder.glob("sweep-*.jsonl"), reverse=True)]
    records = [(journal, record) for journal in journals if (record := journal.read()).begun]
    same = next((found for found in records if found[1].begun["identity"] == identity), None)
    if same and not force:
        journal, record = same
        changed = changes(record.begun["code"], code)
        all_failed = record.ended > 0 and all(trial.status == "failed" for trial in record.trials)
        if not (record.done and changed) and not all_failed:
            if changed:
                log.info(
                    f"sweep: code changed since {journal.sweep_id} was interrupted ({', '.join(changed)}): trials that "
                    "ended stay as they are, failed trials run again"
                )
            return journal, record, bool(changed)
    if records and not records[0][1].done:
        journal, record = records[0]
        why = "forced" if force else first_change(record.begun["identity"], identity) or "its trials failed"
        log.info(
            f"sweep: {journal.sweep_id} is left as it is, after {record.ended} of {len(record.trials)} trials, and a "
            f"new one begins ({why}); make clean removes its checkpoints"
        )
    return Journal(folder / f"sweep-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.jsonl"), None, False
