"""Accuracy, calibration and confusions from probabilities and labels, as evaluation.json holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.metrics import MetricsError

CALIBRATION_BINS = 15
MOST_CONFUSED = 10
MOST_MISTAKES = 40


def evaluate(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], ids: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the `Figures` of a report as a mapping: accuracy with its 95 % interval, per-class figures and so on.

    probabilities: (n, classes) float32; labels: (n,) int64; ids: (n,) int64, by which mistakes are reported. Rows of
    the confusion matrix are true classes. Raises MetricsError when the shapes do not match or a probability is not
    finite.
    """
    n, classes = probabilities.shape
    if labels.shape != (n,) or classes != len(class_names) or n == 0:
        raise MetricsError(f"{n} predictions of {classes} classes for {len(labels)} labels, {len(class_names)} classes")
    if not np.isfinite(probabilities).all():
        raise MetricsError("the model gives probabilities that are not finite")
    predictions = probabilities.argmax(axis=1)
    correct = int((predictions == labels).sum())
    matrix = np.bincount(classes * labels + predictions, minlength=classes**2).reshape(classes, classes)
    right, predicted, support = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    # A class that is never predicted or has no image gets 0.
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(predicted + support, 1)
    calibrated = calibration(probabilities, labels)
    return {
        "n": n,
        "accuracy": correct / n,
        "interval": list(wilson_interval(correct, n)),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(class_names)
        },
        "confusion_matrix": matrix.tolist(),
        "ece": calibrated["ece"],
        "calibration": {key: calibrated[key] for key in ("confidence", "accuracy", "count")},
        "most_confused": _most_confused(matrix, class_names),
        "worst": _confident_mistakes(probabilities, labels, ids, class_names),
    }


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson, JASA 22, 1927); n may be an effective number."""
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    middle, half = successes + z2 / 2, math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4))
    return max((middle - half) / (n + z2), 0.0), min((middle + half) / (n + z2), 1.0)


def balanced_accuracy(right: NDArray[np.int64], total: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean recall of the classes that have images, and the lower end of its 95 % interval.

    right, total: (classes,) counts. The interval combines Wilson's of each class by their distances from the recalls
    (MOVER; Zou & Donner, Statistics in Medicine 27, 2008), so it has a width where every answer is right, too.
    """
    counted = total > 0
    recalls = right[counted] / total[counted]
    lows = [wilson_interval(int(k), int(n))[0] for k, n in zip(right[counted], total[counted], strict=True)]
    return float(recalls.mean()), float(recalls.mean() - np.sqrt(((recalls - lows) ** 2).sum()) / len(lows))


def calibration(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return the expected calibration error and, for each non-empty bin of confidence, its means and count.

    Bins of equal width over [0, 1] (Naeini et al., AAAI 2015; Guo et al., arXiv 1706.04599): lists `confidence`
    and `accuracy` (means), `count`.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = counts > 0
    mean_confidence = np.bincount(bins, confidence, CALIBRATION_BINS)[filled] / counts[filled]
    mean_accuracy = np.bincount(bins, correct, CALIBRATION_BINS)[filled] / counts[filled]
    gaps = np.abs(mean_confidence - mean_accuracy)
    return {
        "ece": float((gaps * counts[filled]).sum() / len(labels)),
        "confidence": mean_confidence.tolist(),
        "accuracy": mean_accuracy.tolist(),
        "count": counts[filled].tolist(),
    }


def _confident_mistakes(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], ids: NDArray[np.int64], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the mistakes by confidence, the most confident first."""
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    return [
        {
            "id": int(ids[i]),
            "label": class_names[labels[i]],
            "prediction": class_names[predictions[i]],
            "confidence": float(confidence[i]),
        }
        for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    ]


def _most_confused(matrix: NDArray[np.int64], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs (true class, predicted class) with the most mistakes, most first."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = [divmod(int(index), len(matrix)) for index in order]
    return [
        {"label": class_names[true], "prediction": class_names[predicted], "count": int(wrong[true, predicted])}
        for true, predicted in pairs
        if wrong[true, predicted]
    ]
