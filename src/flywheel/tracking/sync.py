"""`make sync`: upload what was recorded and is not on W&B, then read each item back and compare it.

In this order: runs with their rows and final values, artifacts as outputs of their runs, inputs, links and aliases. A
run's file notes when W&B was seen to hold all of it, so a second call, or one after a kill, continues from there.
A run is resumed and logged from its own file: only what W&B lacks of it, so a second call duplicates no row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from flywheel import FlywheelError, files
from flywheel.params import Params
from flywheel.registry import RegistryError, Version
from flywheel.tracking import media, run_files
from flywheel.tracking.connection import Connection, StalledError, WandbError, one_line
from flywheel.tracking.mirror import Mirror
from flywheel.tracking.remote import kill_wandb, wandb_errors
from flywheel.tracking.run_files import STEP, RunFile, RunRecord
from flywheel.tracking.runs import EXIT_CODES
from flywheel.tracking.verify import missing_media, missing_parts, missing_rows

log = logging.getLogger(__name__)

STALL_TIMEOUT_S = 30  # for each item; then this call ends
START_TIMEOUT_S, FINISH_TIMEOUT_S = 30, 3600  # of a run; the stall timeout ends a stalled upload much earlier
LATE = "sync"  # the job type of the run that uploads artifacts whose run is unknown


class SyncError(FlywheelError):
    """W&B cannot be reached, or lacks something after a sync; the message says what."""


@dataclass
class Report:
    """The items that were uploaded and compared, the number of runs confirmed before, and what W&B lacks."""

    uploaded: list[str] = field(default_factory=list)
    confirmed_before: int = 0
    missing: list[str] = field(default_factory=list)


def sync(params: Params, *, keep: str | None = None) -> Report:
    """Upload everything to W&B and compare it; runs in progress are left for later.

    `keep` settles aliases that moved both here and on W&B: `ours` or `theirs`. Raises SyncError when W&B cannot be
    reached, files.Locked when another process syncs.
    """
    with files.lock(params.store_paths.lock("sync")):
        mirror = Mirror(params, Connection(params, upload=True))
        mode = mirror.connection.mode
        if mode.name != "online":
            raise SyncError(f"W&B is not online, nothing was uploaded: {mode.why}")
        mirror.connection.log_mode()
        syncing = _Sync(mirror, keep)
        try:
            syncing.run()
        except StalledError:
            syncing.report.missing.append("W&B does not answer any more; the remaining items were not compared")
        finally:
            kill_wandb()
        return syncing.report


class _Sync:
    """One call of sync, and its report."""

    def __init__(self, mirror: Mirror, keep: str | None):
        self.mirror = mirror
        self.registry = mirror.local
        self.remote = mirror.remote
        self.connection = mirror.connection
        self.store = mirror.params.store
        self.keep = keep
        self.report = Report()

    def run(self) -> None:
        """Sync runs, then artifacts, then aliases."""
        records, project = list(run_files.records(self.store)), self.connection.project_url
        running = [record for record in records if record.running]
        waiting = [record for record in records if project not in record.confirmed and record not in running]
        self.report.confirmed_before = sum(project in record.confirmed for record in records)
        for number, record in enumerate(waiting, start=1):
            log.info(f"sync: run {number} of {len(waiting)}: {_title(record)}, {len(record.rows)} rows")
            self._do(_title(record), partial(self._sync_run, record))
        if running:
            log.info(f"sync: {', '.join(_title(record) for record in running)}: in progress, left for later")
        else:
            self._sync_late_artifacts()
        if self.report.missing:
            log.info("sync: aliases on W&B stay until everything else is uploaded")
            return
        for model in self.registry.registered_models():
            self._do(f"aliases of {model}", partial(self._sync_aliases, model))

    def _do(self, item: str, action: Callable[[], list[str]]) -> None:
        """Sync one item in bounded time and report what is missing afterwards. Raises StalledError."""
        self.connection.stall_budget_s = STALL_TIMEOUT_S
        try:
            missing = self.connection.run(action)
        except StalledError:
            self.report.missing.append(f"{item}: W&B does not answer")
            raise
        except (WandbError, RegistryError, OSError) as error:
            missing = [f"{item}: {one_line(error)}"]
        if missing:
            self.report.missing += missing
        else:
            self.report.uploaded.append(item)

    def _sync_run(self, record: RunRecord) -> list[str]:
        """Upload one run, except what was removed meanwhile. Returns what W&B lacks of it afterwards."""
        if gone := [ref for ref in record.made if not self.registry.has(ref)]:
            log.info(f"sync: {', '.join(gone)}: pruned before it was on W&B, left out")
            record = replace(record, made=tuple(ref for ref in record.made if ref not in gone))
        if lost := [one for one in record.media if not media.path(self.store, one).exists()]:
            log.info(f"sync: {', '.join(one.name for one in lost)} of {_title(record)}: the file is gone, left out")
            record = replace(record, media=tuple(one for one in record.media if one not in lost))
        run = self.remote.run(record.key)
        made = [self.registry.resolve(ref) for ref in record.made]
        missing = ["all"] if run is None else missing_parts(self.remote, record, settling_s=0)
        if any("its input" not in reason for reason in missing):
            self._resume(record, made, run)
        missing_inputs = self.remote.add_inputs(record.key, record.used)
        missing = [reason for version in made if (reason := self.remote.why_incomplete(version))]
        missing = missing or missing_parts(self.remote, record)
        if not missing:
            RunFile(self.store, record.key).append("confirmed", where=self.connection.project_url)
            return []
        return missing_inputs or missing

    def _resume(self, record: RunRecord, made: list[Version], run: Any) -> None:
        """Resume a run, log what W&B lacks of it, and end it as the record says."""
        rows = record.rows if run is None else missing_rows(record.rows, run)
        lost = record.media if run is None else missing_media(record, run)
        with wandb_errors():
            resumed = self.remote.init_run(
                record, resume="allow", start_timeout_s=START_TIMEOUT_S, finish_timeout_s=FINISH_TIMEOUT_S
            )
        try:
            with wandb_errors():
                for row in rows:
                    step = row.get(STEP, -1)
                    values = {key: value for key, value in row.items() if key != STEP}
                    # Steps cannot decrease. Without commit, the next picture would join the row and replace its time.
                    resumed.log(values, step=step if step >= resumed.step else None, commit=True)
                for one in lost:
                    resumed.log({one.name: media.wandb_object(self.store, one)})
                resumed.summary.update(dict(record.summary))
            for version in made:
                self.remote.upload(resumed, version, self.registry)
        finally:
            with wandb_errors():
                resumed.finish(exit_code=EXIT_CODES.get(record.finished or "failed", 1))

    def _sync_late_artifacts(self) -> None:
        """Upload, by a run of their own, the stored versions that no recorded run uploaded."""
        late: list[Version] = []

        def check(version: Version) -> list[str]:
            if self.remote.why_incomplete(version):
                late.append(version)
            return []

        versions = [v for name in self.registry.collections() for v in self.registry.versions(name)]
        versions = [version for version in versions if version.metadata.get("shared", True)]  # traffic.share
        for version in sorted(versions, key=lambda one: one.created):
            if self.registry.missing_file(version) is None:
                self._do(version.label, partial(check, version))
        if not late or self.report.missing:
            return
        log.info(f"sync: {', '.join(version.label for version in late)}: the run that made it is unknown")
        file = RunFile(self.store, f"sync-{files.digest_json([version.ref for version in late])[:8]}")
        if file.read() is None:
            file.start(LATE, LATE, "sync", {})
            for version in late:
                file.append("make", ref=version.ref)
            file.append("finish", how="finished")
        record = file.read()
        assert record is not None
        self._do(_title(record), partial(self._sync_run, record))

    def _sync_aliases(self, model: str) -> list[str]:
        if self.keep == "theirs":
            self.mirror.pull_aliases(model, theirs=True)
        return self.mirror.push_aliases(model, ours=self.keep == "ours")


def _title(record: RunRecord) -> str:
    return record.name if record.name.startswith(record.job_type) else f"{record.job_type} {record.name}"
