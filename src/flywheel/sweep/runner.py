"""Ray Tune: schedules the trials that the searcher proposes, and keeps the journal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from tqdm import tqdm

from flywheel import files
from flywheel.params import Params
from flywheel.sweep import trial
from flywheel.sweep.cluster import Resources
from flywheel.sweep.journal import Journal, Trial, best
from flywheel.sweep.searcher import METRIC, StudySearcher
from flywheel.tracking import Run, Tracker
from flywheel.training import TrainingData

REDUCTION_FACTOR = 2  # rungs at a third and at two thirds of the epochs


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
    searcher = StudySearcher(params, resources.concurrent)
    recorder = Recorder(params, journal, searcher, tracker, say)
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    train = tune.with_parameters(trial.train, data=data, scratch=str(scratch))
    trainable = tune.with_resources(train, resources.per_trial())
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
    try:
        tuner.fit()
    finally:
        recorder.close()
    if recorder.ended < params.sweep.trials:
        raise KeyboardInterrupt  # Tune takes the signal for itself and returns
    return recorder


def scheduler(params: Params) -> TrialScheduler:
    """Return ASHA (Li et al., arXiv 1810.05934) with a grace of a third of the epochs, or plain order.

    At each rung a trial goes on if it is in the better half of those that came so far.
    """
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
        self.trials: dict[str, Trial] = {}
        self.weights: Path | None = None  # of the best trial that ended
        self.peak_bytes = 0
        self._started: dict[str, float] = {}
        self._runs: dict[str, Run] = {}
        self._bar = tqdm(desc="sweep", unit=" epochs", mininterval=0.5, disable=None)  # on a terminal only

    @property
    def ended(self) -> int:
        """How many trials ended."""
        return sum(trial.status != "running" for trial in self.trials.values())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Journal the start and begin the W&B run."""
        name, config = trial.trial_id, dict(trial.config)
        record = Trial(name, self.searcher.numbers[name], config, self.searcher.bayesian[name])
        self.trials[name], self._started[name] = record, time.monotonic()
        self.journal.start(record)
        title = f"{config['architecture']}-{record.number:03d}"
        details = {**config, "bayesian": record.bayesian, "sweep_id": self.journal.path.stem}
        self._runs[name] = self.tracker.start("trial", title, details, id=name)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Journal an epoch."""
        name, epoch = trial.trial_id, result["epoch"]
        metrics = {key: result[key] for key in ("train_loss", "loss", METRIC, "learning_rate", "images_per_s")}
        self.trials[name].epochs.append({"epoch": epoch, **metrics})
        self.trials[name].machine = result["machine"]
        self.journal.epoch(name, epoch, metrics)
        self._runs[name].log({"epoch": epoch, **metrics}, step=epoch)
        self._bar.set_postfix(running=len(self._runs), accuracy=f"{result[METRIC]:.2%}", refresh=False)
        self._bar.update()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Journal how a trial ended and keep its weights if it is the best so far."""
        record = self.trials[trial.trial_id]
        record.status = "finished" if len(record.epochs) >= self.params.sweep.epochs else "stopped"
        self._end(record, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Journal a failure with its reason; the sweep goes on."""
        record = self.trials[trial.trial_id]
        record.status, record.error = "failed", reason_of(trial)
        self._end(record, trial)

    def close(self) -> None:
        """Close the progress bar, and the W&B runs of trials that were cut short."""
        self._bar.close()
        while self._runs:
            self._runs.popitem()[1].finish(failed=True)

    def _end(self, record: Trial, trial: Any) -> None:
        record.time_s = round(time.monotonic() - self._started[record.id], 3)
        self.journal.end(record)
        is_best = best(self.trials.values()) is record
        if trial.checkpoint is not None:
            folder = Path(trial.checkpoint.path)
            self.peak_bytes = max(self.peak_bytes, files.size_of(folder.parents[1]))
            loser = self.weights if is_best else folder
            self.weights = folder if is_best else self.weights
            if loser is not None:
                shutil.rmtree(loser, ignore_errors=True)
        run = self._runs.pop(record.id)
        run.summarize({"status": record.status, "error": record.error, "best_accuracy": record.accuracy})
        run.finish(failed=record.error is not None)
        self._bar.clear()
        self.say(self._line(record, is_best))
        self._bar.refresh()

    def _line(self, record: Trial, is_best: bool) -> str:
        searched = [record.config[name] for name in self.params.sweep.space]
        values = " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in searched)
        outcome = record.error or ("no epoch" if record.accuracy is None else f"{record.accuracy:.2%}")
        epochs = f"{len(record.epochs)} {'epoch' if len(record.epochs) == 1 else 'epochs'}"
        return (
            f"sweep: {self.ended}/{self.params.sweep.trials} {values}: {record.status} {outcome} "
            f"({epochs}, {record.time_s:.0f} s){' - best so far' if is_best else ''}"
        )


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
