"""Detect harm in production without labels: presumed mistakes by confidence, and a change detector over them.

Presumed mistakes: average thresholded confidence (ATC) with negative entropy (Garg et al., arXiv 2201.04234). Change:
a restarting betting CUSUM, which is an e-detector (Shin, Ramdas and Rinaldo, arXiv 2203.03532). New classes and changed
labels fool ATC, so an alarm asks for labels and decides nothing about a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, entr

from flywheel.metrics import MetricsError

FEWEST_PRESUMED = 5  # more: harmless drift of a very accurate model alarms more often (docs/monitoring.md)
RECORDED_DECIMALS = 6  # of the probabilities in the records of traffic; the reference is rounded like them
DISTANCES = (0.02, 0.05, 0.1, 0.2, 0.4)  # by which the share exceeds the bound: each bet is best for one of them
LARGEST_BET = 0.9  # of the stake; 1 would make log(0) possible
START = (0.0,) * len(DISTANCES)  # the state of a detector that has seen nothing
BLOCK = 100_000  # predictions at a time: 4 MB for each array of all bets


def negative_entropy(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return sum(p log p) of each row of probabilities (n, classes): (n,) float64, 0 where the model is sure.

    Raises MetricsError when a probability is not finite.
    """
    if not np.isfinite(probabilities).all():
        raise MetricsError("the model gives probabilities that are not finite")
    scores: NDArray[np.float64] = -entr(np.round(probabilities.astype(np.float64), RECORDED_DECIMALS)).sum(axis=1)
    return scores


@dataclass(frozen=True)
class Reference:
    """What the alarm compares production with: `presumed` of `n` images of known labels score below `threshold`.

    The model answers `errors` of them wrongly. `bound` is the share of presumed mistakes that production may reach.
    """

    threshold: float
    n: int
    errors: int
    presumed: int
    bound: float

    def mistakes(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return which of the predictions (n, classes) are presumed mistakes. Presumed accuracy is 1 - their share."""
        below: NDArray[np.bool_] = negative_entropy(probabilities) < self.threshold
        return below


def reference(probabilities: NDArray[np.floating], labels: NDArray[np.int64], tolerance: float) -> Reference:
    """Choose the threshold by the model's probabilities (n, classes) for images of known labels (n,) int64.

    Below it are the k lowest scores, k = max(errors, 5); with ties at the threshold, fewer. The bound is the 95 %
    upper limit (Clopper-Pearson) of their share, plus the tolerance. Raises MetricsError when shapes differ, or when
    no share could exceed the bound: too few images, or too many mistakes.
    """
    if len(probabilities) != len(labels):
        raise MetricsError(f"{len(probabilities)} predictions for {len(labels)} labels")
    scores, n = np.sort(negative_entropy(probabilities)), len(labels)
    errors = int((probabilities.argmax(axis=1) != labels).sum()) if n else 0
    k = max(errors, FEWEST_PRESUMED)
    if k < n:
        threshold = float(scores[k])
        presumed = int(np.searchsorted(scores, threshold))
        bound = float(betaincinv(presumed + 1, n - presumed, 0.95)) + tolerance
        if bound < 1:
            return Reference(threshold, n, errors, presumed, bound)
    raise MetricsError(
        f"the alarm needs more test images or a better model: {errors} of {n} are wrong, {k} presumed mistakes"
    )


def levels(
    mistakes: NDArray[np.bool_], bound: float, state: Sequence[float] = START
) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """Return the level of the detector after each prediction, (n,) float64, and its state after the last one.

    mistakes: (n,) bool, in the order of time. Alarm where the level is at least `alarm_level`. Each bet b has
    S = max(S, 0) + log(1 + b (mistake - bound)); the level is the log of the mean of exp(S). The state, a float for
    each bet, continues the detector in a later call. It does not restart after an alarm: the level falls again only
    as slowly as the evidence; the caller passes START to wait for the next alarm.
    """
    bets = np.minimum(np.array(DISTANCES) / (bound * (1 - bound)), LARGEST_BET / bound)
    right, wrong = np.log1p(-bets * bound)[:, None], np.log1p(bets * (1 - bound))[:, None]
    found, now = np.empty(len(mistakes)), np.array(state)[:, None]
    for start in range(0, len(mistakes), BLOCK):
        block = slice(start, start + BLOCK)
        total = np.cumsum(np.where(mistakes[block], wrong, right), axis=1)
        # The recursion in closed form: the total minus its lowest value before, or minus what the last S began with.
        lowest = np.minimum.accumulate(np.hstack([-np.maximum(now, 0), total[:, :-1]]), axis=1)
        sums = total - lowest
        found[block] = np.logaddexp.reduce(sums, axis=0) - math.log(len(bets))
        now = sums[:, -1:]
    return found, tuple(now[:, 0].tolist())


def alarm_level(false_alarm_every: float) -> float:
    """Return the level of the alarm: without harm it is reached after at least so many predictions on average.

    That holds when the predictions are independent and the true share of presumed mistakes is at most the bound.
    """
    return math.log(false_alarm_every)
