"""Report a running sweep: one line per trial, W&B runs, and the checkpoints of the best trials.

This runs in the driver: a W&B run inside a trial loses its end when ASHA stops the trial, and Ray's own W&B callback
starts two processes per trial.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence

from tqdm import tqdm

from flywheel import files
from flywheel.sweep import SweepError, estimate
from flywheel.sweep.checkpoints import STATE, CheckpointStore
from flywheel.sweep.estimate import Speed, human_time
from flywheel.sweep.journal import Trial, ranking
from flywheel.sweep.state import SweepState
from flywheel.tracking.runs import Run, Tracker

log = logging.getLogger(__name__)

SILENT_S = 30  # then a line says how far the running trials are, where no progress bar does


class Recorder:
    """Copies trials to W&B, logs a line per trial, and removes checkpoints that are no longer needed."""

    def __init__(self, state: SweepState, store: CheckpointStore, tracker: Tracker):
        self.params = state.params
        self.state = state
        self.store = store
        self.tracker = tracker
        self.peak_bytes = 0
        self._runs: dict[str, Run] = {}
        self._logged_at = 0.0  # until the first step
        self._bar = tqdm(desc="sweep", unit=" epochs", mininterval=0.5, disable=None)  # on a terminal only

    def on_speeds(self, speeds: Sequence[Speed], concurrent: int) -> None:
        """Log how long the sweep may take. Raises SweepError if the disk may be too small."""
        left = self.params.sweep.trials - self.state.ended
        seconds, most_seconds, disk_bytes = estimate.estimate(self.params, concurrent, left, speeds)
        needed = files.human_size(disk_bytes)
        self.log(f"sweep: about {human_time(seconds)}, at most {human_time(most_seconds)} and {needed} of disk")
        if self.store.directory is not None:
            self.store.directory.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.store.directory).free
            if free + self.store.size_bytes() < disk_bytes:  # this sweep replaces its earlier checkpoints
                raise SweepError(
                    f"{self.store.uri} has {files.human_size(free)} free and the sweep may need {needed}; "
                    "free space or set paths.checkpoints"
                )

    def on_trial_start(self, trial: Trial) -> None:
        """Start a W&B run. A trial that continues gets a new run with all its epochs; the old run stays as it is."""
        title = f"{trial.config['architecture']}-{trial.number:03d}"
        details = {**trial.config, "bayesian": trial.bayesian, "sweep_id": self.state.journal.sweep_id}
        name = trial.id if trial.runs == 1 else f"{trial.id}-{trial.runs}"
        self._runs[trial.id] = run = self.tracker.start("trial", title, details, id=name)
        for epoch in trial.epochs:
            run.log(epoch, step=epoch["epoch"])

    def on_trial_result(self, trial: Trial) -> None:
        """Log the last epoch to W&B."""
        last = trial.epochs[-1]
        self._runs[trial.id].log(last, step=last["epoch"])
        self._bar.set_postfix(running=len(self.state.running), accuracy=f"{last['accuracy']:.2%}", refresh=False)
        self._bar.update()

    def on_step(self) -> None:
        """Log how far the running trials are if nothing was logged for a while and no progress bar is shown."""
        now = time.monotonic()
        self._logged_at = self._logged_at or now
        if not self._bar.disable or now - self._logged_at < SILENT_S:
            return
        sweep, state = self.params.sweep, self.state
        running = [trial for trial in state.trials.values() if trial.id in state.running]
        told = [f"trial {trial.number} after epoch {len(trial.epochs)} of {sweep.epochs}" for trial in running]
        self.log(f"sweep: {state.ended}/{sweep.trials} ended; {', '.join(told) or 'no trial runs yet'}")

    def on_worker_died(self, trial: Trial) -> None:
        """Log that a trial lost its worker and continues from its last checkpoint."""
        self.log(f"sweep: the worker of trial {trial.number} died; it goes on from its last checkpoint")
        if run := self._runs.pop(trial.id, None):
            run.end("failed")

    def on_trial_end(self, trial: Trial) -> None:
        """Log how a trial ended, and keep its weights if it is among the best."""
        self.peak_bytes = max(self.peak_bytes, self.store.size_bytes())
        best = self._keep_best()
        if run := self._runs.pop(trial.id, None):
            # Without machine_info only the kind of an error: its text may name paths and hosts.
            error = trial.error
            if error is not None and not self.params.tracking.machine_info:
                error = error.partition(":")[0].partition("(")[0].strip()
            run.summarize({"status": trial.status, "error": error, "best_accuracy": trial.accuracy})
            run.end("failed" if trial.error is not None else "finished")
        self.log(self._line(trial) + (" - best so far" if best[:1] == [trial] else ""))

    def log(self, text: str) -> None:
        """Log a line without disturbing the progress bar."""
        self._logged_at = time.monotonic()
        self._bar.clear()
        log.info(text)
        self._bar.refresh()

    def close(self) -> None:
        """Close the progress bar, and the W&B runs of trials that have not ended."""
        self._bar.close()
        for trial, run in self._runs.items():
            run.summarize({"status": "interrupted", "best_accuracy": self.state.trials[trial].accuracy})
            run.end("interrupted")
        self._runs.clear()

    def _keep_best(self) -> list[Trial]:
        """Of the trials that ended, keep only the weights of the best. Returns the best, in order."""
        best = ranking(self.state.trials.values())[: self.params.sweep.keep_checkpoints]
        for name in self.store.names():
            trial = self.state.trials.get(name)
            if trial is None:
                continue  # a check of joining nodes (preflight) has a folder there, too
            if trial in best:
                self.store.subfolder(name).remove(STATE)
            elif trial.status != "running":
                self.store.remove(name)
        return best

    def _line(self, trial: Trial) -> str:
        searched = [trial.config[name] for name in self.params.sweep.space]
        values = " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in searched)
        outcome = trial.error or ("no epoch" if trial.accuracy is None else f"{trial.accuracy:.2%}")
        return (
            f"sweep: {self.state.ended}/{self.params.sweep.trials} {values}: {trial.status} {outcome} "
            f"({files.count(len(trial.epochs), 'epoch')}, {trial.time_s:.0f} s)"
        )
