"""`make sync`: what was recorded and is not on W&B goes there, and each item is read back and compared.

In this order: runs with their rows and final values, artifacts as outputs of their runs, inputs, links and aliases.
What was seen to be there is noted in the run's file, so that a second call, or one after a kill, goes on from there.
Nothing here trusts `wandb sync`, which exits 0 though artifacts were lost, and gives a run its rows twice when it is
called twice: it brings a run of which nothing is there, and what is lacking then is logged again from our own file.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from flywheel import FlywheelError, files
from flywheel.params import Params
from flywheel.registry import RegistryError, Version
from flywheel.tracking import media, run_files
from flywheel.tracking.connection import SilenceError, WandbError, one_line
from flywheel.tracking.mirror import Mirror
from flywheel.tracking.remote import Errors, abandon
from flywheel.tracking.run_files import STEP, Record, RunFile
from flywheel.tracking.runs import EXIT_CODES
from flywheel.tracking.verify import history, missing, unlogged, unshown

log = logging.getLogger(__name__)

PATIENCE_S = 30  # of waiting in which nothing moves, for each item; then the rest is left for another time
UPLOAD_TIMEOUT_S = 3600  # of `wandb sync` for one run
LATE = "sync"  # the job type of the run that brings artifacts of which no run is known


class SyncError(FlywheelError):
    """W&B cannot be reached, or something is not there; the message says what."""


@dataclass
class Report:
    """What was brought, how much was there already, what is missing."""

    brought: list[str] = field(default_factory=list)
    there: int = 0
    missing: list[str] = field(default_factory=list)


def sync(params: Params, *, keep: str | None = None) -> Report:
    """Bring everything to W&B and return what came of it; runs that are under way are left for later.

    `keep` settles aliases that moved here and there: `ours` or `theirs`. Raises SyncError when W&B cannot be reached,
    files.Locked when another process syncs.
    """
    with files.lock(params.store_paths.lock("sync")):
        tracking = params.tracking.model_copy(update={"wandb": "online"})  # whoever types make sync wants that
        registry = Mirror(params.model_copy(update={"tracking": tracking}))
        mode = registry.connection.mode
        if mode.name != "online":
            raise SyncError(f"W&B is not online, nothing was uploaded: {mode.why}")
        registry.connection.announce()
        syncing = _Sync(registry, keep)
        try:
            syncing.run()
        except SilenceError:
            syncing.report.missing.append("W&B does not answer any more; what was not reached is left")
        finally:
            syncing.end()
        return syncing.report


class _Sync:
    """One call of sync: what it found, and the processes that it started."""

    def __init__(self, registry: Mirror, keep: str | None):
        self.registry = registry
        self.remote = registry.remote
        self.store = registry.params.store
        self.keep = keep
        self.report = Report()
        self._uploads: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Do all in order."""
        records, where = list(run_files.records(self.store)), self.registry.connection.where
        waiting = [record for record in records if where not in record.confirmed and not record.running]
        running = [record for record in records if record.running]
        self.report.there += sum(where in record.confirmed for record in records)
        for number, record in enumerate(waiting, start=1):
            log.info(f"sync: run {number} of {len(waiting)}: {_title(record)}, {len(record.rows)} rows")
            self._each(_title(record), partial(self._run, record))
        if running:
            log.info(f"sync: {', '.join(_title(record) for record in running)}: under way, left for later")
        else:
            self._artifacts()
        if self.report.missing:
            log.info("sync: aliases stay where they are on W&B until all else is there")
            return
        for model in self.registry.registered_models():
            self._each(f"aliases of {model}", partial(self._aliases, model))

    def end(self) -> None:
        """End what was started and did not end."""
        for process in self._uploads:
            process.kill()
            process.wait()
        abandon()

    def _each(self, what: str, action: Callable[[], list[str]]) -> None:
        """Do something about one item, in bounded time, and note what is missing then."""
        self.registry.connection.patience_s = PATIENCE_S
        try:
            lacking = self.registry.connection.run(action)
        except SilenceError:
            self.report.missing.append(f"{what}: W&B does not answer")
            raise
        except (WandbError, RegistryError, OSError, subprocess.TimeoutExpired) as error:
            lacking = [f"{what}: {one_line(error)}"]
        if lacking:
            self.report.missing += lacking
        else:
            self.report.brought.append(what)

    def _run(self, record: Record) -> list[str]:
        """Bring one run. Returns what W&B lacks of it then; what was removed meanwhile is not brought."""
        if gone := [ref for ref in record.made if not self.registry.local.has(ref)]:
            log.info(f"sync: {', '.join(gone)}: pruned before it was on W&B, left out")
            record = replace(record, made=tuple(ref for ref in record.made if ref not in gone))
        if lost := [medium for medium in record.media if not media.path(self.store, medium).exists()]:
            log.info(f"sync: {', '.join(one.name for one in lost)} of {_title(record)}: the file is gone, left out")
            record = replace(record, media=tuple(one for one in record.media if one not in lost))
        there = self.remote.run(record.key)
        if there is None or not dict(there.summary_metrics):  # nothing of it: a part would stand there twice
            folders = [self.registry.params.store_paths.wandb / path for path in record.folders]
            if recorded := [folder for folder in folders if list(folder.glob("*.wandb"))]:
                for folder in recorded:
                    self._upload(record, folder)
                missing(self.remote, replace(record, used=(), made=()))  # what W&B just took it may show a little later
                there = self.remote.run(record.key)
        made = [self.registry.local.resolve(ref) for ref in record.made]
        lacking = ["all"] if there is None else missing(self.remote, record, settling_s=0)
        if any("its input" not in reason for reason in lacking):
            self._resume(record, made, there)
        wrong = [reason for ref in record.used if (reason := self.remote.use(record.key, ref))]
        lacking = [reason for version in made if (reason := self.remote.missing(version))]
        lacking = lacking or missing(self.remote, record)
        if not lacking:
            RunFile(self.store, record.key).append("confirmed", where=self.registry.connection.where)
            return []
        return wrong or lacking

    def _upload(self, record: Record, folder: Path) -> None:
        """Have wandb upload what it recorded of a run: rows, final values, pictures. Its exit code tells nothing."""
        connection = self.registry.connection
        command = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-online", "--include-synced"]
        command += ["--id", record.key, "--entity", connection.mode.entity, "--project", connection.project]
        quiet, environment = subprocess.DEVNULL, {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
        process = subprocess.Popen([*command, str(folder)], stdin=quiet, stdout=quiet, stderr=quiet, env=environment)
        self._uploads.append(process)
        process.wait(timeout=UPLOAD_TIMEOUT_S)

    def _resume(self, record: Record, made: list[Version], there: Any) -> None:
        """Log what W&B lacks of a run, by going on with it, and leave it as it ended."""
        rows = unlogged(record.rows, history(there, len(record.rows)) if there is not None else [])
        lost = unshown(there, record) if there is not None else record.media
        run = self.remote.resume(record)
        try:
            with Errors():
                for row in rows:
                    step = row.get(STEP, -1)
                    values = {key: value for key, value in row.items() if key != STEP}
                    # Steps cannot go back; a row without one gets its own, since W&B merges rows of the same step.
                    run.log(values, step=step if step >= run.step else None)
                for medium in lost:
                    run.log({medium.name: media.shown(self.store, medium)})
                run.summary.update(dict(record.summary))
            for version in made:
                self.remote.log(run, version, self.registry.local.open(version))
        finally:
            with Errors():
                run.finish(exit_code=EXIT_CODES.get(record.finished or "failed", 1))

    def _artifacts(self) -> None:
        """Look for every version whose files are here; those that no run brought come by a run of their own."""
        late: list[Version] = []

        def look(version: Version) -> list[str]:
            if self.remote.missing(version):
                late.append(version)
            return []

        versions = [v for name in self.registry.collections() for v in self.registry.versions(name)]
        for version in sorted(versions, key=lambda one: one.created):
            if self.registry.incomplete(version) is None:
                self._each(version.label, partial(look, version))
        if not late or self.report.missing:
            return
        log.info(f"sync: {', '.join(version.label for version in late)}: no run is known that made it")
        file = RunFile(self.store, f"sync-{files.digest_json([version.ref for version in late])[:8]}")
        if file.read() is None:
            file.start(LATE, LATE, "sync", {})
            for version in late:
                file.append("make", ref=version.ref)
            file.append("finish", how="finished")
        record = file.read()
        assert record is not None
        self._each(_title(record), partial(self._run, record))

    def _aliases(self, model: str) -> list[str]:
        if self.keep == "theirs":
            self.registry.pull_aliases(model)
        return self.registry.push_aliases(model, ours=self.keep == "ours")


def _title(record: Record) -> str:
    return record.name if record.name.startswith(record.job_type) else f"{record.job_type} {record.name}"
