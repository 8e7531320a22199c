"""A sweep under way, without Ray: which trial is next, what an epoch means, what an ending means.

All that it knows stands in the journal, so a campaign that opens a journal stands where the one before it
stood: the searcher has been told every trial, the rungs are filled, trials that had not ended wait.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any

from flywheel.params import Params
from flywheel.sweep.asha import Asha
from flywheel.sweep.journal import Journal, Trial
from flywheel.sweep.searcher import METRIC, Searcher

DEATHS = 3  # in a row without an epoch between: then it is the trial that kills its workers


class Campaign:
    """The state of a sweep. `trials` are by id; `waiting` those that are to run again, `live` those that run."""

    def __init__(self, params: Params, journal: Journal, again: bool = False):
        """Open a journal, new or not; `again`: trials that failed are to run again."""
        self.params = params
        self.journal = journal
        self.searcher = Searcher(params)
        self.asha = Asha(params.sweep.epochs) if params.sweep.early_stopping else None
        self.trials: dict[str, Trial] = {}
        self.waiting: deque[str] = deque()
        self.live: set[str] = set()
        self._deaths: dict[str, int] = {}
        self._replay(again)

    @property
    def ended(self) -> int:
        """How many trials ended."""
        return sum(trial.status != "running" for trial in self.trials.values())

    @property
    def over(self) -> bool:
        """Whether all trials ended."""
        return self.ended >= self.params.sweep.trials

    def next(self, concurrent: int) -> Trial | None:
        """Return a trial to run now, or None while so many run already or all that are asked for do."""
        if len(self.live) >= concurrent or self.ended + len(self.live) >= self.params.sweep.trials:
            return None
        if self.waiting:
            trial = self.trials[self.waiting.popleft()]
        else:
            proposal = self.searcher.propose(concurrent)
            trial = Trial(
                uuid.uuid4().hex[:8], proposal.number, proposal.recipe, proposal.bayesian, point=proposal.point
            )
            self.trials[trial.id] = trial
            self.journal.start(trial)
        self.live.add(trial.id)
        return trial

    def runs(self, trial: Trial) -> None:
        """Take that a trial runs."""
        trial.runs += 1
        self.journal.run(trial)

    def epoch(self, trial: Trial, epoch: int, metrics: Mapping[str, Any]) -> bool:
        """Take an epoch's metrics and return whether the trial is to stop."""
        trial.take(epoch, metrics)
        self._deaths.pop(trial.id, None)
        self.journal.epoch(trial, epoch, metrics)
        self.searcher.report(trial.number, epoch, metrics[METRIC])
        return self.asha is not None and self.asha.stops(trial.id, epoch, metrics[METRIC])

    def end(self, trial: Trial, error: str | None = None) -> None:
        """Take that a trial ended: by itself, stopped on our word, or with an error."""
        complete = len(trial.epochs) >= self.params.sweep.epochs
        trial.status, trial.error = "failed" if error else "finished" if complete else "stopped", error
        self.live.discard(trial.id)
        self.journal.end(trial)
        self.searcher.tell(trial.number, trial.status, trial.accuracy)

    def lost(self, trial: Trial) -> bool:
        """Take that a trial's worker died. Returns whether the trial is to run again; else it is the trial's fault."""
        self._deaths[trial.id] = self._deaths.get(trial.id, 0) + 1
        if self._deaths[trial.id] >= DEATHS:
            return False
        self.live.discard(trial.id)
        self.waiting.append(trial.id)
        return True

    def _replay(self, again: bool) -> None:
        record = self.journal.read()
        stopped: set[str] = set()
        for name, epoch, accuracy in record.told:
            if self.asha is not None and self.asha.stops(name, epoch, accuracy):
                stopped.add(name)
        for trial in record.trials:
            self.trials[trial.id] = trial
            if trial.status == "failed" and again:
                trial.status, trial.error = "running", None
                self.journal.again(trial)
            accuracies = {epoch["epoch"]: epoch[METRIC] for epoch in trial.epochs}
            trial.number = self.searcher.restore(trial.point, trial.status, accuracies, trial.accuracy)
            if trial.status != "running":
                continue
            if trial.id in stopped or len(trial.epochs) >= self.params.sweep.epochs:
                self.end(trial)  # it was over; only its last line is missing
            else:
                self.waiting.append(trial.id)
