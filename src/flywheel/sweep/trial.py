"""One trial: follow a recipe, report an epoch at a time, keep the best weights and where it stands."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from flywheel.models import device as devices
from flywheel.params import Recipe
from flywheel.sweep import SweepError
from flywheel.sweep.checkpoints import Checkpoints, Place
from flywheel.training.loop import EpochResult, Training, TrainingData


@dataclass(frozen=True)
class Step:
    """An epoch of a trial: its result, whether it is the best so far, and the training, to take weights or state."""

    result: EpochResult
    improved: bool
    training: Training


def start(recipe: Recipe, data: TrainingData, threads: int, device: torch.device | None = None) -> Training:
    """Return the training of a trial before its first epoch.

    With the same recipe, data, thread count and machine the weights are the same to the byte on the CPU:
    this is how a trial is run again from its record.
    """
    torch.set_num_threads(threads)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # what a worker's former trial held is its neighbours' now
    return Training(data.classifier(recipe), data, recipe, device or devices.pick())


def follow(training: Training, best: float = -1.0) -> Iterator[Step]:
    """Train what epochs are left; `best` is the accuracy of the best epoch that was."""
    for result in training.epochs():
        improved = result.accuracy > best
        best = max(best, result.accuracy)
        yield Step(result, improved, training)


def train(config: Mapping[str, Any], data: TrainingData, place: Place, interval_s: float) -> None:
    """Run a trial inside Ray Tune. `config` has its id, its complete recipe, and how many epochs the journal has.

    Goes on from the trial's last state, which is written when `interval_s` seconds passed since the one before.
    Epochs that the journal lacks are reported again from it.
    """
    import ray
    from ray import tune

    recipe = Recipe.model_validate(dict(config["recipe"]))
    resources = tune.get_context().get_trial_resources().required_resources
    threads = max(1, int(resources.get("CPU", 1)))
    # Ray does not hide the GPUs from a trial that was given none.
    device = devices.pick(cuda=resources.get("GPU", 0) > 0)
    checkpoints = Checkpoints(place, config["trial"])
    try:
        training, results, best_epoch = _taken_up(checkpoints, recipe, data, threads, device)
        node = ray.get_runtime_context().get_node_id()
        machine = {"device": device.type, "precision": training.classifier.precision, "threads": threads}
        for result in results[config["known"] :]:
            tune.report({**result, "machine": machine, "node": node})
        state_epoch, written_at = best_epoch, time.monotonic()  # the state's weights must stay with it
        for step in follow(training, max((result["accuracy"] for result in results), default=-1.0)):
            results.append(asdict(step.result))
            if step.improved:
                best_epoch = training.epoch
                checkpoints.save_weights(best_epoch, training.classifier.contents(recipe.model_dump()))
            due = time.monotonic() - written_at >= interval_s and training.epoch < recipe.epochs
            if due:
                state = {"recipe": recipe.model_dump(), "training": training.state(), "results": results}
                checkpoints.save_state(state, best_epoch)
                state_epoch, written_at = best_epoch, time.monotonic()
            tune.report({**results[-1], "machine": machine, "node": node})  # returns when the journal has it
            if step.improved or due:
                checkpoints.tidy(best_epoch, state_epoch)
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(advice(error, recipe, resources.get("GPU", 0))) from None


def _taken_up(
    checkpoints: Checkpoints, recipe: Recipe, data: TrainingData, threads: int, device: torch.device
) -> tuple[Training, list[dict[str, Any]], int]:
    """Return (training, results so far, best epoch so far) of a trial that goes on or starts.

    A state that is missing, damaged, of another recipe or unfit for the code starts it anew.
    """
    training = start(recipe, data, threads, device)
    state = checkpoints.load_state()
    if state is not None and state["recipe"] == recipe.model_dump():
        with contextlib.suppress(KeyError, ValueError, RuntimeError):
            training.restore(state["training"])
            return training, list(state["results"]), int(state["best_epoch"])
        training = start(recipe, data, threads, device)
    return training, [], 0


def repeat(recipe: Recipe, data: TrainingData, place: Place, trial: str, epoch: int, threads: int, cuda: bool) -> float:
    """Train a trial from the start to an epoch, because its weights are lost; keep them. Returns the accuracy."""
    for step in follow(start(recipe, data, threads, devices.pick(cuda))):
        if step.result.epoch == epoch:
            Checkpoints(place, trial).save_weights(epoch, step.training.classifier.contents(recipe.model_dump()))
            return step.result.accuracy
    raise SweepError(f"trial {trial} has no epoch {epoch}")


class OutOfMemory(SweepError):
    """A trial needs more memory than its GPU has left."""


def advice(error: Exception, recipe: Recipe, gpus: float) -> str:
    """Return one line on a CUDA out-of-memory: what it said first, and what to change."""
    reason = str(error).partition(". ")[0]
    shared = f"{int(1 / gpus)} trials share a GPU: set sweep.gpus_per_trial higher, or " if 0 < gpus <= 0.5 else ""
    return f"{reason}; {shared}search smaller batches than {recipe.batch_size} for {recipe.architecture}"
