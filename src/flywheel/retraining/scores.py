"""Accuracy of the models of a retraining, before against after, on images that none of them was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flywheel.data.dataset import Dataset
from flywheel.metrics import MetricsError, classification
from flywheel.metrics.comparison import compare
from flywheel.models.classifier import Classifier
from flywheel.retraining.report import Change, Score, Scores

Predicted = Mapping[str, NDArray[np.int64]]  # the classes that a model predicts on the splits test and simulation


def predict(classifier: Classifier, dataset: Dataset) -> Predicted:
    """Return the predicted classes. Raises MetricsError when a probability is not finite."""
    found = {}
    for name in ("test", "simulation"):
        probabilities = classifier.predict(dataset.split(name).images)
        if not np.isfinite(probabilities).all():
            raise MetricsError("the model gives probabilities that are not finite")
        found[name] = probabilities.argmax(axis=1).astype(np.int64)
    return found


def unseen(dataset: Dataset, seen: set[str] | None) -> NDArray[np.bool_]:
    """Return which simulation images have a hash that is not among `seen`; none when `seen` is unknown."""
    rows = dataset.hashes[dataset.indices["simulation"]]
    return np.array([seen is not None and row.tobytes().hex() not in seen for row in rows], bool)


def scores(
    dataset: Dataset, unseen: NDArray[np.bool_], predicted: Predicted, before: Predicted | None = None
) -> Scores:
    """Return accuracy with its interval on test, holdout and unseen, and by class; with `before` what changed."""
    names = dataset.class_names
    found: dict[str, Score] = {}
    classes: dict[str, dict[str, float]] = {name: {} for name in names}
    for part, split, mask in (
        ("test", "test", None),
        ("holdout", "simulation", dataset.holdout),
        ("unseen", "simulation", unseen),
    ):
        chosen = slice(None) if mask is None else mask
        truth, now = dataset.labels[dataset.indices[split]][chosen], predicted[split][chosen]
        n, right = len(truth), int((now == truth).sum())
        changed = change(before[split][chosen], now, truth, names).model_dump() if before is not None and n else {}
        interval = classification.wilson_interval(right, n) if n else None
        found[part] = Score(n=n, accuracy=right / n if n else None, interval=interval, **changed)
        for index in np.unique(truth):
            classes[names[index]][part] = float((now[truth == index] == index).mean())
    return Scores(**found, per_class=classes)


def change(
    old: NDArray[np.int64], new: NDArray[np.int64], labels: NDArray[np.int64], class_names: Sequence[str]
) -> Change:
    """Return how many images are fixed and broken, and the difference in accuracy with its 95 % interval."""
    found = compare(old, new, labels, class_names).overall
    return Change(
        fixed=found.fixed, broken=found.broken, difference=found.difference, difference_interval=(found.low, found.high)
    )
