"""One arm of a retraining: continue from given weights on a mix, and keep one epoch by validation alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flywheel.models.classifier import Classifier
from flywheel.params import Recipe
from flywheel.retraining import RetrainError
from flywheel.training.loop import EpochResult, TrainingData, TrainingDiverged, fit


@dataclass(frozen=True)
class Arm:
    """A trained classifier, with the weights of the kept epoch, and all its epochs."""

    classifier: Classifier
    epochs: tuple[EpochResult, ...]
    kept_epoch: int


def train(
    classifier: Classifier,
    data: TrainingData,
    recipe: Recipe,
    device: torch.device,
    log: Callable[[EpochResult], None] | None = None,
) -> Arm:
    """Train a classifier on from the weights it has, with a fresh optimizer, and put the kept epoch's weights back.

    Raises RetrainError when the loss is not finite.
    """
    results: list[EpochResult] = []
    weights: dict[int, dict[str, Any]] = {}
    try:
        for result in fit(classifier, data, recipe, device):
            results.append(result)
            # An earlier epoch can only be kept if it is better than all later ones: the rest need no memory.
            weights = {epoch: held for epoch, held in weights.items() if results[epoch - 1].accuracy > result.accuracy}
            weights[result.epoch] = {name: value.clone() for name, value in classifier.network.state_dict().items()}
            if log:
                log(result)
    except TrainingDiverged as error:
        raise RetrainError(f"{error} (retrain.learning_rate_scale)") from None
    kept = kept_epoch([result.accuracy for result in results], len(data.validation_labels))
    classifier.network.load_state_dict(weights[kept])
    return Arm(classifier.eval(), tuple(results), kept)


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
