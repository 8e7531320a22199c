"""Ray Tune: schedules the trials that the searcher proposes, and keeps the journal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from flywheel import files
from flywheel.params import Params
from flywheel.sweep import trial
from flywheel.sweep.cluster import Resources
from flywheel.sweep.journal import Journal
from flywheel.sweep.searcher import METRIC, StudySearcher
from flywheel.tracking import Run, Tracker
from flywheel.training import TrainingData

REDUCTION_FACTOR = 3


def run(
    params: Params,
    data: TrainingData,
    journal: Journal,
    folder: Path,
    resources: Resources,
    tracker: Tracker,
    say: Callable[[str], None] = print,
) -> Recorder:
    """Run all trials; the journal then tells what happened. Weights of the best trial stay below `folder`.

    Raises KeyboardInterrupt when a signal ended the sweep.
    """
    searcher = StudySearcher(params)
    recorder = Recorder(params, journal, searcher, tracker, say)
    trainable = tune.with_resources(tune.with_parameters(trial.train, data=data), resources.per_trial())
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler(params),
            num_samples=params.sweep.trials,
            max_concurrent_trials=resources.concurrent,  # unset, Tune waits for each proposal's trial to start
            reuse_actors=True,  # a fresh worker costs 2 s
            trial_dirname_creator=lambda one: str(one.trial_id),
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            callbacks=[recorder],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()
    if recorder.ended < params.sweep.trials:
        raise KeyboardInterrupt  # Tune takes the signal for itself and returns
    return recorder


def scheduler(params: Params) -> TrialScheduler:
    """Return ASHA (Li et al., arXiv 1810.05934) with a grace of a third of the epochs, or plain order."""
    if not params.sweep.early_stopping:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    epochs = params.sweep.epochs
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        max_t=epochs,
        grace_period=-(-epochs // 3),
        reduction_factor=REDUCTION_FACTOR,
    )


class Recorder(tune.Callback):
    """Writes the journal, mirrors trials to W&B, prints a line a trial, removes the weights of losers.

    Runs in the driver: a W&B run inside a trial loses what ASHA stops, and Ray's own W&B callback starts
    two processes a trial.
    """

    def __init__(
        self,
        params: Params,
        journal: Journal,
        searcher: StudySearcher,
        tracker: Tracker,
        say: Callable[[str], None],
    ):
        self.params = params
        self.journal = journal
        self.searcher = searcher
        self.tracker = tracker
        self.say = say
        self.peak_bytes = 0
        self.weights: Path | None = None  # of the best trial that ended
        self._best = -1.0
        self.ended = 0
        self._started: dict[str, float] = {}
        self._accuracy: dict[str, float] = {}
        self._epochs: dict[str, int] = {}
        self._runs: dict[str, Run] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Journal the start and begin the W&B run."""
        name = trial.trial_id
        config = dict(trial.config)
        self._started[name] = time.monotonic()
        self.journal.start(name, config, self.searcher.bayesian[name])
        title = f"{config['architecture']}-{len(self._started) - 1:03d}"
        self._runs[name] = self.tracker.start("trial", title, config, group=self.journal.path.stem, id=name)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Journal an epoch."""
        name = trial.trial_id
        metrics = {key: result[key] for key in ("train_loss", "loss", METRIC, "learning_rate", "images_per_s")}
        self.journal.epoch(name, result["epoch"], metrics)
        self._accuracy[name] = max(result[METRIC], self._accuracy.get(name, -1.0))
        self._epochs[name] = result["epoch"]
        self._runs[name].log({"epoch": result["epoch"], **metrics}, step=result["epoch"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Journal how a trial ended and keep its weights if it is the best so far."""
        complete = self._epochs.get(trial.trial_id, 0) >= self.params.sweep.epochs
        self._end(trial, "finished" if complete else "stopped", None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Journal a failure with its reason; the sweep goes on."""
        self._end(trial, "failed", reason_of(trial))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Close the W&B runs of trials that a signal cut short."""
        for run in self._runs.values():
            run.finish(failed=True)

    def _end(self, trial: Any, status: str, error: str | None) -> None:
        name = trial.trial_id
        seconds = time.monotonic() - self._started[name]
        self.journal.end(name, status, seconds, error)
        accuracy = self._accuracy.get(name)
        self.ended += 1
        self._measure_disk(trial)
        is_best = error is None and accuracy is not None and accuracy > self._best
        loser = None if trial.checkpoint is None else Path(trial.checkpoint.path)
        if is_best and accuracy is not None:
            self._best, self.weights, loser = accuracy, loser, self.weights
        if loser is not None:
            shutil.rmtree(loser, ignore_errors=True)
        run = self._runs.pop(name)
        run.summarize({"status": status, "error": error, "best_accuracy": accuracy})
        run.finish(failed=error is not None)
        self.say(self._line(trial.config, status, error, accuracy, seconds, self._epochs.get(name, 0), is_best))

    def _line(
        self,
        config: Mapping[str, Any],
        status: str,
        error: str | None,
        accuracy: float | None,
        seconds: float,
        epochs: int,
        is_best: bool,
    ) -> str:
        searched = [config[name] for name in self.params.sweep.space]
        values = " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in searched)
        outcome = error if error else f"{accuracy:.2%}" if accuracy is not None else "no epoch"
        plural = "epoch" if epochs == 1 else "epochs"
        return (
            f"sweep: {self.ended}/{self.params.sweep.trials} {values}: {status} {outcome} "
            f"({epochs} {plural}, {seconds:.0f} s){' - best so far' if is_best else ''}"
        )

    def _measure_disk(self, trial: Any) -> None:
        if trial.checkpoint is not None:
            experiment = Path(trial.checkpoint.path).parents[1]
            self.peak_bytes = max(self.peak_bytes, files.size_of(experiment))


def reason_of(trial: Any) -> str:
    """Return one line on why a trial failed: the type and message of what it raised."""
    from ray import cloudpickle
    from ray.exceptions import RayTaskError

    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError):
        return "the worker process died"
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
