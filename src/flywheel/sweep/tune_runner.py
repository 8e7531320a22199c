"""Ray Tune: runs the trials that the campaign names, and tells it what became of them.

Tune's searcher and scheduler interfaces only pass the campaign's word on; its snapshots are not used.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from flywheel.params import Params
from flywheel.sweep import trial
from flywheel.sweep.checkpoints import Place
from flywheel.sweep.cluster import Slots
from flywheel.sweep.journal import Trial
from flywheel.sweep.reporting import Recorder
from flywheel.sweep.searcher import METRIC
from flywheel.sweep.state import Campaign

METRICS = ("train_loss", "loss", METRIC, "learning_rate", "images_per_s")
MACHINE = ("device", "precision", "threads")
SLOW_START_S = 10
# Tune's own snapshots are not used, and how many trials may wait for a worker is decided by `Slots`.
TUNE_SETTINGS = {"TUNE_GLOBAL_CHECKPOINT_S": "86400", "TUNE_MAX_PENDING_TRIALS_PG": "100000"}


class TimeIsUp(BaseException):
    """The sweep's time budget is spent. Not an Exception: Tune would tidy up for many seconds."""


def run(
    params: Params,
    data: Any,
    campaign: Campaign,
    place: Place,
    slots: Slots,
    recorder: Recorder,
    *,
    until: float | None = None,
    function: Callable[..., None] = trial.train,
) -> bool:
    """Run trials until all have ended. Returns False when time.monotonic() reached `until` before.

    `function` runs a trial. Raises SweepError when the journal cannot be written, KeyboardInterrupt at a signal.
    """
    os.environ.update(TUNE_SETTINGS)
    scratch = params.store_paths.scratch("tune")  # what Tune writes; nobody reads it
    shutil.rmtree(scratch, ignore_errors=True)
    callback = _Callback(campaign, slots, recorder, until)
    trainable = tune.with_parameters(function, data=data, place=place, interval_s=params.sweep.checkpoint_interval_s)
    tuner = tune.Tuner(
        tune.with_resources(trainable, slots.resources.per_trial()),
        tune_config=tune.TuneConfig(
            search_alg=_Proposals(campaign, slots),
            scheduler=_Halving(callback),
            num_samples=-1,
            reuse_actors=True,  # a fresh worker costs 2 s
            trial_dirname_creator=lambda one: str(one.trial_id),
        ),
        run_config=tune.RunConfig(
            name=campaign.journal.sweep_id,
            storage_path=str(scratch),
            callbacks=[callback],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    try:
        tuner.fit()
    except TimeIsUp:
        return False
    except Exception:
        if callback.trouble is not None:
            raise callback.trouble from None  # Tune wraps it in its own traceback
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


class _Proposals(Searcher):
    """Tune asks for trials; it also asks when it cannot run any."""

    def __init__(self, campaign: Campaign, slots: Slots):
        super().__init__(metric=METRIC, mode="max")
        self.campaign = campaign
        self.slots = slots

    def suggest(self, trial_id: str) -> Any:
        if self.campaign.over:
            return str(Searcher.FINISHED)
        chosen = self.campaign.next(self.slots.now())
        if chosen is None:
            return None
        return {"trial": chosen.id, "recipe": chosen.config, "known": len(chosen.epochs)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: the callback tells the campaign, with the reason."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None:
        """Keep nothing for Tune's own resume: the journal is the truth."""


class _Halving(FIFOScheduler):
    """Tune gives every result to the scheduler first: here the campaign takes it and says whether to go on."""

    def __init__(self, callback: _Callback):
        super().__init__()  # type: ignore[no-untyped-call]
        self.callback = callback

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stops = self.callback.take(trial, result)
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)


class _Callback(tune.Callback):
    """Passes what happens to the campaign and the recorder."""

    def __init__(self, campaign: Campaign, slots: Slots, recorder: Recorder, until: float | None):
        self.campaign = campaign
        self.slots = slots
        self.recorder = recorder
        self.until = until
        self.trouble: Exception | None = None
        self._running: dict[str, tuple[float, float]] = {}  # since when, and the trial's time before
        self._began = time.monotonic()
        self._reached = 0
        self._said_slow = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Tune's snapshots: they are not used, and W&B's thread cannot be in one."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the sweep when its time is up; say when all places are taken."""
        now = time.monotonic()
        if self.until is not None and now >= self.until:
            raise TimeIsUp
        left = len(self.campaign.trials) - self.campaign.ended
        wanted, running = min(self.slots.now(), max(left, 1)), len(self._running)
        if running >= wanted and running > self._reached:
            self._reached = running
            self.recorder.reached(running, now - self._began)
        if not self._said_slow and not self._reached and now - self._began > SLOW_START_S:
            self._said_slow = True
            self.recorder.waits(running, wanted, SLOW_START_S)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take that a trial runs."""
        record = self._record(trial)
        self._running[record.id] = (time.monotonic(), record.time_s)
        self._guarded(lambda: self.campaign.runs(record))
        self.recorder.started(record)

    def take(self, trial: Any, result: dict[str, Any]) -> bool:
        """Take an epoch; returns whether the trial is to stop."""
        record = self._record(trial)
        record.time_s, record.node = self._time(record), result["node"]
        record.machine = {key: result[f"machine/{key}"] for key in MACHINE}  # Tune flattens what a trial reports
        metrics = {key: result[key] for key in METRICS}
        stops = self._guarded(lambda: self.campaign.epoch(record, result["epoch"], metrics))
        self.recorder.epoch(record, len(self._running))
        return bool(stops)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take that a trial ended by itself or on the campaign's word."""
        self._end(self._record(trial), None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take that a trial raised an error, or that its worker died and another must go on."""
        record = self._record(trial)
        reason, died = reason_of(trial)
        if died and self.campaign.lost(record):
            self._running.pop(record.id, None)
            self.recorder.lost(record)
        else:
            self._end(record, reason)

    def _end(self, record: Trial, error: str | None) -> None:
        record.time_s = self._time(record)
        self._running.pop(record.id, None)
        self._guarded(lambda: self.campaign.end(record, error))
        self._guarded(lambda: self.recorder.ended(record))

    def _record(self, trial: Any) -> Trial:
        return self.campaign.trials[trial.config["trial"]]

    def _time(self, record: Trial) -> float:
        since, before = self._running.get(record.id, (time.monotonic(), record.time_s))
        return before + time.monotonic() - since

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            self.trouble = error
            raise


def reason_of(trial: Any) -> tuple[str, bool]:
    """Return one line on why a trial failed, and whether its worker died rather than raised an error."""
    from ray import cloudpickle
    from ray.exceptions import RayTaskError

    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError, AttributeError, EOFError):
        return "the worker process died", True
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    text = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
    return (text, False) if isinstance(error, RayTaskError) else (f"the worker process died ({text[:120]})", True)
