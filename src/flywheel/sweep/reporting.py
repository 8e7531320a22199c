"""What a sweep shows and keeps while it runs: a line a trial, W&B runs, the weights of the best.

Runs in the driver: a W&B run inside a trial loses what ASHA stops, and Ray's own W&B callback starts
two processes a trial.
"""

from __future__ import annotations

import logging

from tqdm import tqdm

from flywheel.params import Params
from flywheel.sweep.checkpoints import Checkpoints, Place
from flywheel.sweep.journal import Trial, ranking
from flywheel.sweep.state import Campaign
from flywheel.tracking.runs import Run, Tracker

log = logging.getLogger(__name__)


class Recorder:
    """Mirrors trials to W&B, prints a line a trial, removes the files of trials that ended and are not the best."""

    def __init__(self, params: Params, campaign: Campaign, place: Place, tracker: Tracker):
        self.params = params
        self.campaign = campaign
        self.place = place
        self.tracker = tracker
        self.peak_bytes = 0
        self._runs: dict[str, Run] = {}
        self._bar = tqdm(desc="sweep", unit=" epochs", mininterval=0.5, disable=None)  # on a terminal only

    def started(self, trial: Trial) -> None:
        """Begin a W&B run; one that goes on has a new run with all its epochs, and the old one stays as it ended."""
        title = f"{trial.config['architecture']}-{trial.number:03d}"
        details = {**trial.config, "bayesian": trial.bayesian, "sweep_id": self.campaign.journal.sweep_id}
        name = trial.id if trial.runs == 1 else f"{trial.id}-{trial.runs}"
        self._runs[trial.id] = run = self.tracker.start("trial", title, details, id=name)
        for epoch in trial.epochs:
            run.log(epoch, step=epoch["epoch"])

    def epoch(self, trial: Trial, running: int) -> None:
        """Mirror an epoch."""
        last = trial.epochs[-1]
        self._runs[trial.id].log(last, step=last["epoch"])
        self._bar.set_postfix(running=running, accuracy=f"{last['accuracy']:.2%}", refresh=False)
        self._bar.update()

    def lost(self, trial: Trial) -> None:
        """Say that a worker died and the trial goes on from its last checkpoint."""
        self._line(f"sweep: the worker of trial {trial.number} died; it goes on from its last checkpoint")
        if run := self._runs.pop(trial.id, None):
            run.end("failed")

    def ended(self, trial: Trial) -> None:
        """Say how a trial ended and keep its weights if it is among the best."""
        self.peak_bytes = max(self.peak_bytes, self.place.size())
        kept = self.keep_the_best()
        if run := self._runs.pop(trial.id, None):
            # Its kind alone unless asked for: the text of an error may name paths and hosts.
            told = self.params.tracking.machine_info or trial.error is None
            error = trial.error if told else str(trial.error).partition(":")[0].partition("(")[0].strip()
            run.summarize({"status": trial.status, "error": error, "best_accuracy": trial.accuracy})
            run.end("failed" if trial.error is not None else "finished")
        self._line(self._outcome(trial, is_best=bool(kept) and kept[0] is trial))

    def keep_the_best(self) -> list[Trial]:
        """Remove the files of trials that ended, but for the weights of the best. Returns those, best first."""
        kept = ranking(self.campaign.trials.values())[: self.params.sweep.keep_checkpoints]
        for name in self.place.names():
            trial = self.campaign.trials.get(name)
            if trial is None or trial.status != "running":
                checkpoints = Checkpoints(self.place, name)
                checkpoints.drop_state() if trial in kept else checkpoints.drop()
        return kept

    def reached(self, running: int, seconds: float) -> None:
        """Say that as many trials run as fit."""
        self._line(f"sweep: {running} at a time, {seconds:.1f} s after the start")

    def waits(self, running: int, wanted: int, seconds: float) -> None:
        """Say that fewer trials run than fit."""
        self._line(f"sweep: {running} of {wanted} trials run after {seconds:.0f} s; see ray status for what holds it")

    def close(self) -> None:
        """Close the progress bar, and the W&B runs of trials that were cut short."""
        self._bar.close()
        for trial, run in self._runs.items():
            run.summarize({"status": "interrupted", "best_accuracy": self.campaign.trials[trial].accuracy})
            run.end("interrupted")
        self._runs.clear()

    def _line(self, text: str) -> None:
        self._bar.clear()
        log.info(text)
        self._bar.refresh()

    def _outcome(self, trial: Trial, is_best: bool) -> str:
        searched = [trial.config[name] for name in self.params.sweep.space]
        values = " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in searched)
        outcome = trial.error or ("no epoch" if trial.accuracy is None else f"{trial.accuracy:.2%}")
        epochs = f"{len(trial.epochs)} {'epoch' if len(trial.epochs) == 1 else 'epochs'}"
        return (
            f"sweep: {self.campaign.ended}/{self.params.sweep.trials} {values}: {trial.status} {outcome} "
            f"({epochs}, {trial.time_s:.0f} s){' - best so far' if is_best else ''}"
        )
