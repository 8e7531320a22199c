"""The accuracy of a model on many images from labels of a few: which to draw, and what they prove.

Unsure answers are drawn more often, because they say more about the accuracy, and each label is weighted by the
inverse of its probability, so that this introduces no bias. The confidence of the answers that were not drawn makes the
interval narrower, and nothing else: the labels correct it (difference estimator; Kossen et al., arXiv 2103.05331;
Zrnic & Candès, arXiv 2403.03208).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.metrics.classification import wilson_interval

UNIFORM_SHARE = 0.5  # of the probability; the rest follows the standard deviation of right under the confidence
FEW_ERRORS = 10  # with fewer, the variance of what was found is not to be trusted
Z = 1.959964  # two-sided 95 %


@dataclass(frozen=True)
class Estimate:
    """An accuracy with its 95 % interval."""

    accuracy: float
    low: float
    high: float


def probabilities(confidence: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return the probability (n,) with which each image is drawn, so that `size` are drawn; confidence: (n,)."""
    n = len(confidence)
    if size >= n:
        return np.ones(n)
    deviation = np.sqrt(np.clip(confidence * (1 - confidence), 0, None))
    score = UNIFORM_SHARE + (1 - UNIFORM_SHARE) * deviation / max(deviation.mean(), 1e-12)
    certain = np.zeros(n, bool)
    while True:
        found = np.where(certain, 1.0, (size - certain.sum()) * score / score[~certain].sum())
        if (found <= 1).all():
            return found
        certain |= found >= 1


def draw(probability: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return the indices of a systematic sample from a random order, shuffled; its size is the sum of `probability`."""
    size = round(float(probability.sum()))
    order = random.permutation(len(probability))
    ends = np.cumsum(probability[order])
    ends[-1] = size  # rounding must not lose the last image
    chosen: NDArray[np.int64] = order[np.searchsorted(ends, random.random() + np.arange(size), side="right")]
    return random.permutation(chosen)


def accuracy(
    right: NDArray[np.float64],
    confidence: NDArray[np.float64],
    probability: NDArray[np.float64],
    *,
    drawn: int,
    population: int,
    mean_confidence: float,
    foreign: NDArray[np.bool_] | None = None,
) -> Estimate:
    """Estimate the accuracy on a population from a random part of the images drawn from it, each array (m,).

    right: 1, 0, or NaN where labels leave it undecided, which widens the interval from all wrong to all right; the
    estimate takes these to be as accurate as the others. `foreign` images do not belong to the population.
    """
    weight = drawn / (len(right) * probability)  # the part that has labels stands for all that were drawn
    ours = np.ones(len(right), bool) if foreign is None else ~foreign

    def size(counted: NDArray[np.bool_]) -> float:
        """Return how many images of the population are like those that count."""
        return max(population - float(weight[~counted].sum()), 1e-12)

    def corrected(right: NDArray[np.float64], counted: NDArray[np.bool_]) -> float:
        """Return the accuracy if the rest is as accurate as what is counted."""
        found = population * mean_confidence + (weight * (np.where(counted, right, 0) - confidence)).sum()
        return float(found) / size(counted)

    def interval(undecided: float) -> tuple[float, float]:
        filled = np.where(np.isnan(right), undecided, right)
        estimate = corrected(filled, ours)
        # Of a sample that takes nearly everything little is left to chance: 1 - 1/weight is the share that is.
        chance = 1 - 1 / np.maximum(weight, 1)
        errors = int((filled[ours] == 0).sum())
        if min(errors, ours.sum() - errors) < FEW_ERRORS:
            squares = (chance * weight**2)[ours].sum()
            if squares == 0:
                return estimate, estimate
            n = weight[ours].sum() ** 2 / squares
            return wilson_interval(min(max(estimate, 0.0), 1.0) * n, n)
        found = weight * (np.where(ours, filled, estimate) - confidence)
        middle = (chance * found).sum() / max(chance.sum(), 1e-12)
        variance = (chance * (found - middle) ** 2).sum() * len(right) / (len(right) - 1)
        half = Z * float(np.sqrt(variance)) / size(ours)
        return estimate - half, estimate + half

    estimate = min(max(corrected(right, ours & ~np.isnan(right)), 0.0), 1.0)
    low, high = interval(0.0)[0], interval(1.0)[1]
    return Estimate(estimate, min(max(low, 0.0), estimate), max(min(high, 1.0), estimate))
