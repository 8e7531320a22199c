"""Continue training the parent: the retraining and its control arm.

Each keeps the weights of one epoch, chosen by validation accuracy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flywheel.data.dataset import Dataset
from flywheel.models import classifier
from flywheel.models.classifier import Classifier
from flywheel.params import Recipe, Retrain
from flywheel.retraining import RetrainError, scores
from flywheel.retraining.examples import HardExamples, mix, repeats
from flywheel.retraining.report import ControlScores, Epoch, ParentScores, Trained
from flywheel.retraining.scores import Predicted
from flywheel.training.loop import EpochResult, TrainingData, TrainingDiverged, fit, validate


def train(
    opened: Dataset,
    parent: Path,
    hard: HardExamples,
    seen: frozenset[str] | None,
    recipe: Recipe,
    options: Retrain,
    device: torch.device,
    on_epoch: Callable[[str, EpochResult], None],
) -> tuple[Trained, Classifier]:
    """Continue training the parent (a model's directory) on the originals and the hard examples.

    With `options.control` the control arm follows. `seen` are the hashes that the parent or an ancestor was trained
    on, None when unknown. Returns the figures and the candidate. Raises RetrainError when the loss is not finite.
    """
    data = TrainingData.of(opened)
    model = classifier.load(parent, device)
    before = scores.predict(model, opened)
    _, validation = validate(model, torch.from_numpy(data.validation_images).to(device), data.validation_labels)
    mixed = mix(data, hard.images, hard.labels, options.weight, options.seed)
    epochs = train_arm(model, mixed, recipe, device, lambda result: on_epoch("failures", result))
    after = scores.predict(model, opened)

    drawn = _control_examples(opened, before, len(hard), options.seed) if options.control else None
    trained_on = None if seen is None else {*seen, *hard.hashes}
    if drawn is not None:
        other = classifier.load(parent, device)
        mixed = mix(data, opened.images[drawn], opened.labels[drawn], options.weight, options.seed)
        control_epochs = train_arm(other, mixed, recipe, device, lambda result: on_epoch("control", result))
        if trained_on is not None:
            trained_on |= {row.tobytes().hex() for row in opened.hashes[drawn]}
    unseen = scores.unseen(opened, trained_on)
    control = None
    if drawn is not None:
        predicted, held = scores.predict(other, opened), opened.holdout
        labels = opened.labels[opened.indices["simulation"]][held]
        pair = (predicted["simulation"][held], after["simulation"][held])
        control = ControlScores(
            **dict(scores.scores(opened, unseen, predicted, before)),
            examples=len(np.unique(drawn)),
            epochs=control_epochs,
            kept_epoch=_kept(control_epochs),
            failures_against_control=scores.change(*pair, labels, opened.class_names) if len(labels) else None,
        )
    trained = Trained(
        hard_examples=len(hard),
        hard_example_copies=int(repeats(len(hard), options.weight, options.seed).sum()),
        dropped=hard.dropped,
        epochs=epochs,
        kept_epoch=_kept(epochs),
        before=ParentScores(**dict(scores.scores(opened, unseen, before)), validation=validation),
        after=scores.scores(opened, unseen, after, before),
        control=control,
    )
    return trained, model


def train_arm(
    model: Classifier,
    data: TrainingData,
    recipe: Recipe,
    device: torch.device,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> tuple[Epoch, ...]:
    """Continue training a classifier with a fresh optimizer, and load the weights of the epoch that is kept.

    Raises RetrainError when the loss is not finite.
    """
    results: list[EpochResult] = []
    weights: dict[int, dict[str, Any]] = {}
    try:
        for result in fit(model, data, recipe, device):
            results.append(result)
            # An earlier epoch can only be kept if it is better than all later ones, so only those stay in memory.
            weights = {epoch: held for epoch, held in weights.items() if results[epoch - 1].accuracy > result.accuracy}
            weights[result.epoch] = {name: value.clone() for name, value in model.network.state_dict().items()}
            if on_epoch:
                on_epoch(result)
    except TrainingDiverged as error:
        raise RetrainError(f"{error} (retrain.learning_rate_scale)") from None
    kept = kept_epoch([result.accuracy for result in results], len(data.validation_labels))
    model.network.load_state_dict(weights[kept])
    model.eval()
    return tuple(Epoch(**asdict(result), kept=result.epoch == kept) for result in results)


def kept_epoch(accuracies: Sequence[float], n: int) -> int:
    """Return which epoch (from 1) to keep: the last within one standard error of the best on `n` validation images.

    One-standard-error rule (Breiman et al., Classification and Regression Trees, 1984, 3.4.3): what lies within the
    best one's own noise is as good, so another preference may decide. Here it is the last, which has seen the hard
    examples most often and at the lowest learning rate; validation, which has no drift, cannot show their use. The
    error is Agresti and Coull's, with two right and two wrong answers added (The American Statistician 52, 1998): the
    plain one is 0 when all is right.
    """
    adjusted = (max(accuracies) * n + 2) / (n + 4)
    standard_error = math.sqrt(adjusted * (1 - adjusted) / (n + 4))
    return max(epoch for epoch, accuracy in enumerate(accuracies, 1) if accuracy >= max(accuracies) - standard_error)


def _kept(epochs: Sequence[Epoch]) -> int:
    return next(epoch.epoch for epoch in epochs if epoch.kept)


def _control_examples(opened: Dataset, before: Predicted, count: int, seed: int) -> NDArray[np.int64] | None:
    """Draw `count` images of the side `train` that the parent predicts rightly, for as many steps in the control arm.

    Returns indices into the data set, by a seeded draw; with repetition if there are fewer; None if there are none.
    """
    index = opened.indices["simulation"]
    right = np.flatnonzero((before["simulation"] == opened.labels[index]) & ~opened.holdout)
    if not len(right):
        return None
    drawn: NDArray[np.int64] = index[
        np.sort(np.random.default_rng(seed).choice(right, count, replace=len(right) < count))
    ]
    return drawn
