"""Both arms of a retraining from one parent, and what each did: everything between the data and the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flywheel.data.dataset import Dataset
from flywheel.models import classifier
from flywheel.params import Recipe, Retrain
from flywheel.retraining import arms, scores
from flywheel.retraining.arms import Arm
from flywheel.retraining.examples import HardExamples, mix, repeats
from flywheel.training.loop import EpochResult, TrainingData, validate


def train(
    opened: Dataset,
    parent: Path,
    hard: HardExamples,
    seen: frozenset[str] | None,
    recipe: Recipe,
    options: Retrain,
    device: torch.device,
    log: Callable[[str, EpochResult], None],
) -> tuple[dict[str, Any], Arm]:
    """Train on from the parent (a model's directory) with the hard examples, and the control arm if it is wanted.

    `seen` are the hashes that the parent or an ancestor was trained on, None when that is not known. Returns the
    figures of retrain.json and the arm with the hard examples. Raises RetrainError when the loss is not finite.
    """
    data = TrainingData.of(opened)
    model = classifier.load(parent, device)
    before = scores.Predictions.of(model, opened)
    _, validation = validate(model, torch.from_numpy(data.validation_images).to(device), data.validation_labels)
    mixed = mix(data, hard.images, hard.labels, options.weight, options.seed)
    arm = arms.train(model, mixed, recipe, device, lambda result: log("failures", result))
    after = scores.Predictions.of(arm.classifier, opened)

    drawn = _control_examples(opened, before, len(hard), options.seed) if options.control else None
    trained_on = None if seen is None else {*seen, *hard.hashes}
    second = None
    if drawn is not None:
        mixed = mix(data, opened.images[drawn], opened.labels[drawn], options.weight, options.seed)
        second = arms.train(
            classifier.load(parent, device), mixed, recipe, device, lambda result: log("control", result)
        )
        if trained_on is not None:
            trained_on |= {row.tobytes().hex() for row in opened.hashes[drawn]}
    unseen = scores.unseen(opened, trained_on)
    result = {
        "hard_examples": len(hard),
        "hard_example_copies": int(repeats(len(hard), options.weight, options.seed).sum()),
        "dropped": hard.dropped,
        "epochs": _epochs(arm),
        "kept_epoch": arm.kept_epoch,
        "before": {"validation": validation, **scores.scores(opened, unseen, before)},
        "after": scores.scores(opened, unseen, after, before),
        "control": None,
    }
    if second is not None and drawn is not None:
        said = scores.Predictions.of(second.classifier, opened)
        labels = opened.labels[opened.indices["simulation"]][opened.holdout]
        pair = (said.simulation[opened.holdout], after.simulation[opened.holdout])
        result["control"] = {
            **scores.scores(opened, unseen, said, before),
            "examples": len(np.unique(drawn)),
            "epochs": _epochs(second),
            "kept_epoch": second.kept_epoch,
            "failures_against_control": scores.change(*pair, labels, opened.class_names) if len(labels) else None,
        }
    return result, arm


def _control_examples(opened: Dataset, before: scores.Predictions, count: int, seed: int) -> NDArray[np.int64] | None:
    """Return `count` images of the side `train` that the parent gets right, so that both arms take the same steps.

    A seeded draw of indices into the data set; with repetition if there are fewer; None if there are none.
    """
    index = opened.indices["simulation"]
    right = np.flatnonzero((before.simulation == opened.labels[index]) & ~opened.holdout)
    if not len(right):
        return None
    drawn: NDArray[np.int64] = index[
        np.sort(np.random.default_rng(seed).choice(right, count, replace=len(right) < count))
    ]
    return drawn


def _epochs(arm: Arm) -> list[dict[str, Any]]:
    return [{**asdict(result), "kept": result.epoch == arm.kept_epoch} for result in arm.epochs]
