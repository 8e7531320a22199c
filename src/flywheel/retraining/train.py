"""Continue training the parent: the retraining and the arms that it is compared with.

Each keeps the weights of one epoch, chosen by validation accuracy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flywheel.data.dataset import Dataset
from flywheel.models import classifier
from flywheel.models.classifier import Classifier
from flywheel.params import Recipe, Retrain
from flywheel.retraining import RetrainError, scores
from flywheel.retraining.examples import Arm, Labelled, mix
from flywheel.retraining.report import ArmScores, Epoch, LabelCounts, ParentScores, Trained
from flywheel.retraining.scores import Predicted
from flywheel.training.loop import EpochResult, TrainingData, TrainingDiverged, fit, validate


def train(
    opened: Dataset,
    parent: Path,
    labelled: Labelled,
    seen: frozenset[str] | None,
    recipe: Recipe,
    options: Retrain,
    arms: Sequence[Arm],
    device: torch.device,
    on_epoch: Callable[[str, EpochResult], None],
) -> tuple[Trained, Classifier]:
    """Continue training the parent (a model's directory) on the originals and the labelled production images.

    Each of `arms` follows from the same parent, in as many optimizer steps. `seen` are the hashes that the parent or
    an ancestor was trained on, None when unknown. Returns the figures and the candidate. Raises RetrainError when the
    loss is not finite.
    """
    data = TrainingData.of(opened)
    model = classifier.load(parent, device)
    before = scores.predict(model, opened)
    _, validation = validate(model, data.validation_images, data.validation_labels)

    def trained_on(arm: Arm, model: Classifier, length: int | None) -> tuple[tuple[Epoch, ...], Predicted, int]:
        index = labelled.arm(arm, options.seed)
        mixed = mix(data, labelled.images.select(index), labelled.labels[index], options.weight, options.seed, length)
        epochs = train_arm(model, mixed, recipe, device, lambda result: on_epoch(arm, result))
        return epochs, scores.predict(model, opened), len(mixed.labels)

    epochs, after, length = trained_on(options.examples, model, None)
    others = {arm: trained_on(arm, classifier.load(parent, device), length)[:2] for arm in arms}

    used = {labelled.hashes[i] for arm in (options.examples, *arms) for i in labelled.arm(arm, options.seed)}
    unseen = scores.unseen(opened, None if seen is None else {*seen, *used})
    held = opened.holdout
    labels = opened.labels[opened.indices["simulation"]][held]
    needed = {"failures": len(labelled)}  # to find them all images are labelled
    compared: dict[str, ArmScores] = {}
    for arm, (arm_epochs, predicted) in others.items():
        pair, count = (predicted["simulation"][held], after["simulation"][held]), len(labelled.arm(arm, options.seed))
        compared[arm] = ArmScores(
            **dict(scores.scores(opened, unseen, predicted, before)),
            arm=arm,
            examples=count,
            labels=needed.get(arm, count),
            epochs=arm_epochs,
            kept_epoch=_kept(arm_epochs),
            gain=scores.change(*pair, labels, opened.class_names) if len(labels) else None,
        )
    wrong = int((~labelled.right).sum())
    trained = Trained(
        arm=options.examples,
        hard_examples=wrong,
        examples=LabelCounts(right=len(labelled) - wrong, wrong=wrong, disputed=labelled.disputed),
        dropped=labelled.dropped,
        epochs=epochs,
        kept_epoch=_kept(epochs),
        before=ParentScores(**dict(scores.scores(opened, unseen, before)), validation=validation),
        after=scores.scores(opened, unseen, after, before),
        control=compared.get("random"),
        arms=compared if len(compared) > 1 else {},
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
