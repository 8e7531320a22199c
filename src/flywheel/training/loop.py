"""The training loop of sweep and retraining: a generator that yields a result after each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from flywheel import FlywheelError
from flywheel.data.dataset import Dataset, Images
from flywheel.models import transfer
from flywheel.models.classifier import Classifier
from flywheel.params import Recipe
from flywheel.training.batches import AugmentedBatches
from flywheel.training.optimizers import make_optimizers


class TrainingDiverged(FlywheelError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class TrainingData:
    """Training and validation images (n, s, s, 3) uint8, labels (n,) int64, class names, and channel statistics."""

    images: Images
    labels: NDArray[np.int64]
    validation_images: Images
    validation_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> TrainingData:
        """Return the train and validation images of a data set."""
        train, validation = dataset.split("train"), dataset.split("validation")
        images = (train.images, train.labels, validation.images, validation.labels)
        return cls(*images, dataset.class_names, dataset.mean, dataset.std)

    def classifier(self, recipe: Recipe) -> Classifier:
        """Return an untrained classifier for these images, its weights drawn with the recipe's seed."""
        size = self.images.shape[1]
        return Classifier(
            recipe.architecture, self.class_names, self.mean, self.std, size, recipe.precision, recipe.seed
        )


@dataclass(frozen=True)
class EpochResult:
    """The result of an epoch. Losses are means over images, in nats; `loss` and `accuracy` are on validation."""

    epoch: int
    train_loss: float
    loss: float
    accuracy: float
    learning_rate: float
    images_per_s: float


class Training:
    """A training run whose state can be saved and restored between epochs.

    The host waits for the device once an epoch. The same recipe on the same machine with the same number of threads
    gives the same weights (byte-identical on the CPU), also when it resumes from a saved state.
    """

    def __init__(self, classifier: Classifier, data: TrainingData, recipe: Recipe, device: torch.device):
        torch.backends.cudnn.deterministic = True
        self.classifier = classifier.move_to(device)
        if recipe.compile:
            self.classifier.network.compile(dynamic=False)
        self.recipe = recipe
        self.device = device
        self.epoch = 0  # completed epochs
        self._batches = AugmentedBatches(
            data.images, data.labels, recipe.batch_size,
            flip=recipe.flip, translate=recipe.translate, seed=recipe.seed, device=device,
        )  # fmt: skip
        self._validation_images = transfer.resident(data.validation_images, device)
        self._validation_labels = data.validation_labels
        self._optimizers = make_optimizers(classifier, recipe)
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def state(self) -> dict[str, Any]:
        """Return the weights, optimizer states, random state and epoch; tensors are not copied."""
        return {
            "epoch": self.epoch,
            "network": self.classifier.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "random": self._batches.random.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load a state of the same recipe and data. Raises KeyError, ValueError or RuntimeError on a mismatch."""
        self.classifier.network.load_state_dict(state["network"])
        for optimizer, stored in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self._batches.random.set_state(state["random"])
        self.epoch = int(state["epoch"])

    def epochs(self) -> Iterator[EpochResult]:
        """Train the remaining epochs in place, yielding after each. Raises TrainingDiverged."""
        batches, recipe = self._batches, self.recipe
        steps = len(batches) * recipe.epochs
        while self.epoch < recipe.epochs:
            epoch = self.epoch + 1
            started = time.perf_counter()
            self.classifier.train()
            total = torch.zeros((), device=self.device)
            factor = 0.0
            for step, (images, labels) in enumerate(batches.epoch(epoch), (epoch - 1) * len(batches)):
                logits = self.classifier(images)
                loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
                self.classifier.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                factor = learning_rate_factor(step, steps, recipe.warmup_fraction)
                for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = factor * rate
                    optimizer.step()
                total += loss.detach()
            train_loss = total.item() / len(batches)
            if not math.isfinite(train_loss):
                raise TrainingDiverged(f"the loss became {train_loss} in epoch {epoch}; try a lower learning rate")
            seconds = time.perf_counter() - started
            loss_value, accuracy = validate(self.classifier, self._validation_images, self._validation_labels)
            if not math.isfinite(loss_value):
                raise TrainingDiverged(f"the network gives {loss_value} after epoch {epoch}; try a lower learning rate")
            trained = len(batches) * batches.batch_size
            self.epoch = epoch
            learning_rate = factor * recipe.learning_rate
            yield EpochResult(epoch, train_loss, loss_value, accuracy, learning_rate, trained / seconds)


def fit(classifier: Classifier, data: TrainingData, recipe: Recipe, device: torch.device) -> Iterator[EpochResult]:
    """Train a classifier in place, yielding after each epoch. Raises TrainingDiverged."""
    return Training(classifier, data, recipe, device).epochs()


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Return the factor on the peak learning rate at a step (from 0): linear warm-up, then linear decay to zero.

    Linear decay: Defazio et al., arXiv 2310.07831.
    """
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (step - warmup) / (steps - warmup)


def validate(classifier: Classifier, images: Images | Tensor, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return (mean loss in nats, accuracy) of a classifier on images (n, s, s, 3) uint8."""
    probabilities = classifier.predict(images)
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = float(-np.log(np.maximum(likelihood, 1e-12)).mean()) if np.isfinite(likelihood).all() else math.nan
    return loss, float((probabilities.argmax(axis=1) == labels).mean())
