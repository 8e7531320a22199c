"""Run trials on Ray Tune.

Tune's interfaces for searchers, schedulers and callbacks only pass events to the `SweepState`, and its decisions to
Tune. Tune's own snapshots are not used.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from flywheel.machine import ray_address
from flywheel.sweep import estimate
from flywheel.sweep.cluster import Slots
from flywheel.sweep.estimate import Speed
from flywheel.sweep.journal import METRIC, Trial
from flywheel.sweep.preflight import Joining
from flywheel.sweep.progress import Recorder
from flywheel.sweep.state import SweepState

METRICS = ("train_loss", "loss", METRIC, "learning_rate", "images_per_s")
MACHINE = ("device", "precision", "threads")
SLOW_START_S = 10
# No snapshots, and no limit on trials that wait for a worker: `Slots` decides how many run.
TUNE_SETTINGS = {"TUNE_GLOBAL_CHECKPOINT_S": "86400", "TUNE_MAX_PENDING_TRIALS_PG": "100000"}


def _train(config: Mapping[str, Any], **arguments: Any) -> None:
    """Run a trial in a worker. Only workers need torch, whose import takes a second or two and 0.5 GB."""
    from flywheel.sweep import trial

    trial.train(config, **arguments)


class TimeIsUp(BaseException):
    """The time budget is used up. Not an Exception, for which Tune would clean up for many seconds."""


def run(
    state: SweepState,
    data: Any,
    recorder: Recorder,
    slots: Slots,
    *,
    until: float | None = None,
    joining: Joining | None = None,
    function: Callable[..., None] = _train,
) -> bool:
    """Run trials until the sweep is complete. Returns False if time.monotonic() reached `until` before.

    `joining` checks nodes that join meanwhile, `function` runs a trial. Raises SweepError when the disk has no room or
    such a node has a fault, OSError when the journal cannot be written, KeyboardInterrupt at a signal.
    """
    os.environ.update(TUNE_SETTINGS)
    params, resources = state.params, slots.resources
    scratch = params.store_paths.scratch("tune")  # for files of Tune that nobody reads
    shutil.rmtree(scratch, ignore_errors=True)
    callback = _Callback(state, slots, recorder, until, joining)
    trainable = tune.with_parameters(
        function, data=data, store=recorder.store, interval_s=params.sweep.checkpoint_interval_s
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": resources.cpus, "gpu": resources.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(callback),
            scheduler=_Scheduler(callback),
            num_samples=-1,
            reuse_actors=True,  # a fresh worker costs 2 s
            trial_dirname_creator=lambda one: str(one.trial_id),
        ),
        run_config=tune.RunConfig(
            name=state.journal.sweep_id,
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
        if callback.error is not None:
            raise callback.error from None  # Tune wraps it in its own traceback
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


class _Searcher(Searcher):
    """Gives Tune the next trial of the state; Tune also asks when it cannot run any."""

    def __init__(self, callback: _Callback):
        super().__init__(metric=METRIC, mode="max")
        self.callback = callback

    def suggest(self, trial_id: str) -> Any:
        state = self.callback.state
        if state.is_complete:
            return str(Searcher.FINISHED)
        chosen = state.next_trial(self.callback.slots.now())
        if chosen is None:
            return None
        measure = [] if self.callback.measured else estimate.recipes(state.params)
        return {"trial": chosen.id, "recipe": chosen.config, "known": len(chosen.epochs), "measure": measure}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: the callback gets the same event with the reason."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None:
        """Save nothing: the journal is enough."""


class _Scheduler(FIFOScheduler):
    """Tune gives each result to the scheduler first, so the state gets it here and decides whether the trial stops."""

    def __init__(self, callback: _Callback):
        super().__init__()  # type: ignore[no-untyped-call]
        self.callback = callback

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "speeds" in result:
            self.callback.on_speeds(result["speeds"])
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP if self.callback.on_result(trial, result) else TrialScheduler.CONTINUE)


class _Callback(tune.Callback):
    """Passes events to the state and the recorder."""

    def __init__(
        self, state: SweepState, slots: Slots, recorder: Recorder, until: float | None, joining: Joining | None
    ):
        self.state = state
        self.slots = slots
        self.recorder = recorder
        self.until = until
        self.joining = joining
        self.error: Exception | None = None
        self.measured = False
        self._started: dict[str, tuple[float, float]] = {}  # trial id -> when it started, its time in earlier runs
        self._began = time.monotonic()
        self._most_running = 0
        self._logged_slow = False

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Tune's snapshots, which cannot hold W&B's thread."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the sweep when its time is up; log when all slots are used, or not soon, and how far the trials are."""
        now = time.monotonic()
        if self.until is not None and now >= self.until:
            raise TimeIsUp
        if self.joining is not None:
            self._guarded(self.joining.look)
        left = len(self.state.trials) - self.state.ended
        wanted, running = min(self.slots.now(), max(left, 1)), len(self._started)
        if running >= wanted and running > self._most_running:
            self._most_running = running
            self.recorder.log(f"sweep: {running} at a time, {now - self._began:.1f} s after the start")
        if not self._logged_slow and not self._most_running and now - self._began > SLOW_START_S:
            self._logged_slow = True
            of_cluster = ray_address.wanted() is not None
            hint = "ray status shows what they wait for" if of_cluster else "the processes of the others are starting"
            self.recorder.log(f"sweep: {running} of {wanted} trials run after {SLOW_START_S} s; {hint}")
        self.recorder.on_step()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial started."""
        record = self._record(trial)
        self._started[record.id] = (time.monotonic(), record.time_s)
        self._guarded(lambda: self.state.on_trial_start(record))
        self.recorder.on_trial_start(record)

    def on_speeds(self, speeds: Sequence[Speed]) -> None:
        """Estimate the time and disk space from the first speeds; trials that start at the same time measure, too."""
        if speeds and not self.measured:
            self.measured = True
            self._guarded(lambda: self.recorder.on_speeds(speeds, self.slots.resources.concurrent))

    def on_result(self, trial: Any, result: dict[str, Any]) -> bool:
        """Record an epoch and return whether the trial should stop."""
        record = self._record(trial)
        record.time_s, record.node = self._time(record), result["node"]
        record.machine = {key: result[f"machine/{key}"] for key in MACHINE}  # Tune flattens results
        metrics = {key: result[key] for key in METRICS}
        should_stop = self._guarded(lambda: self.state.on_trial_result(record, result["epoch"], metrics))
        self.recorder.on_trial_result(record)
        return bool(should_stop)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial finished or was stopped."""
        self._end(self._record(trial), None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial failed, or that its worker died and it must run again."""
        record = self._record(trial)
        reason, died = error_of(trial)
        if died and self.state.on_worker_died(record):
            self._started.pop(record.id, None)
            self.recorder.on_worker_died(record)
        else:
            self._end(record, reason)

    def _end(self, record: Trial, error: str | None) -> None:
        record.time_s = self._time(record)
        self._started.pop(record.id, None)
        self._guarded(lambda: self.state.on_trial_end(record, error))
        self._guarded(lambda: self.recorder.on_trial_end(record))

    def _record(self, trial: Any) -> Trial:
        return self.state.trials[trial.config["trial"]]

    def _time(self, record: Trial) -> float:
        started, before = self._started.get(record.id, (time.monotonic(), record.time_s))
        return before + time.monotonic() - started

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            self.error = error
            raise


def error_of(trial: Any) -> tuple[str, bool]:
    """Return the error of Tune's trial in one line, and whether its worker died (rather than raised it)."""
    from ray import cloudpickle
    from ray.exceptions import RayTaskError

    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError, AttributeError, EOFError):
        return "the worker process died", True
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    text = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
    return (text, False) if isinstance(error, RayTaskError) else (f"the worker process died ({text[:120]})", True)
