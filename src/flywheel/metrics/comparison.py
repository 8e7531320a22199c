"""Paired comparison of two models on the same images: differences with intervals, and a test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr

from flywheel.metrics import MetricsError
from flywheel.metrics.report import Difference, WeightedDifference

DISPUTED = -2  # the label of an image whose labellers disagree


@dataclass(frozen=True)
class Comparison:
    """A paired comparison. Differences are new minus old; `per_class` intervals hold simultaneously (95 %)."""

    overall: Difference
    p_value: float
    per_class: dict[str, Difference]
    fixed: tuple[int, ...]
    broken: tuple[int, ...]


def compare(
    old: NDArray[np.int64],
    new: NDArray[np.int64],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    confidence: float = 0.95,
) -> Comparison:
    """Compare two models by their predicted classes, each (n,) int64, on images of known labels (n,) int64.

    The interval is Tango's score interval for paired proportions, the test McNemar's exact one (binomial on
    the discordant pairs), the per-class intervals are Bonferroni-corrected over the classes that occur.
    `fixed` are the indices that only the new model gets right, `broken` those that only the old one does.
    Raises MetricsError when lengths differ or there is no image.
    """
    if not len(old) == len(new) == len(labels) or len(labels) == 0:
        raise MetricsError(f"{len(old)} and {len(new)} predictions for {len(labels)} labels")
    fixed, broken = (new == labels) & (old != labels), (old == labels) & (new != labels)
    count, fixed_count, broken_count = (
        np.bincount(labels[mask], minlength=len(class_names)).tolist() for mask in (slice(None), fixed, broken)
    )
    present = [index for index in range(len(class_names)) if count[index]]
    simultaneous = 1 - (1 - confidence) / len(present)
    per_class = {
        class_names[index]: paired_difference(fixed_count[index], broken_count[index], count[index], simultaneous)
        for index in present
    }
    b, c = sum(fixed_count), sum(broken_count)
    return Comparison(
        paired_difference(b, c, len(labels), confidence),
        min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5))) if b + c else 1.0,
        per_class,
        tuple(np.flatnonzero(fixed).tolist()),
        tuple(np.flatnonzero(broken).tolist()),
    )


def paired_difference(fixed: int, broken: int, n: int, confidence: float = 0.95) -> Difference:
    """Return (fixed - broken) / n with Tango's asymptotic score interval for paired proportions.

    Source: Tango, Statistics in Medicine 17 (1998), 891-908. The limits solve T(d) = ±z, where T is the score
    statistic with the discordant proportion at its maximum likelihood under the difference d. Defined also
    when no pair is discordant.
    """
    if not 0 <= fixed + broken <= n or n == 0 or fixed < 0 or broken < 0:
        raise MetricsError(f"{fixed} fixed and {broken} broken of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    difference = (fixed - broken) / n

    def score(d: float) -> float:
        linear = (2 * n - fixed + broken) * d - fixed - broken
        root = math.sqrt(max(linear**2 + 8 * n * broken * d * (1 - d), 0.0))
        probability = max((root - linear) / (4 * n), 0.0)
        variance = n * (2 * probability + d * (1 - d))
        return (fixed - broken - n * d) / math.sqrt(max(variance, 1e-300))

    # The statistic falls from +inf at -1 to -inf at 1; the ends are limits where the discordant pairs all agree.
    edge = 1 - 1e-12
    low = brentq(lambda d: score(d) - z, -edge, difference, xtol=1e-10) if difference > -edge else -1.0
    high = brentq(lambda d: score(d) + z, difference, edge, xtol=1e-10) if difference < edge else 1.0
    return Difference(n, fixed, broken, difference, float(low), float(high))


def weighted_difference(
    old: NDArray[np.int64],
    new: NDArray[np.int64],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    confidence: float,
) -> WeightedDifference:
    """Compare two models by their predicted classes, each (n,) int64, on a sample with unequal probabilities.

    `weights` are 1 / probability. The difference is the Hájek mean, the interval the normal one with the linearised
    variance, but never narrower than Tango's for as many equal weights without a discordant pair. Images labelled
    DISPUTED count against the new model at the lower limit, and for it at the upper one, if the predictions differ.
    """
    if not len(old) == len(new) == len(labels) == len(weights) or len(labels) == 0:
        raise MetricsError(f"{len(old)} and {len(new)} predictions for {len(labels)} labels, {len(weights)} weights")
    share = weights / weights.sum()
    effective_n = round(1 / float((share**2).sum()), 6)  # so that 50 equal weights are worth 50
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    fixed, broken = (new == labels) & (old != labels), (old == labels) & (new != labels)
    gain = fixed.astype(float) - broken
    disputed = labels == DISPUTED
    undecided = disputed & (old != new)

    def limits(values: NDArray[np.float64]) -> tuple[float, float]:
        mean = float(share @ values)
        half = max(z * float(np.linalg.norm(share * (values - mean))), z**2 / (effective_n + z**2))
        return max(mean - half, -1.0), min(mean + half, 1.0)

    low, high = limits(gain - undecided)[0], limits(gain + undecided)[1]
    return WeightedDifference(
        len(labels), int(fixed.sum()), int(broken.sum()), float(share @ gain), low, high, effective_n,
        int(disputed.sum()),
    )  # fmt: skip
