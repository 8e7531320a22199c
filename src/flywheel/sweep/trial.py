"""Train one trial: report each epoch, save the best weights, and save the state so that it can continue."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from flywheel.models import device as devices
from flywheel.params import Recipe
from flywheel.sweep import SweepError, estimate, nodes
from flywheel.sweep.checkpoints import Checkpoints, CheckpointStore
from flywheel.sweep.journal import METRIC
from flywheel.sweep.nodes import NodeData
from flywheel.training.loop import EpochResult, Training, TrainingData


class OutOfMemory(SweepError):
    """A trial needs more memory than its GPU has left."""


def start(recipe: Recipe, data: TrainingData, threads: int, device: torch.device) -> Training:
    """Return a training before its first epoch.

    On the CPU the weights are the same to the byte for the same recipe, data, number of threads and machine.
    """
    torch.set_num_threads(threads)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # return the memory of the worker's former trial to trials on the same GPU
    return Training(data.classifier(recipe), data, recipe, device)


def follow(training: Training, best: float = -1.0) -> Iterator[tuple[EpochResult, bool]]:
    """Train the remaining epochs; yield each result, and whether it is better than `best` and all before it."""
    for result in training.epochs():
        improved = result.accuracy > best
        best = max(best, result.accuracy)
        yield result, improved


def train(config: Mapping[str, Any], data: NodeData, store: CheckpointStore, interval_s: float) -> None:
    """Run a trial inside Ray Tune.

    `config` has the trial's id, its recipe, the number of epochs in the journal, and the recipes whose speed the trial
    measures and reports first. The trial continues from its last saved state and first reports the epochs that the
    journal lacks. The state is saved at the end of an epoch if `interval_s` seconds passed since the last time.
    """
    from ray import tune

    recipe = Recipe.model_validate(dict(config["recipe"]))
    resources = tune.get_context().get_trial_resources().required_resources
    threads = max(1, int(resources.get("CPU", 1)))
    device = devices.pick(cuda=resources.get("GPU", 0) > 0)  # Ray does not hide GPUs from a trial without one
    checkpoints = Checkpoints(store, config["trial"])
    try:
        opened, node = data.open(), nodes.here()
        if config["measure"]:
            torch.set_num_threads(threads)
            tune.report({METRIC: 0.0, "speeds": estimate.measure(config["measure"], opened, device)})
        training, results, best_epoch = restore(checkpoints, recipe, opened, threads, device)
        machine = {"device": device.type, "precision": training.classifier.precision, "threads": threads}
        for result in results[config["known"] :]:
            tune.report({**result, "machine": machine, "node": node})
        state_epoch, saved_at = best_epoch, time.monotonic()  # the weights of this epoch belong to the saved state
        for epoch, improved in follow(training, max((result["accuracy"] for result in results), default=-1.0)):
            results.append(asdict(epoch))
            if improved:
                best_epoch = training.epoch
                checkpoints.save_weights(best_epoch, training.classifier.contents(recipe.model_dump()))
            due = time.monotonic() - saved_at >= interval_s and training.epoch < recipe.epochs
            if due:
                state = {"recipe": recipe.model_dump(), "training": training.state(), "results": results}
                checkpoints.save_state(state, best_epoch)
                state_epoch, saved_at = best_epoch, time.monotonic()
            tune.report({**results[-1], "machine": machine, "node": node})  # returns when it is in the journal
            if improved or due:
                checkpoints.keep_weights(best_epoch, state_epoch)
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(_advice(error, recipe, resources.get("GPU", 0))) from None


def restore(
    checkpoints: Checkpoints, recipe: Recipe, data: TrainingData, threads: int, device: torch.device
) -> tuple[Training, list[dict[str, Any]], int]:
    """Return (training, results so far, best epoch so far) from the saved state.

    If the state is missing, damaged, of another recipe or does not fit the code, the trial starts anew.
    """
    training = start(recipe, data, threads, device)
    state = checkpoints.load_state()
    if state is not None and state["recipe"] == recipe.model_dump():
        with contextlib.suppress(KeyError, ValueError, RuntimeError):
            training.restore(state["training"])
            return training, list(state["results"]), int(state["best_epoch"])
        training = start(recipe, data, threads, device)
    return training, [], 0


def retrain(
    config: Mapping[str, Any], epoch: int, data: NodeData, checkpoints: Checkpoints, threads: int, cuda: bool
) -> float:
    """Train a trial again up to an epoch, save its weights, and return its accuracy."""
    recipe = Recipe.model_validate(dict(config))
    training = start(recipe, data.open(), threads, devices.pick(cuda))
    accuracy = next(result.accuracy for result in training.epochs() if result.epoch == epoch)
    checkpoints.save_weights(epoch, training.classifier.contents(recipe.model_dump()))
    return accuracy


def _advice(error: Exception, recipe: Recipe, gpus: float) -> str:
    reason = str(error).partition(". ")[0]
    shared = f"{int(1 / gpus)} trials share a GPU: set sweep.gpus_per_trial higher, or " if 0 < gpus <= 0.5 else ""
    return f"{reason}; {shared}search smaller batches than {recipe.batch_size} for {recipe.architecture}"
