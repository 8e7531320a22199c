"""The state of a sweep, without Ray: it chooses the next trial and takes the results and ends of trials.

The state is rebuilt by replaying the journal: the searcher gets every result, ASHA gets its intermediate results, and
trials that had not ended are queued.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any

from flywheel.params import Params
from flywheel.sweep.asha import Asha
from flywheel.sweep.journal import METRIC, Journal, Trial
from flywheel.sweep.searcher import Searcher

MAX_WORKER_FAILURES = 3  # in a row, without an epoch in between; then the trial has failed


class SweepState:
    """The trials by id, the ids of those that run now (`running`) and of those that will run again (`queued`)."""

    def __init__(self, params: Params, journal: Journal, retry_failed: bool = False):
        """Replay a journal, which may be empty. `retry_failed` queues the failed trials again."""
        self.params = params
        self.journal = journal
        self.searcher = Searcher(params)
        self.asha = Asha(params.sweep.epochs if params.sweep.early_stopping else 0)
        self.trials: dict[str, Trial] = {}
        self.queued: deque[str] = deque()
        self.running: set[str] = set()
        self._worker_failures: dict[str, int] = {}
        self._replay(retry_failed)

    @property
    def ended(self) -> int:
        """The number of trials that ended."""
        return sum(trial.status != "running" for trial in self.trials.values())

    @property
    def is_complete(self) -> bool:
        """Whether as many trials ended as the params ask for."""
        return self.ended >= self.params.sweep.trials

    def next_trial(self, concurrent: int) -> Trial | None:
        """Return a trial to run now, or None while `concurrent` trials run or when no more are needed."""
        if len(self.running) >= concurrent or self.ended + len(self.running) >= self.params.sweep.trials:
            return None
        if self.queued:
            trial = self.trials[self.queued.popleft()]
        else:
            new = self.searcher.propose(concurrent)
            trial = Trial(uuid.uuid4().hex[:8], new.number, new.recipe, new.bayesian, point=new.point)
            self.trials[trial.id] = trial
            self.journal.start(trial)
        self.running.add(trial.id)
        return trial

    def on_trial_start(self, trial: Trial) -> None:
        """Record that a trial started."""
        trial.runs += 1
        self.journal.append("run", trial.id)

    def on_trial_result(self, trial: Trial, epoch: int, metrics: Mapping[str, Any]) -> bool:
        """Record the metrics of an epoch and return whether the trial should stop."""
        trial.record_epoch(epoch, metrics)
        self._worker_failures.pop(trial.id, None)
        self.journal.epoch(trial, epoch, metrics)
        self.searcher.report(trial.number, epoch, metrics[METRIC])
        return self.asha.should_stop(trial.id, epoch, metrics[METRIC])

    def on_trial_end(self, trial: Trial, error: str | None = None) -> None:
        """Record that a trial ended: by itself, because it should stop, or with an error."""
        complete = len(trial.epochs) >= self.params.sweep.epochs
        trial.status, trial.error = "failed" if error else "finished" if complete else "stopped", error
        self.running.discard(trial.id)
        self.journal.end(trial)
        self.searcher.tell(trial.number, trial.status, trial.accuracy)

    def on_worker_died(self, trial: Trial) -> bool:
        """Queue a trial whose worker died. Returns False instead if its workers died too often: it has failed."""
        self._worker_failures[trial.id] = self._worker_failures.get(trial.id, 0) + 1
        if self._worker_failures[trial.id] >= MAX_WORKER_FAILURES:
            return False
        self.running.discard(trial.id)
        self.queued.append(trial.id)
        return True

    def _replay(self, retry_failed: bool) -> None:
        record = self.journal.read()
        stopped = {name for name, epoch, accuracy in record.results if self.asha.should_stop(name, epoch, accuracy)}
        for trial in record.trials:
            self.trials[trial.id] = trial
            if trial.status == "failed" and retry_failed:
                trial.status, trial.error = "running", None
                self.journal.append("again", trial.id)
            accuracies = {epoch["epoch"]: epoch[METRIC] for epoch in trial.epochs}
            trial.number = self.searcher.restore(trial.point, trial.status, accuracies, trial.accuracy)
            if trial.status == "running":
                if trial.id in stopped or len(trial.epochs) >= self.params.sweep.epochs:
                    self.on_trial_end(trial)  # killed before the journal had its end
                else:
                    self.queued.append(trial.id)
